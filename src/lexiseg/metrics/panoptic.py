"""Panoptic quality: how many segments were found, and how well.

Kirillov et al., "Panoptic Segmentation" (CVPR 2019), by the rules of its evaluation program: a segment of the truth is
found by a predicted one of its class if their IoU, taken without the pixels of the prediction that lie on void, is
above one half (so there is at most one); what was not found is a false negative unless it is a crowd region; a
prediction that found nothing is a false positive unless more than half of it lies on void and on the crowd region of
its class.

Everything that is counted is an integer. An IoU above one half and at most one is a whole multiple of 2^-53 in double
precision, so the sum of the IoUs is kept exactly too, and many processes give the same digits as one.

K classes. Quality is in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

VOID = 0
"""Segment id of the pixels that belong to no segment."""

MAX_SEGMENT_ID = 2**24 - 1
"""Ids are three bytes of a PNG."""

_BLOCK = 2**19  # pixels counted at once: they stay in the processor's cache

_ROWS = ("found", "false_positives", "false_negatives", "iou_high", "iou_low")
_FOUND, _FALSE_POSITIVES, _FALSE_NEGATIVES, _IOU_HIGH, _IOU_LOW = range(5)
_IOU_UNIT, _LOW_BITS = 53, 26  # an IoU is (high * 2^26 + low) * 2^-53; 64-bit sums of both hold 2^36 segments


@dataclass(frozen=True)
class PanopticSegment:
    """A segment of a panoptic map."""

    id: int
    """Its value in the map, 1 or more."""
    class_index: int
    is_crowd: bool = False
    """A group that nobody took apart: it need not be found. Only in the truth."""


@dataclass(frozen=True)
class Quality:
    """Means over some classes, or the numbers of one."""

    pq: float
    sq: float
    """Mean IoU of what was found."""
    rq: float
    """F1 of finding."""
    classes: int
    """How many classes of the group occur in the truth or in a prediction; the others do not count."""


@dataclass(frozen=True)
class PanopticQuality:
    """The result over a data set."""

    all: Quality
    things: Quality
    stuff: Quality
    per_class: tuple[Quality, ...]
    """K entries."""


def count_segments(
    prediction: NDArray[np.integer],
    predicted: Sequence[PanopticSegment],
    truth: NDArray[np.integer],
    true: Sequence[PanopticSegment],
    num_classes: int,
) -> NDArray[np.int64]:
    """[5, K]: of one picture, found segments, false positives, false negatives, and the sum of IoUs in two parts.

    `prediction` and `truth` are maps [H, W] of segment ids, 0 for void; `predicted` and `true` say what they are. A map
    and its list must tell of the same segments: an id that only one of them knows is an error, but for a segment of the
    truth without pixels, which counts as not found.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in size")
    overlap = _overlap(
        prediction.ravel(),
        _row_of_id(prediction, predicted, num_classes, "prediction"),
        truth.ravel(),
        _row_of_id(truth, true, num_classes, "truth"),
        (len(predicted) + 1, len(true) + 1),  # row and column 0: void
    )
    predicted_area, true_area = overlap.sum(1), overlap.sum(0)
    for segment, area in zip(predicted, predicted_area[1:], strict=True):
        if area == 0:
            raise ValueError(f"the prediction lists segment {segment.id}, which has no pixel in its map")

    counts = np.zeros((len(_ROWS), num_classes), np.int64)
    found_by: set[int] = set()
    crowd: dict[int, int] = {}
    for column, segment in enumerate(true, start=1):
        if segment.is_crowd:
            crowd[segment.class_index] = column  # of several, the last one listed counts
            continue
        row = _finder(column, segment.class_index, predicted, overlap, predicted_area, true_area)
        if row is None:
            counts[_FALSE_NEGATIVES, segment.class_index] += 1
            continue
        found_by.add(row)
        iou = _iou(row, column, overlap, predicted_area, true_area)
        counts[_FOUND, segment.class_index] += 1
        counts[_IOU_HIGH, segment.class_index] += int(iou * 2**_IOU_UNIT) >> _LOW_BITS
        counts[_IOU_LOW, segment.class_index] += int(iou * 2**_IOU_UNIT) & (2**_LOW_BITS - 1)
    for row, segment in enumerate(predicted, start=1):
        if row in found_by:
            continue
        excused = overlap[row, 0] + (overlap[row, crowd[segment.class_index]] if segment.class_index in crowd else 0)
        if excused / predicted_area[row] <= 0.5:
            counts[_FALSE_POSITIVES, segment.class_index] += 1
    return counts


def panoptic_quality(counts: NDArray[np.int64], is_thing: Sequence[bool]) -> PanopticQuality:
    """The result of summed counts [5, K]; `is_thing` has K entries."""
    things = np.asarray(is_thing, bool)
    if counts.shape != (len(_ROWS), len(things)):
        raise ValueError(f"counts {counts.shape} do not fit {len(things)} classes")
    per_class = tuple(_quality_of_class(column) for column in counts.T)
    occurs = counts[: _FALSE_NEGATIVES + 1].sum(0) > 0
    return PanopticQuality(
        all=_mean_quality(per_class, occurs),
        things=_mean_quality(per_class, occurs & things),
        stuff=_mean_quality(per_class, occurs & ~things),
        per_class=per_class,
    )


def iou_sums(counts: NDArray[np.int64]) -> list[float]:
    """K sums of the IoUs of what was found."""
    exact = [(int(high) << _LOW_BITS) + int(low) for high, low in counts[_IOU_HIGH : _IOU_LOW + 1].T]
    return [total / 2**_IOU_UNIT for total in exact]


def resampled_pq(pictures: NDArray[np.int64], times: Tensor) -> Tensor:
    """[R] float64: PQ over all classes of every resampled data set (see `lexiseg.metrics.bootstrap`).

    `pictures` [N, 5, K] holds the counts of each picture, `times` [R, N] how often each was drawn.
    """
    sums = torch.from_numpy(pictures[:, _IOU_HIGH] * 2.0 ** (_LOW_BITS - _IOU_UNIT))
    sums = sums + torch.from_numpy(pictures[:, _IOU_LOW] * 2.0**-_IOU_UNIT)  # [N, K]
    counted = torch.from_numpy(pictures[:, : _FALSE_NEGATIVES + 1]).double()  # [N, 3, K]
    found, false_positives, false_negatives = (
        (times @ counted.flatten(1)).unflatten(1, (3, -1)).unbind(1)
    )  # [R, K] each
    weight = found + 0.5 * false_positives + 0.5 * false_negatives
    return torch.where(weight > 0, times @ sums / weight, math.nan).nanmean(1)


class PanopticCounts:
    """The counts of a data set, picture by picture."""

    def __init__(self, is_thing: Sequence[bool]) -> None:
        self.is_thing = tuple(bool(flag) for flag in is_thing)
        self.counts = np.zeros((len(_ROWS), len(self.is_thing)), np.int64)

    def update(
        self,
        prediction: NDArray[np.integer],
        predicted: Sequence[PanopticSegment],
        truth: NDArray[np.integer],
        true: Sequence[PanopticSegment],
    ) -> None:
        """Counts one picture; see `count_segments`."""
        self.counts += count_segments(prediction, predicted, truth, true, len(self.is_thing))

    def merge(self, other: PanopticCounts) -> None:
        """Adds what another worker has counted."""
        if self.is_thing != other.is_thing:
            raise ValueError("the two were counted with other classes")
        self.counts += other.counts

    def quality(self) -> PanopticQuality:
        """The result so far."""
        return panoptic_quality(self.counts, self.is_thing)


def _row_of_id(
    ids: NDArray[np.integer], segments: Sequence[PanopticSegment], num_classes: int, name: str
) -> NDArray[np.int64]:
    """A table from segment id: 0 for void, i + 1 for `segments[i]`, -1 for what is not listed."""
    if ids.size and not (ids.min() >= 0 and ids.max() <= MAX_SEGMENT_ID):
        raise ValueError(f"the {name} has segment ids outside 0..{MAX_SEGMENT_ID}")
    for segment in segments:
        if not 0 < segment.id <= MAX_SEGMENT_ID:
            raise ValueError(f"the {name} lists segment {segment.id}; an id is one of 1..{MAX_SEGMENT_ID}")
    highest = max(int(ids.max(initial=0)), *(segment.id for segment in segments), 0)
    table = np.full(highest + 1, -1, np.int64)
    table[VOID] = 0
    for number, segment in enumerate(segments, start=1):
        if table[segment.id] >= 0:
            raise ValueError(f"the {name} lists segment {segment.id} twice")
        if not 0 <= segment.class_index < num_classes:
            raise ValueError(f"segment {segment.id} of the {name} is of class {segment.class_index} of {num_classes}")
        table[segment.id] = number
    return table


def _overlap(
    prediction: NDArray[np.integer],
    predicted_row: NDArray[np.int64],
    truth: NDArray[np.integer],
    true_row: NDArray[np.int64],
    shape: tuple[int, int],
) -> NDArray[np.int64]:
    """Pixels that every predicted segment shares with every true one."""
    cells = np.zeros(shape[0] * shape[1], np.int64)
    for start in range(0, truth.size, _BLOCK):
        rows = _listed(prediction[start : start + _BLOCK], predicted_row, "prediction")
        columns = _listed(truth[start : start + _BLOCK], true_row, "truth")
        cells += np.bincount(rows * shape[1] + columns, minlength=len(cells))
    return cells.reshape(shape)


def _listed(ids: NDArray[np.integer], row_of_id: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = row_of_id[ids]
    if rows.size and rows.min() < 0:
        raise ValueError(f"the map of the {name} holds segment {ids[rows < 0][0]}, which is not in its list")
    return rows


def _finder(
    column: int,
    class_index: int,
    predicted: Sequence[PanopticSegment],
    overlap: NDArray[np.int64],
    predicted_area: NDArray[np.int64],
    true_area: NDArray[np.int64],
) -> int | None:
    """The row of the prediction that found this segment of the truth."""
    for row in (np.flatnonzero(overlap[1:, column]) + 1).tolist():
        same_class = predicted[row - 1].class_index == class_index
        if same_class and _iou(row, column, overlap, predicted_area, true_area) > 0.5:
            return int(row)
    return None


def _iou(
    row: int,
    column: int,
    overlap: NDArray[np.int64],
    predicted_area: NDArray[np.int64],
    true_area: NDArray[np.int64],
) -> float:
    union = true_area[column] + predicted_area[row] - overlap[row, column] - overlap[row, 0]
    return float(overlap[row, column] / union)


def _quality_of_class(counts: NDArray[np.int64]) -> Quality:
    found = int(counts[_FOUND])
    weight = found + 0.5 * int(counts[_FALSE_POSITIVES]) + 0.5 * int(counts[_FALSE_NEGATIVES])
    if weight == 0:
        return Quality(0.0, 0.0, 0.0, classes=0)
    (iou_sum,) = iou_sums(counts[:, None])
    return Quality(pq=iou_sum / weight, sq=iou_sum / found if found else 0.0, rq=found / weight, classes=1)


def _mean_quality(per_class: Sequence[Quality], chosen: NDArray[np.bool_]) -> Quality:
    group = [quality for quality, counts in zip(per_class, chosen, strict=True) if counts]
    if not group:
        return Quality(math.nan, math.nan, math.nan, classes=0)
    return Quality(
        pq=sum(quality.pq for quality in group) / len(group),
        sq=sum(quality.sq for quality in group) / len(group),
        rq=sum(quality.rq for quality in group) / len(group),
        classes=len(group),
    )

"""Average precision of scored masks, by COCO's own program (pycocotools).

The matching is done picture by picture, so that only its outcome is kept: for every detection its score and, per IoU
threshold and range of areas, whether it found something. A ranking needs all scores of the data set: some 100 bytes for
each detection, at most a hundred detections per picture.

Ground truth of a crowd region is ignored. Two kinds: "segm" compares masks and takes the mask's area for the ranges
small, medium, large; "bbox" compares tight boxes in whole pixels and takes the box's area for detections.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IouType = Literal["segm", "bbox"]

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers in its order."""

MOST_DETECTIONS = 100
"""Per picture and class; the models give at most so many per picture."""

_OUTCOME = ("dtScores", "dtMatches", "dtIgnore", "gtIgnore")


@dataclass(frozen=True)
class TrueInstance:
    """A thing in the truth."""

    class_index: int
    rle: Mapping[str, Any]
    """COCO's compressed run lengths: {"size": [H, W], "counts": text}."""
    area: float
    """As annotated: for "segm" and "bbox" alike."""
    box_xywh: tuple[float, float, float, float] | None = None
    """As annotated; the tight box of the mask without it. Only "bbox" reads it."""
    is_crowd: bool = False


@dataclass(frozen=True)
class ScoredInstance:
    """A detection."""

    class_index: int
    score: float
    rle: Mapping[str, Any]


@dataclass(frozen=True)
class AveragePrecision:
    """The result over a data set, in 0..1; NaN where the truth has no such object."""

    numbers: Mapping[str, float]
    """By the names of `NUMBERS`; by the rules of Cityscapes AP and AP50 alone."""
    per_class: tuple[float, ...]
    """AP of the K classes."""


Outcome = dict[tuple[int, int], dict[str, NDArray[Any]]]
"""(class, range of areas) -> how one picture's detections fared; what is not there has neither truth nor detection."""


def match_instances(
    detections: Sequence[ScoredInstance], truth: Sequence[TrueInstance], num_classes: int, iou_type: IouType = "segm"
) -> Outcome:
    """Which detections of one picture find what, at every IoU threshold and range of areas."""
    for name, instances in (("detection", detections), ("true instance", truth)):
        wrong = [entry.class_index for entry in instances if not 0 <= entry.class_index < num_classes]
        if wrong:
            raise ValueError(f"a {name} is of class {wrong[0]}, which is none of the {num_classes} classes")
    picture = {"id": 1}
    if detections or truth:
        height, width = (detections or truth)[0].rle["size"]
        picture |= {"height": height, "width": width}
    with contextlib.redirect_stdout(io.StringIO()):  # the program reports its progress
        true = _coco(picture, num_classes, [_true_annotation(entry) for entry in truth])
        found = _coco(picture, num_classes, [_detection_annotation(entry, iou_type) for entry in detections])
        evaluation = COCOeval(true, found, iou_type)
        evaluation.evaluate()
    ranges = len(evaluation.params.areaRng)
    outcome: Outcome = {}
    for number, matched in enumerate(evaluation.evalImgs):  # class by class, range by range, of the one picture
        if matched is not None:
            kept = {key: np.asarray(matched[key]) for key in _OUTCOME}
            kept["dtMatches"] = kept["dtMatches"] > 0
            kept["gtIgnore"] = kept["gtIgnore"].astype(bool)
            outcome[divmod(number, ranges)] = kept
    return outcome


def average_precision(outcomes: Sequence[Outcome], num_classes: int, iou_type: IouType = "segm") -> AveragePrecision:
    """The result over pictures. Detections of equal scores rank in the order of the pictures."""
    evaluation = COCOeval(iouType=iou_type)
    parameters = evaluation.params
    parameters.catIds, parameters.imgIds = list(range(1, num_classes + 1)), list(range(len(outcomes)))
    ranges = range(len(parameters.areaRng))
    evaluation.evalImgs = [
        outcome.get((index, area)) for index in range(num_classes) for area in ranges for outcome in outcomes
    ]
    evaluation._paramsEval = copy.deepcopy(parameters)
    if not any(outcomes):
        return AveragePrecision(dict.fromkeys(NUMBERS, math.nan), (math.nan,) * num_classes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # thresholds, recalls, classes; all areas, 100 detections
    return AveragePrecision(
        numbers={name: _number(value) for name, value in zip(NUMBERS, evaluation.stats, strict=True)},
        per_class=tuple(_number(_mean_of_valid(precision[..., index])) for index in range(num_classes)),
    )


class InstanceMatches:
    """The outcomes of a data set, picture by picture.

    Pictures have a place in the data set: by it they are ranked where scores are equal, whoever counted them.
    """

    def __init__(self, num_classes: int, iou_type: IouType = "segm") -> None:
        self.num_classes = num_classes
        self.iou_type: IouType = iou_type
        self.outcomes: dict[int, Outcome] = {}

    def update(self, place: int, detections: Sequence[ScoredInstance], truth: Sequence[TrueInstance]) -> None:
        """Counts one picture."""
        self.outcomes[place] = match_instances(detections, truth, self.num_classes, self.iou_type)

    def merge(self, other: InstanceMatches) -> None:
        """Adds what another worker has counted."""
        if (self.num_classes, self.iou_type) != (other.num_classes, other.iou_type):
            raise ValueError("the two were counted with other classes or another kind of IoU")
        if self.outcomes.keys() & other.outcomes.keys():
            raise ValueError("the two have counted some of the same pictures")
        self.outcomes |= other.outcomes

    def result(self) -> AveragePrecision:
        """The result so far."""
        in_order = [self.outcomes[place] for place in sorted(self.outcomes)]
        return average_precision(in_order, self.num_classes, self.iou_type)


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask [H, W]."""
    encoded = rle_tools.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def _coco(picture: Mapping[str, Any], num_classes: int, annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [picture],
        "categories": [{"id": index + 1} for index in range(num_classes)],
        "annotations": [{"id": number, "image_id": 1, **entry} for number, entry in enumerate(annotations, start=1)],
    }
    coco.createIndex()
    return coco


def _true_annotation(entry: TrueInstance) -> dict[str, Any]:
    return {
        "category_id": entry.class_index + 1,
        "segmentation": dict(entry.rle),
        "area": entry.area,
        "bbox": list(_tight_box(entry.rle) if entry.box_xywh is None else entry.box_xywh),
        "iscrowd": int(entry.is_crowd),
    }


def _detection_annotation(entry: ScoredInstance, iou_type: IouType) -> dict[str, Any]:
    box = _tight_box(entry.rle)
    area = float(rle_tools.area(dict(entry.rle))) if iou_type == "segm" else box[2] * box[3]
    return {
        "category_id": entry.class_index + 1,
        "score": entry.score,
        "segmentation": dict(entry.rle),
        "area": area,
        "bbox": list(box),
        "iscrowd": 0,
    }


def _tight_box(rle: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in rle_tools.toBbox(dict(rle)))


def _mean_of_valid(precision: NDArray[np.float64]) -> float:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else -1.0


def _number(value: float) -> float:
    """COCO's program says -1 where there is nothing to measure."""
    return math.nan if value == -1 else float(value)

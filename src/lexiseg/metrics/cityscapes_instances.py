"""Average precision of scored masks by the rules of Cityscapes.

Cordts et al., "The Cityscapes Dataset" (CVPR 2016), section 4.2, as its evaluation program has it. Other than COCO's:
an object of the truth below 100 pixels, or in a group that nobody took apart, need not be found; a detection that found
nothing is passed over if more of it than the threshold lies on void and on such objects of its class; of several
detections of one object the best one counts and the others are wrong; and precision is summed over the recalls that
occur, not over 101 points.

The matching is done picture by picture, and its outcome is kept. K classes, M detections of a class, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lexiseg.metrics.instances import AveragePrecision
from lexiseg.metrics.panoptic import VOID, PanopticSegment

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
"""Of the IoU, which has to be above."""
SMALLEST = 100
"""Pixels of an object that has to be found."""


@dataclass(frozen=True, eq=False)
class ClassOutcome:
    """How one picture's detections of a class fared."""

    scores: NDArray[np.float64]
    """[M]"""
    found: NDArray[np.bool_]
    """[T, M]: it found an object."""
    wrong: NDArray[np.bool_]
    """[T, M]: it found none. Neither: it is passed over."""
    missed: tuple[int, ...]
    """[T]: objects that nothing found."""
    objects: int
    """That have to be found."""


CityscapesOutcome = Mapping[int, ClassOutcome]
"""Class -> its outcome; what is not there has neither objects nor detections."""


def match_cityscapes(
    detections: Sequence[tuple[int, float, NDArray[np.bool_]]],
    regions: NDArray[np.integer],
    truth: Sequence[PanopticSegment],
    things: Sequence[int],
) -> CityscapesOutcome:
    """Which detections of one picture find what, at every threshold.

    detections: (class, score, mask [H, W]). regions: [H, W], the ids of `truth`, 0 where nothing is or void. things:
    the classes whose objects are told apart; detections of others do not count.
    """
    highest = max((segment.id for segment in truth), default=0)
    areas = np.bincount(regions.ravel(), minlength=highest + 1)
    outcome: dict[int, ClassOutcome] = {}
    for index in things:
        of_class = [segment for segment in truth if segment.class_index == index and areas[segment.id]]
        needed = [s.id for s in of_class if not s.is_crowd and areas[s.id] >= SMALLEST]
        # What is both a group and small is excused twice over: so counts the evaluation program.
        passed_over = [s.id for s in of_class if s.is_crowd] + [s.id for s in of_class if areas[s.id] < SMALLEST]
        own = [(score, regions[mask]) for found, score, mask in detections if found == index and mask.any()]
        if needed or own:
            covered = np.zeros((len(own), highest + 1), np.int64)
            for row, (_, ids) in zip(covered, own, strict=True):
                row[:] = np.bincount(ids, minlength=highest + 1)
            scores = np.array([score for score, _ in own], np.float64)
            outcome[index] = _of_class(scores, covered, areas, needed, passed_over)
    return outcome


def _of_class(
    scores: NDArray[np.float64],
    covered: NDArray[np.int64],
    areas: NDArray[np.int64],
    needed: Sequence[int],
    passed_over: Sequence[int],
) -> ClassOutcome:
    """covered: [M, ids], the pixels of every region of the truth under each detection."""
    size = covered.sum(1)
    iou = covered / (size[:, None] + areas - covered)
    excused = covered[:, [VOID, *passed_over]].sum(1) / size
    found = np.zeros((len(THRESHOLDS), len(scores)), bool)
    wrong = np.zeros_like(found)
    missed = []
    for row, threshold in enumerate(THRESHOLDS):
        hits = iou[:, list(needed)] > threshold  # at most one per detection: regions do not overlap
        for column in hits.T:
            candidates = np.flatnonzero(column)
            if len(candidates):
                found[row, candidates[scores[candidates].argmax()]] = True
        elsewhere = (iou[:, list(passed_over)] > threshold).any(1) | (excused > threshold)
        wrong[row] = ~found[row] & (hits.any(1) | ~elsewhere)
        missed.append(int((~hits.any(0)).sum()))
    return ClassOutcome(scores, found, wrong, tuple(missed), len(needed))


def cityscapes_average_precision(outcomes: Sequence[CityscapesOutcome], num_classes: int) -> AveragePrecision:
    """The result over pictures: "AP" over all thresholds and "AP50"; NaN for classes without an object."""
    table = np.full((num_classes, len(THRESHOLDS)), np.nan)
    for index in range(num_classes):
        own = [outcome[index] for outcome in outcomes if index in outcome]
        if sum(one.objects for one in own):
            scores = np.concatenate([one.scores for one in own])
            found = np.concatenate([one.found for one in own], axis=1)
            wrong = np.concatenate([one.wrong for one in own], axis=1)
            missed = np.sum([one.missed for one in own], axis=0)
            for row in range(len(THRESHOLDS)):
                counts = found[row] | wrong[row]
                table[index, row] = _area(scores[counts], found[row][counts], int(missed[row]))
    occur = ~np.isnan(table[:, 0])
    if not occur.any():
        return AveragePrecision({"AP": math.nan, "AP50": math.nan}, (math.nan,) * num_classes)
    return AveragePrecision(
        numbers={"AP": float(table[occur].mean()), "AP50": float(table[occur, 0].mean())},
        per_class=tuple(float(value) for value in table.mean(1)),
    )


def _area(scores: NDArray[np.float64], right: NDArray[np.bool_], missed: int) -> float:
    """Under precision over recall, where one point stands for all detections from one score on.

    A point's weight is half the way from the recall before it to the one after it; the last point is precision 1 at
    recall 0.
    """
    if not len(scores):
        return 0.0
    order = np.argsort(scores, kind="stable")
    first = np.unique(scores[order], return_index=True)[1]  # rising scores: the weakest detection of each
    remaining = np.cumsum(right[order][::-1])[::-1][first].astype(np.float64)  # right ones from there on
    kept = len(scores) - first
    precision = np.append(remaining / kept, 1.0)
    recall = np.append(remaining / max(int(right.sum()) + missed, 1), 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ (around[:-2] - around[2:]) / 2)

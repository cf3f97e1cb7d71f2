"""Boundary IoU: the IoU of the rims of the regions, so that large regions do not hide how they are outlined.

Cheng et al., "Boundary IoU" (CVPR 2021). The rim of a region are its pixels within a distance d of its outside, which
begins beyond the edge of the picture too; d is 2 % of the picture's diagonal.

Two rules, because one program in wide use (the semantic evaluator of detectron2, since July 2022) does something else:

- `rim`: the definition, for all classes at once: the pixels of a label map whose surroundings show another label.
- `eroded_labels`: detectron2's. Not the masks are eroded but the numbers of the classes (a minimum filter), and what
  is counted is the difference between a number and its eroded self, as if that were a class. Its numbers are printed
  beside IoUs in current logs; they depend on the order of the classes.

K classes. Scores are fractions in 0..1.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from lexiseg.metrics.semantic import class_iou, confusion_matrix

BoundaryRule = Literal["rim", "eroded_labels"]
BOUNDARY_RULES: tuple[BoundaryRule, ...] = get_args(BoundaryRule)

SHARE_OF_DIAGONAL = 0.02
_IGNORED = -1
MOST_CLASSES_TO_ERODE = 254
"""detectron2 erodes 8-bit maps; with more classes it reports no Boundary IoU."""


def rim_width(height: int, width: int) -> int:
    """d in pixels, at least 1."""
    return max(1, round(SHARE_OF_DIAGONAL * math.sqrt(height**2 + width**2)))


def boundary_confusion(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int, rule: BoundaryRule) -> Tensor:
    """Counts [K + 2, K + 1] int64 of one picture: rows the predicted rim, columns the true one.

    `rim`: row and column K are the inside of the regions. `eroded_labels`: they are the ignored pixels. The last row is
    what it always is, pixels without a class.
    `prediction` and `truth` are label maps [H, W] of classes.
    """
    if prediction.shape != truth.shape or truth.ndim != 2:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} must be [H, W], alike")
    if rule == "eroded_labels" and num_classes > MOST_CLASSES_TO_ERODE:
        raise ValueError(f"the rule eroded_labels knows at most {MOST_CLASSES_TO_ERODE} classes, not {num_classes}")
    distance = rim_width(*truth.shape)
    predicted, true = (labels.cpu().numpy().astype(np.int32) for labels in (prediction, truth))
    ignored = true == ignore
    if rule == "rim":
        rims = [np.where(_near_another(labels, distance), labels, num_classes) for labels in (predicted, true)]
        rims[1] = np.where(ignored, _IGNORED, rims[1])
    else:
        rims = [_lost_by_erosion(labels, distance) for labels in (predicted, np.where(ignored, num_classes, true))]
    return confusion_matrix(torch.from_numpy(rims[0]), torch.from_numpy(rims[1]), num_classes + 1, ignore=_IGNORED)


def boundary_iou(confusion: Tensor, rule: BoundaryRule) -> Tensor:
    """[K] float64 from summed counts [K + 2, K + 1].

    `rim`: NaN for classes that do not occur in the truth. `eroded_labels`: 0 for them, as it is printed.
    """
    if rule == "rim":
        return class_iou(confusion)[:-1]
    without_ignored = torch.cat([confusion[:-2, :-1], confusion[-1:, :-1]])
    return class_iou(without_ignored).nan_to_num(0.0)


class BoundaryConfusion:
    """The counts of a data set, picture by picture."""

    def __init__(self, num_classes: int, ignore: int = 255, rule: BoundaryRule = "rim") -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self.rule: BoundaryRule = rule
        self.counts = torch.zeros(num_classes + 2, num_classes + 1, dtype=torch.int64)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Counts one picture: label maps [H, W]."""
        self.counts += boundary_confusion(prediction, truth, self.num_classes, self.ignore, self.rule)

    def merge(self, other: BoundaryConfusion) -> None:
        """Adds what another worker has counted."""
        if (self.num_classes, self.ignore, self.rule) != (other.num_classes, other.ignore, other.rule):
            raise ValueError("the two matrices were counted with other classes, another ignored label or another rule")
        self.counts += other.counts

    def iou(self) -> Tensor:
        """[K]; see `boundary_iou`."""
        return boundary_iou(self.counts, self.rule)


def _near_another(labels: NDArray[np.int32], distance: int) -> NDArray[np.bool_]:
    """Pixels with another label, or the outside of the picture, in the square of this half width around them."""
    size = 2 * distance + 1
    outside = -2  # no label of any map
    lowest = ndimage.minimum_filter(labels, size, mode="constant", cval=outside)
    highest = ndimage.maximum_filter(labels, size, mode="constant", cval=outside)
    different: NDArray[np.bool_] = lowest != highest
    return different


def _lost_by_erosion(labels: NDArray[np.int32], distance: int) -> NDArray[np.int32]:
    """Each number less the smallest one around it, zeros around the picture."""
    eroded = ndimage.minimum_filter(labels, 2 * distance + 1, mode="constant", cval=0)
    lost: NDArray[np.int32] = labels - eroded
    return lost

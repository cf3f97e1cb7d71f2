"""Mask accuracy: how often a region is called by its right name when its true mask is given.

MaskCLIP++, section 4.2. No mask is matched with another: mask n of the truth was classified as class n of the
prediction. What is counted is a confusion matrix of masks, one count each, whatever their sizes; the accuracy of a
class is the share of its masks that were called by it, and the mean goes over the classes that occur.

K classes, N masks. Scores are fractions in 0..1, NaN where there is nothing to divide by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lexiseg.metrics.semantic import SemanticConfusion, class_accuracy, mean_accuracy

NO_MASK_IS_IGNORED = -1


@dataclass(frozen=True)
class MaskAccuracy:
    """The result over a data set."""

    mean: float
    """mMaskAcc: over the classes that occur."""
    seen: float
    unseen: float
    """Over the seen and the unseen ones of them; NaN where it is not known which are seen."""
    overall: float
    """Share of all masks, whatever their class."""
    per_class: tuple[float, ...]


def class_masks(labels: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """labels [H, W] -> masks [N, H, W] bool and classes [N] int64: one mask per class that occurs, ascending."""
    values = labels.long()
    classes = values[values != ignore].unique()
    return values == classes[:, None, None], classes


def mask_confusion(num_classes: int) -> SemanticConfusion:
    """The accumulator: `update(predicted [N], true [N])` with the classes of the masks of one picture."""
    return SemanticConfusion(num_classes, ignore=NO_MASK_IS_IGNORED)


def mask_accuracy(confusion: Tensor, seen: Tensor | None = None) -> MaskAccuracy:
    """The result of summed counts [K + 1, K], rows the predicted class; `seen` [K] bool."""
    masks = confusion.sum()
    return MaskAccuracy(
        mean=mean_accuracy(confusion),
        seen=math.nan if seen is None else mean_accuracy(confusion, seen),
        unseen=math.nan if seen is None else mean_accuracy(confusion, ~seen),
        overall=float(confusion.diagonal().sum() / masks) if masks else math.nan,
        per_class=tuple(class_accuracy(confusion).tolist()),
    )

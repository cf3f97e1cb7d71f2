"""Semantic metrics from one confusion matrix over a whole data set.

Two rules for the mean IoU are in published tables, so every mean says which one it follows:

- `gt`: the mean over the classes that occur in the ground truth (detectron2 since July 2022).
- `gt_or_pred`: the same sum, divided by the number of classes that occur in the ground truth or in a
  prediction (detectron2 0.6 and older): a class that is predicted but never labelled counts as zero.

They differ only where classes are missing from the ground truth; on PC-459 that is up to three points.

K classes. A confusion matrix has K + 1 rows: the last one holds the pixels to which a prediction gave no class, which
are wrong for their true class and count for no other. Shares and scores are fractions in 0..1; NaN where there is
nothing to divide by.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

MeanRule = Literal["gt", "gt_or_pred"]
MEAN_RULES: tuple[MeanRule, ...] = get_args(MeanRule)

NO_CLASS = -1
"""In a prediction: the label of a pixel without a class."""

_BLOCK = 2**19
"""Pixels counted at once: they stay in the processor's cache, which is forty times faster on a large photo."""


def confusion_matrix(prediction: Tensor, truth: Tensor, num_classes: int, ignore: int = 255) -> Tensor:
    """Counts [K + 1, K] int64: rows the predicted class, the last one for `NO_CLASS`; columns the true one.

    `prediction` and `truth` are label maps of one shape and any integer type. Pixels whose truth is
    `ignore` count nowhere, neither as truth nor as prediction.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in size")
    flat_prediction, flat_truth = prediction.flatten(), truth.flatten()
    size = (num_classes + 1) * num_classes
    cells = torch.zeros(size, dtype=torch.int64, device=truth.device)
    for start in range(0, flat_truth.numel(), _BLOCK):
        true = flat_truth[start : start + _BLOCK].long()
        predicted = flat_prediction[start : start + _BLOCK].long()
        counted = true != ignore
        if not counted.all():
            true, predicted = true[counted], predicted[counted]
        if _check_labels(predicted, NO_CLASS, num_classes, "prediction") == NO_CLASS:
            predicted = torch.where(predicted == NO_CLASS, num_classes, predicted)
        _check_labels(true, 0, num_classes, "truth")
        cells += torch.bincount(predicted * num_classes + true, minlength=size)
    return cells.reshape(num_classes + 1, num_classes)


def class_counts(confusion: Tensor) -> Tensor:
    """[3, K] int64: correct, true and predicted pixels of every class."""
    return torch.stack([confusion.diagonal(), confusion.sum(0), confusion[:-1].sum(1)])


def class_iou(confusion: Tensor) -> Tensor:
    """[K] float64: intersection over union of every class that occurs in the truth, NaN for the others."""
    correct, true, predicted = _counts(confusion)
    return torch.where(true > 0, correct / (true + predicted - correct), math.nan)


def class_accuracy(confusion: Tensor) -> Tensor:
    """[K] float64: the share of a class's true pixels that were found, NaN where there are none."""
    correct, true, _ = _counts(confusion)
    return torch.where(true > 0, correct / true, math.nan)


def mean_iou(confusion: Tensor, rule: MeanRule, classes: Tensor | None = None) -> float:
    """The mean IoU by one of the two rules, over all classes or those of the mask `classes` [K] bool."""
    _, true, predicted = _counts(confusion)
    averaged = {"gt": true > 0, "gt_or_pred": true + predicted > 0}[rule]
    if classes is not None:
        averaged = averaged & classes.to(averaged.device)
    iou = class_iou(confusion)[averaged].nan_to_num(0.0)  # NaN is left only where the class was merely predicted
    return _ratio(iou.sum(), averaged.sum())


def mean_accuracy(confusion: Tensor, classes: Tensor | None = None) -> float:
    """mACC: the mean of the class accuracies over the classes that occur in the truth, or those of `classes` [K] bool.

    Of a confusion matrix of masks instead of pixels this is the mask accuracy (mMaskAcc; MaskCLIP++, section 4.2).
    """
    accuracy = class_accuracy(confusion)
    return float((accuracy if classes is None else accuracy[classes.to(accuracy.device)]).nanmean())


def pixel_accuracy(confusion: Tensor, classes: Tensor | None = None) -> float:
    """pACC: the share of correct pixels; with `classes` [K] bool, among pixels that truly are one of them."""
    correct, true, _ = _counts(confusion)
    if classes is not None:
        correct, true = correct[classes.to(correct.device)], true[classes.to(true.device)]
    return _ratio(correct.sum(), true.sum())


def frequency_weighted_iou(confusion: Tensor) -> float:
    """fwIoU: the class IoUs weighted by the classes' share of the true pixels."""
    _, true, _ = _counts(confusion)
    return _ratio((class_iou(confusion).nan_to_num(0.0) * true).sum(), true.sum())


def resampled_mean_iou(pictures: Tensor, rule: MeanRule, times: Tensor) -> Tensor:
    """[R] float64: the mean IoU of every resampled data set (see `lexiseg.metrics.bootstrap`).

    `pictures` [N, 3, K] holds `class_counts` of each picture, `times` [R, N] how often each was drawn.
    """
    correct, true, predicted = (times @ pictures.double().flatten(1)).unflatten(1, (3, -1)).unbind(1)  # [R, K] each
    iou = torch.where(true > 0, correct / (true + predicted - correct), 0.0)
    averaged = {"gt": true > 0, "gt_or_pred": true + predicted > 0}[rule]
    return iou.sum(1) / averaged.sum(1)


def resampled_mean_accuracy(pictures: Tensor, times: Tensor) -> Tensor:
    """[R] float64: the mean class accuracy of every resampled data set, likewise."""
    correct, true, _ = (times @ pictures.double().flatten(1)).unflatten(1, (3, -1)).unbind(1)  # [R, K] each
    return torch.where(true > 0, correct / true, math.nan).nanmean(1)


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b): hIoU, when given the mean IoU of the seen and of the unseen classes."""
    total = first + second
    return 2 * first * second / total if total else 0.0


class SemanticConfusion:
    """The confusion matrix of a data set, picture by picture."""

    def __init__(self, num_classes: int, ignore: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore = ignore
        self.counts = torch.zeros(num_classes + 1, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Counts one picture, or a batch: label maps of one shape."""
        self.counts += confusion_matrix(prediction, truth, self.num_classes, self.ignore).to(self.counts.device)

    def merge(self, other: SemanticConfusion) -> None:
        """Adds what another worker has counted."""
        if (self.num_classes, self.ignore) != (other.num_classes, other.ignore):
            raise ValueError("the two matrices were counted with other classes or another ignored label")
        self.counts += other.counts


def _counts(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    correct, true, predicted = class_counts(confusion).double()
    return correct, true, predicted


def _check_labels(labels: Tensor, lowest: int, num_classes: int, name: str) -> int:
    """The smallest label; one that is below `lowest` or no class is an error."""
    if labels.numel() == 0:
        return lowest
    low, high = torch.aminmax(labels)
    if low < lowest or high >= num_classes:
        outside = labels[(labels < lowest) | (labels >= num_classes)][0].item()
        raise ValueError(f"the {name} holds label {outside}, which is none of the {num_classes} classes")
    return int(low)


def _ratio(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole else math.nan

"""The loss of classifying given masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def mask_classification_loss(
    logits: Tensor, labels: Tensor, image_of: Tensor, *, balanced: bool = True, temperature: float = 1.0
) -> Tensor:
    """logits [N, K] of the masks of a batch, labels [N], image_of [N] their pictures -> a number; zero without masks.

    MaskCLIP++ (arXiv 2412.11464): cross-entropy in which pictures count the same, within a picture its classes, within
    a class its masks; without `balanced`, within a picture its masks. Pictures without masks count in nothing. Empty
    masks, if they are not to count, are left out by the caller.
    """
    if len(logits) == 0:
        return logits.sum()
    losses = functional.cross_entropy(logits / temperature, labels, reduction="none")
    images, image = image_of.unique(return_inverse=True)
    if not balanced:
        return (losses / torch.bincount(image)[image]).sum() / len(images)
    pairs, pair = torch.stack((image, labels), dim=1).unique(dim=0, return_inverse=True)
    classes = torch.bincount(pairs[:, 0])[image]  # of the mask's picture
    masks = torch.bincount(pair)[pair]  # of its class in its picture
    return (losses / (classes * masks)).sum() / len(images)

"""Mean of a map inside masks, hard or soft."""

from __future__ import annotations

import torch
from torch import Tensor

from lexiseg.geometry import resize
from lexiseg.types import Size


def inside_masks(mask_logits: Tensor, size_hw: Size) -> Tensor:
    """mask_logits [B, Q, h', w'] -> bool [B, Q, *size_hw]: where the resized logit is above zero."""
    return resize(mask_logits.detach(), size_hw) > 0


def mean_inside(features: Tensor, inside: Tensor) -> Tensor:
    """features [B, C, h, w], inside bool [B, Q, h, w] -> [B, Q, C], zero where a mask is empty."""
    weights = inside.flatten(2).to(features.dtype)  # [B, Q, hw]
    total = torch.bmm(weights, features.flatten(2).transpose(1, 2))  # [B, Q, C]
    return total / (weights.sum(dim=-1, keepdim=True) + 1e-8)  # the released models were scored with 1e-8


LEAST_SEEN = 1e-3
"""What a cell must have of a soft mask for the mask to be there at all: masks that are hard logits are nowhere 0."""


def is_seen(masks: Tensor) -> Tensor:
    """masks [B, Q, h, w] in 0..1 -> bool [B, Q]: false where a mask is in none of the cells."""
    return masks.flatten(2).amax(dim=-1) > LEAST_SEEN


def soft_mean(features: Tensor, weights: Tensor) -> Tensor:
    """features [B, C, h, w], weights [B, Q, h, w] in 0..1 -> [B, Q, C], zero where a mask is empty.

    MaskCLIP++: the mean under a soft mask, which divides by area + 1e-6.
    """
    flat = weights.flatten(2).to(features)
    return (flat @ features.flatten(2).transpose(1, 2)) / (flat.sum(dim=-1, keepdim=True) + 1e-6)


def mask_pool(features: Tensor, mask_logits: Tensor) -> Tensor:
    """features [B, C, h, w], mask_logits [B, Q, h', w'] on the same canvas -> [B, Q, C].

    FC-CLIP, section 3.2. Masks are hard, so gradients reach the features and never the masks. An
    empty mask gives zeros; `inside_masks` tells which ones are empty.
    """
    return mean_inside(features, inside_masks(mask_logits, (features.shape[-2], features.shape[-1])))

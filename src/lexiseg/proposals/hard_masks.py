"""Hard masks among soft ones: the logits that stand for inside and outside, and rows that stand for nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

INSIDE_LOGIT = 10.0
"""Logit of a pixel that is certainly inside a mask; the negative of it is outside. It saturates the sigmoid and still
leaves room to interpolate."""


def hard_logits(masks: Tensor) -> Tensor:
    """masks bool [..., h, w] -> float32 of the same shape, `INSIDE_LOGIT` inside and its negative outside."""
    return torch.where(masks, INSIDE_LOGIT, -INSIDE_LOGIT)


def stack_rows(pictures: Sequence[Tensor]) -> Tensor:
    """Per picture [Q, h, w] with its own Q -> [B, Q, h, w] with the largest Q, and at least one row.

    The rows added are empty masks: a proposal that covers nothing, which every stage after it leaves out.
    """
    rows = max(1, *(len(masks) for masks in pictures))
    first = pictures[0]
    out = first.new_full((len(pictures), rows, *first.shape[1:]), -INSIDE_LOGIT)
    for row, masks in zip(out, pictures, strict=True):
        row[: len(masks)] = masks
    return out

"""Losses that tune a CLIP for regions without letting it go: MAFT (NeurIPS 2023, arXiv 2310.00240) and MAFT+ (ECCV
2024, arXiv 2408.00744).

The mask-aware loss of both asks CLIP to score each proposal as well as its mask is. The tuned CLIP is kept near the
original one: in MAFT by what both say about the whole picture, in MAFT+ by the maps of their trunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.geometry import resize
from lexiseg.train.matcher import SegmentTargets

POOL_SCALES = (1, 2, 4)


@torch.no_grad()
def soft_ious(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """mask_logits [Q, h, w], targets bool [N, H, W] -> [N, Q]: overlap of each target with each mask, in 0..1.

    The mask probabilities are resized, not the logits. Every one is resized once, and one matrix product gives the
    overlaps with all targets.
    """
    probs = resize(mask_logits.float().sigmoid()[None], (targets.shape[-2], targets.shape[-1]))[0].flatten(1)  # [Q, P]
    inside = targets.flatten(1).to(probs)  # [N, P]
    overlap = inside @ probs.T
    return overlap / (inside.sum(dim=1)[:, None] + probs.sum(dim=1) - overlap + 1e-7)


def stretched(ious: Tensor) -> Tensor:
    """ious [N, Q] -> each row stretched to 0..1. The best proposal of a target gets 1 even where all are bad."""
    least, most = ious.aminmax(dim=1, keepdim=True)
    return (ious - least) / (most - least + 1e-8)


def mask_aware_loss(region_logits: Tensor, mask_logits: Tensor, targets: Sequence[SegmentTargets]) -> Tensor:
    """region_logits [B, Q, K], mask_logits [B, Q, h, w] and the segments of each picture -> a scalar.

    The probability CLIP gives a proposal for the class of a segment should be the proposal's overlap with it, stretched
    over all proposals. Smooth L1, the mean over all pairs of a segment and a proposal of the batch; zero without
    segments. No gradient reaches the masks.
    """
    wrong, pairs = region_logits.sum() * 0.0, 0
    for logits, masks, target in zip(region_logits, mask_logits, targets, strict=True):
        if len(target.labels) == 0:
            continue
        given = logits.float().softmax(dim=-1)[:, target.labels].T  # [N, Q]
        asked = stretched(soft_ious(masks, target.masks))
        wrong = wrong + functional.smooth_l1_loss(given, asked, reduction="sum")
        pairs += given.numel()
    return wrong / max(1, pairs)


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Logits [B, K] of whole pictures by the tuned and by the original CLIP -> a scalar: how far their probabilities
    differ, as smooth L1, mean over all entries."""
    return functional.smooth_l1_loss(student.float().softmax(dim=-1), teacher.detach().float().softmax(dim=-1))


def compensation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Dense maps [B, C, h, w] of the tuned and of the original trunk -> a scalar: how far their summaries differ."""
    return functional.smooth_l1_loss(summary(student), summary(teacher.detach()))


def summary(dense: Tensor) -> Tensor:
    """dense [B, C, h, w] -> [B, n]: the sums over rows and over columns of the rectified map, pooled at three scales.

    The map is made square first, but the size of the pools follows from the width it had before: tall maps have more
    of them than wide ones. The released models were trained so. Maps need at least four columns.
    """
    height, width = dense.shape[-2:]
    if width < max(POOL_SCALES):
        raise ValueError(f"a map of {width} columns cannot be pooled into {max(POOL_SCALES)}; use larger pictures")
    side = max(height, width)
    square = resize(dense.float().relu(), (side, side))
    parts = []
    for scale in POOL_SCALES:
        pooled = functional.avg_pool2d(square, width // scale)
        parts += [pooled.sum(dim=-2).flatten(1), pooled.sum(dim=-1).flatten(1)]
    return torch.cat(parts, dim=1)

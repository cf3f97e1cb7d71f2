"""From the masks of a grid of points to a set of good and different ones.

Segment Anything (arXiv 2304.02643), section 5 and appendix B: a mask is kept if the model itself thinks well of it, if
it hardly changes with the threshold it is cut at, and if no better mask has nearly the same box.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

BLOCK_FLOATS = 16_000_000
"""Floats held at once while masks are compared with each other."""


def point_grid(per_side: int) -> Tensor:
    """[per_side ** 2, 2], (x, y) in 0..1: the centres of equal cells, row by row."""
    centres = (torch.arange(per_side) + 0.5) / per_side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1)


def stability_scores(mask_logits: Tensor, offset: float) -> Tensor:
    """mask_logits [N, h, w] -> [N] in 0..1: IoU of the masks cut at `offset` and at minus `offset`.

    A mask that is empty at either threshold has 0.
    """
    small = (mask_logits > offset).flatten(1).sum(1)
    large = (mask_logits > -offset).flatten(1).sum(1)
    return small / large.clamp_min(1)


def distinct(masks: Tensor, quality: Tensor, box_overlap: float, mask_overlap: float) -> Tensor:
    """masks bool [N, h, w], none empty; quality [N] -> indices of the masks that stay, best first.

    A mask goes if a better one that stays has a box of IoU above `box_overlap` with its own (non-maximum
    suppression), and of the rest, if a better one that stays has itself an IoU above `mask_overlap` with it: boxes of
    two masks of one thing differ where one of them has a speck far away.
    """
    if len(masks) == 0:
        return torch.zeros(0, dtype=torch.long, device=masks.device)
    boxes_xyxy = masks_to_boxes(masks)
    boxes_xyxy[:, 2:] += 1  # the far edge of the last pixel: a mask of one pixel has a box with an area
    best_first = nms(boxes_xyxy, quality, box_overlap)
    overlaps = (mask_ious(masks[best_first]) > mask_overlap).cpu()  # [N, N]
    stays: list[int] = []
    for index in range(len(best_first)):
        if not overlaps[index, stays].any():
            stays.append(index)
    return best_first[stays]


def mask_ious(masks: Tensor) -> Tensor:
    """masks bool [N, h, w] -> [N, N]: intersection over union of every two; 0 where both are empty."""
    pixels = masks.flatten(1)
    shared = torch.zeros(len(masks), len(masks), device=masks.device)
    step = max(1, BLOCK_FLOATS // max(1, len(masks)))
    for start in range(0, pixels.shape[1], step):
        part = pixels[:, start : start + step].float()
        shared += part @ part.t()
    area = shared.diagonal()
    return shared / (area[:, None] + area - shared).clamp_min(1)

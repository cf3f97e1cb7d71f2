"""Masks that came with the pictures, as proposals: drawn by hand, by another program, or the ground truth itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from lexiseg.proposals.hard_masks import hard_logits
from lexiseg.types import Features, Images, Proposals, Size, TextBank


class GivenMasks(nn.Module):
    """`Images.given_masks` as they are. There are no class scores: the words do not matter here."""

    def forward(self, images: Images, features: Features | None = None, text: TextBank | None = None) -> Proposals:
        """given_masks [B, Q, H, W] -> mask_logits of the same shape, -10 or 10 (`hard_masks.INSIDE_LOGIT`)."""
        masks = images.given_masks
        if masks is None:
            raise ValueError("this model draws no masks of its own and none came with the pictures; give their masks")
        expected = (len(images.pixels), *images.canvas_hw)
        if masks.dtype != torch.bool or masks.ndim != 4 or (len(masks), *masks.shape[2:]) != expected:
            raise ValueError(
                f"given masks are {masks.dtype} {list(masks.shape)}; needed are bool [{expected[0]}, Q, {expected[1]},"
                f" {expected[2]}], on the canvas of the pictures: with_given_masks brings them there"
            )
        if masks.shape[1] == 0:
            raise ValueError("given masks have no row; a picture without masks has one that is empty")
        return Proposals(mask_logits=hard_logits(masks))


def with_given_masks(images: Images, masks: Sequence[Tensor | np.ndarray]) -> Images:
    """The pictures with masks of their own: per picture bool [Q, H, W], at the size of its file, true inside.

    Q may differ between the pictures and be zero: rows of empty masks fill up to the largest, and there is at least
    one. Row q of a picture stays its mask q. A mask that falls between the pixels of a smaller canvas keeps the one
    nearest to its middle.
    """
    if len(masks) != len(images.pixels):
        raise ValueError(f"there are {len(masks)} sets of masks for {len(images.pixels)} pictures; give one for each")
    pictures = [torch.as_tensor(array) for array in masks]
    for number, (picture, size_hw) in enumerate(zip(pictures, images.original_hw, strict=True), start=1):
        if picture.dtype != torch.bool or picture.ndim != 3 or tuple(picture.shape[1:]) != tuple(size_hw):
            raise ValueError(
                f"the masks of picture {number} are {picture.dtype} {list(picture.shape)}; needed are bool"
                f" [Q, {size_hw[0]}, {size_hw[1]}], at the size of its file"
            )
    rows = max(1, *(len(picture) for picture in pictures))
    placed = torch.zeros(len(pictures), rows, *images.canvas_hw, dtype=torch.bool, device=images.pixels.device)
    for canvas, picture, (height, width) in zip(placed, pictures, images.sizes_hw, strict=True):
        small = _nearest(picture, (height, width))
        for row in (picture.flatten(1).any(1) & ~small.flatten(1).any(1)).nonzero().flatten().tolist():
            middle = picture[row].nonzero().double().mean(0) + 0.5
            small[row, int(middle[0] * height / picture.shape[1]), int(middle[1] * width / picture.shape[2])] = True
        canvas[: len(picture), :height, :width] = small.to(canvas.device)
    return replace(images, given_masks=placed)


def _nearest(masks: Tensor, size_hw: Size) -> Tensor:
    """masks [Q, h, w] -> [Q, *size_hw]: each pixel is the one whose square its centre lies in."""
    rows, columns = (
        ((torch.arange(length, dtype=torch.float64) + 0.5) * (masks.shape[axis] / length)).long()
        for axis, length in enumerate(size_hw, start=1)
    )
    return masks[:, rows.to(masks.device)][:, :, columns.to(masks.device)]

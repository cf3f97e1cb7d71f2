"""What a tower of transformers sees of a picture, and how its masks come back onto the canvas.

The picture's part of the canvas is resized, normalised and padded to the right and below. Masks come back on the grid
at stride 4 of the canvas, which all masks of a batch share, whatever grid the tower drew them on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.proposals.hard_masks import INSIDE_LOGIT
from lexiseg.types import Size

STRIDE = 4
"""Of the grid that masks are given on, on the canvas."""


@dataclass(frozen=True)
class PixelScale:
    """Normalisation for RGB in 0..255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


IMAGENET = PixelScale((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255))
HALVES = PixelScale((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


@dataclass(frozen=True)
class View:
    """Where a picture of `picture_hw` on its canvas lies in what a tower sees of it."""

    picture_hw: Size
    shown_hw: Size
    """The size it is resized to."""
    padded_hw: Size
    """The size of the tower's input; the picture sits in the top left corner."""

    def pixels(self, picture: Tensor, scale: PixelScale, black_padding: bool = False) -> Tensor:
        """picture [3, h, w], RGB, 0..255, of `picture_hw` -> [1, 3, *padded_hw] as the tower wants it.

        Bilinear with antialiasing. The padding is zero after normalisation, or black before it with `black_padding`.
        """
        mean, std = (picture.new_tensor(values)[:, None, None] for values in (scale.mean, scale.std))
        resized = picture[None]
        if self.shown_hw != self.picture_hw:
            resized = functional.interpolate(
                resized, size=self.shown_hw, mode="bilinear", align_corners=False, antialias=True
            )
        margins = (0, self.padded_hw[1] - self.shown_hw[1], 0, self.padded_hw[0] - self.shown_hw[0])
        if black_padding:
            return (functional.pad(resized, margins) - mean) / std
        return functional.pad((resized - mean) / std, margins)

    def to_canvas(self, mask_logits: Tensor, canvas_hw: Size) -> Tensor:
        """mask_logits [Q, h, w] over the tower's input -> [Q, h', w'], stride 4 of the canvas, rounded up.

        Each cell takes the bilinear value at its centre. Cells beyond the picture are outside of every mask, except
        one line of them that repeats the picture's edge: whoever enlarges the masks interpolates towards it, and would
        otherwise lose the last pixels of the picture.
        """
        grid_hw = (-(-canvas_hw[0] // STRIDE), -(-canvas_hw[1] // STRIDE))
        out = mask_logits
        for axis in (0, 1):
            cell = canvas_hw[axis] / grid_hw[axis]
            centres = (torch.arange(grid_hw[axis], dtype=torch.float64) + 0.5) * cell
            centres = centres.clamp(max=self.picture_hw[axis]) * (self.shown_hw[axis] / self.picture_hw[axis])
            positions = centres * (mask_logits.shape[1 + axis] / self.padded_hw[axis]) - 0.5
            out = _sample(out, positions, 1 + axis)
            shown = -(-self.picture_hw[axis] * grid_hw[axis] // canvas_hw[axis])
            out.narrow(1 + axis, min(shown + 1, grid_hw[axis]), max(grid_hw[axis] - shown - 1, 0)).fill_(-INSIDE_LOGIT)
        return out


def fit_long_edge(size_hw: Size, long_edge: int) -> Size:
    """The size whose long side is `long_edge`, halves rounded up; no side vanishes."""
    scale = long_edge / max(size_hw)
    return (max(1, int(size_hw[0] * scale + 0.5)), max(1, int(size_hw[1] * scale + 0.5)))


def square_view(picture_hw: Size, side: int, stretch: bool = False) -> View:
    """The picture in a square: its long side fills it and the rest is padding, or both sides do with `stretch`."""
    shown_hw = (side, side) if stretch else fit_long_edge(picture_hw, side)
    return View(picture_hw, shown_hw, (side, side))


def _sample(x: Tensor, positions: Tensor, dim: int) -> Tensor:
    """x at fractional places along one dimension, linearly; places beyond its ends take the values there."""
    positions = positions.clamp(0, x.shape[dim] - 1)
    lower = positions.floor().long()
    upper = (lower + 1).clamp(max=x.shape[dim] - 1)
    shape = [1] * x.ndim
    shape[dim] = -1
    weight = (positions - lower).to(x).view(shape)
    lower, upper = lower.to(x.device), upper.to(x.device)
    return torch.lerp(x.index_select(dim, lower), x.index_select(dim, upper), weight)

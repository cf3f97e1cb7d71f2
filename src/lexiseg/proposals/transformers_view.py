"""What a tower of transformers sees of a picture, and how its masks come back onto the canvas.

The picture's part of the canvas is resized, normalised and padded to the right and below. Masks come back on the grid
at stride 4 of the canvas, which all masks of a batch share, whatever grid the tower drew them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.geometry import fit_short_edge, round_up
from lexiseg.layers.normalise import IMAGENET_MEAN, IMAGENET_STD, Colour, normalise
from lexiseg.proposals.hard_masks import INSIDE_LOGIT
from lexiseg.types import Images, Size

STRIDE = 4
"""Of the grid that masks are given on, on the canvas."""


@dataclass(frozen=True)
class PixelScale:
    """Normalisation for RGB in 0..255."""

    mean: Colour
    std: Colour


IMAGENET = PixelScale(IMAGENET_MEAN, IMAGENET_STD)
HALVES = PixelScale((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


@dataclass(frozen=True)
class View:
    """One picture as a tower sees it, in the top left corner of the tower's input."""

    pixels: Tensor
    """[1, 3, h, w], normalised: the tower's input."""
    shown_hw: Size
    """The size of the picture in it."""
    picture_hw: Size
    """The size of the picture on its canvas."""
    canvas_hw: Size

    def to_canvas(self, mask_logits: Tensor) -> Tensor:
        """mask_logits [Q, h', w'] over the whole input -> float32 [Q, h, w] at stride 4 of the canvas, rounded up.

        Each cell takes the bilinear value at its centre. Cells beyond the picture are outside of every mask, except
        one line of them that repeats the picture's edge: whoever enlarges the masks interpolates towards it, and would
        otherwise lose the last pixels of the picture.
        """
        out = mask_logits.float()
        for axis in (0, 1):
            canvas, picture = self.canvas_hw[axis], self.picture_hw[axis]
            length = -(-canvas // STRIDE)
            centres = (torch.arange(length, dtype=torch.float64) + 0.5) * (canvas / length)
            seen = centres.clamp(max=picture) * (self.shown_hw[axis] / picture)
            out = _sample(out, seen * (out.shape[axis - 2] / self.pixels.shape[axis - 2]) - 0.5, axis - 2)
            first_outside = -(-picture * length // canvas) + 1
            if first_outside < length:
                out.narrow(axis - 2, first_outside, length - first_outside).fill_(-INSIDE_LOGIT)
        return out


@dataclass(frozen=True)
class Look:
    """How a tower looks at pictures: bilinear with antialiasing, normalised, padded to the right and below."""

    sizes: Callable[[Size], tuple[Size, Size]]
    """From the size of a picture to the size it is resized to and the size of the tower's input."""
    scale: PixelScale
    black_padding: bool = False
    """The padding is black before normalisation, not zero after it."""

    def __call__(self, images: Images) -> Iterator[View]:
        """The pictures one at a time, without the padding of the canvas.

        Where a picture was brought to the size of the canvas before (`Images.unscaled`), the view is taken from what
        it was then.
        """
        source = images.unscaled or images
        for pixels, size_hw, picture_hw in zip(source.pixels, source.sizes_hw, images.sizes_hw, strict=True):
            shown_hw, padded_hw = self.sizes(size_hw)
            picture = pixels[None, :, : size_hw[0], : size_hw[1]]
            if shown_hw != size_hw:
                picture = functional.interpolate(
                    picture, size=shown_hw, mode="bilinear", align_corners=False, antialias=True
                )
            margins = (0, padded_hw[1] - shown_hw[1], 0, padded_hw[0] - shown_hw[0])
            kept_hw = padded_hw if self.black_padding else shown_hw
            padded = Images(functional.pad(picture, margins), (kept_hw,), (size_hw,))
            seen = normalise(padded, self.scale.mean, self.scale.std)
            yield View(seen, shown_hw, picture_hw, images.canvas_hw)


def square(picture_hw: Size, side: int, stretch: bool = False) -> tuple[Size, Size]:
    """In a square: the long side fills it and the rest is padding, halves rounded up; or both fill it, stretched."""
    scale = side / max(picture_hw)
    height, width = (max(1, int(length * scale + 0.5)) for length in picture_hw)
    return ((side, side) if stretch else (height, width)), (side, side)


def short_edge_at(picture_hw: Size, short_edge: int, long_edge: int, multiple: int) -> tuple[Size, Size]:
    """The short edge at a size, the long one at most at another, padded to multiples."""
    height, width = fit_short_edge(picture_hw, short_edge, long_edge)
    shown_hw = (max(1, height), max(1, width))  # a hair-thin picture would round to nothing
    return shown_hw, round_up(shown_hw, multiple)


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

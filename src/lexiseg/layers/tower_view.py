"""The view of a tower that looks at pictures at a size of its own, and masks brought to the cells of that view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.geometry import resize, round_up
from lexiseg.types import Images, Size

ViewRule = Literal["short", "square", "scale", "none"]


@dataclass(frozen=True)
class TowerView:
    """How big a tower sees each picture.

    MaskCLIP++ (arXiv 2412.11464), released code. Rules: "short" brings the short edge to `size` and nothing limits the
    long one; "square" makes size x size of every picture; "scale" takes `size` as a factor; "none" leaves it. Sides are
    truncated, not rounded. Pictures are resized without antialiasing, then padded to the right and below.
    """

    rule: ViewRule
    size: float
    multiple: int
    """Sides of the padded view are multiples of it."""

    def size_of(self, picture_hw: Size) -> Size:
        """The size of a picture in the view, before padding."""
        height, width = picture_hw
        if self.rule == "square":
            return (int(self.size), int(self.size))
        if self.rule == "scale":
            return (int(height * self.size), int(width * self.size))
        if self.rule == "none":
            return (height, width)
        short = int(self.size)
        # Products first: a picture that has the size already keeps it to the pixel.
        return (short, int(width * short / height)) if height < width else (int(height * short / width), short)

    def __call__(self, images: Images) -> Images:
        """The same pictures, each resized, on a canvas of their own; raw values, zero in the padding.

        Where a picture was brought to the size of the canvas before (`Images.unscaled`), the view is taken from what
        it was then.
        """
        source = images.unscaled or images
        sizes = tuple(self.size_of(size_hw) for size_hw in source.sizes_hw)
        if sizes == source.sizes_hw and source.canvas_hw == self._canvas(sizes):
            return Images(source.pixels, sizes, images.original_hw)
        pixels = source.pixels.new_zeros(len(sizes), 3, *self._canvas(sizes))
        for row, picture, (h, w), (height, width) in zip(pixels, source.pixels, source.sizes_hw, sizes, strict=True):
            row[:, :height, :width] = self._resized(picture[None, :, :h, :w], (height, width))[0]
        return Images(pixels, sizes, images.original_hw)

    def masks(self, masks: Tensor, images: Images, view: Images, grid_hw: Size) -> Tensor:
        """masks [B, Q, h, w] in 0..1 on the canvas of `images` -> [B, Q, *grid_hw], cells of the padded `view`.

        What comes out is what four steps would give up to rounding: to the size of the canvas, cut to the picture, to
        the size of the view, and, padded with zeros, to the grid; each bilinear, without antialiasing. All are linear
        and work along one axis at a time, so that they are one matrix for the rows and one for the columns, and no mask
        is ever as large as the picture.
        """
        rows, columns = (
            torch.stack(
                [
                    _axis_map(
                        masks.shape[axis - 2],
                        (images.canvas_hw[axis], picture[axis], seen[axis], view.canvas_hw[axis], grid_hw[axis]),
                    )
                    for picture, seen in zip(images.sizes_hw, view.sizes_hw, strict=True)
                ]
            ).to(masks)
            for axis in (0, 1)
        )  # [B, h, grid h], [B, w, grid w]
        narrow = torch.einsum("bqhw,bwv->bqhv", masks, columns)
        return torch.einsum("bqhv,bhu->bquv", narrow, rows)

    def _canvas(self, sizes_hw: Sequence[Size]) -> Size:
        return round_up((max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)), self.multiple)

    def _resized(self, picture: Tensor, size_hw: Size) -> Tensor:
        if self.rule != "scale":
            return resize(picture, size_hw)
        # The released code samples with the factor itself, so that a side that is cut short is not stretched.
        return functional.interpolate(picture, scale_factor=self.size, mode="bilinear", align_corners=False)


def _axis_map(length: int, steps: tuple[int, int, int, int, int]) -> Tensor:
    """What `TowerView.masks` does along one axis: [length, last step], to be multiplied from the right.

    steps: length of the canvas, of the picture on it, of the picture in the view, of the padded view, of the grid.
    """
    canvas, picture, seen, padded, cells = steps
    x = _stretched(torch.eye(length), canvas)[:, :picture]
    x = functional.pad(_stretched(x, seen), (0, padded - seen))
    return _stretched(x, cells)


def _stretched(x: Tensor, length: int) -> Tensor:
    if x.shape[-1] == length:
        return x
    return functional.interpolate(x[None], size=length, mode="linear", align_corners=False)[0]

"""Sizes, resizing and padding, as the released models were scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.types import Images, Size


def resize(x: Tensor, size_hw: Size) -> Tensor:
    """x [B, C, h, w] -> [B, C, *size_hw], bilinear, corners not aligned, no antialiasing."""
    if tuple(x.shape[-2:]) == tuple(size_hw):
        return x
    return functional.interpolate(x, size=tuple(size_hw), mode="bilinear", align_corners=False)


def fit_short_edge(size_hw: Size, short_edge: int, long_edge: int) -> Size:
    """The size a picture is resized to: its short edge to `short_edge`, its long edge at most `long_edge`.

    Small pictures are enlarged. FC-CLIP's test-time rule, in double precision, halves rounded up.
    """
    height, width = size_hw
    scale = short_edge / min(height, width)
    new_h, new_w = (float(short_edge), scale * width) if height < width else (scale * height, float(short_edge))
    if max(new_h, new_w) > long_edge:
        shrink = long_edge / max(new_h, new_w)
        new_h, new_w = new_h * shrink, new_w * shrink
    return (int(new_h + 0.5), int(new_w + 0.5))


def fit_within(size_hw: Size, limit_hw: Size) -> Size:
    """The size itself where it fits into the limit, else the largest of its shape that does."""
    scale = min(1.0, limit_hw[0] / size_hw[0], limit_hw[1] / size_hw[1])
    height, width = (max(1, min(int(scale * side + 0.5), limit)) for side, limit in zip(size_hw, limit_hw, strict=True))
    return (height, width)


def round_up(size_hw: Size, multiple: int) -> Size:
    """The smallest size not below `size_hw` whose sides are multiples of `multiple`."""
    height, width = size_hw
    return (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


def neighbours(length: int, new_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """What bilinear resizing along an axis reads: (first, second, weight of the second), each [new_length].

    In float32, as the framework's own interpolation computes its positions.
    """
    scale = torch.tensor(float(length)) / new_length
    position = (scale * (torch.arange(new_length, dtype=torch.float32) + 0.5) - 0.5).clamp_(min=0.0)
    first = position.floor().long().clamp_(max=length - 1)
    return first, (first + 1).clamp_(max=length - 1), position - first


class RowResize:
    """Bilinear resizing of a map to `output_hw`, a few output rows at a time.

    The same numbers as `resize` up to rounding, in memory that does not grow with the height.
    """

    def __init__(self, input_hw: Size, output_hw: Size) -> None:
        self.input_hw = input_hw
        self.output_hw = output_hw
        self._upper, self._lower, self._weight = neighbours(input_hw[0], output_hw[0])

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """The input rows [first, last) that output rows [start, stop) are made of."""
        if self.input_hw[0] == self.output_hw[0]:
            return start, stop
        return int(self._upper[start]), int(self._lower[stop - 1]) + 1

    def __call__(self, rows: Tensor, start: int, stop: int) -> Tensor:
        """rows [N, n, w]: the input rows that `needs(start, stop)` names -> [N, stop - start, W]."""
        first, _ = self.needs(start, stop)
        wide = resize(rows[None], (rows.shape[-2], self.output_hw[1]))[0]
        if self.input_hw[0] == self.output_hw[0]:
            return wide
        upper = (self._upper[start:stop] - first).to(rows.device)
        lower = (self._lower[start:stop] - first).to(rows.device)
        weight = self._weight[start:stop].to(rows)[:, None]
        return torch.lerp(wide[:, upper], wide[:, lower], weight)


def probs_on_grid(mask_logits: Tensor, canvas_hw: Size, frame_hw: Size, grid_hw: Size) -> Tensor:
    """mask_logits [Q, h, w] on a canvas -> probabilities [Q, *grid_hw] on a grid over its top left frame.

    What three steps would give up to rounding: logits to the size of the canvas, sigmoid, the frame to the grid; both
    resizings bilinear. Only the places that the grid reads are computed, and no mask is as large as the canvas.
    """
    weights: list[Tensor] = []
    x = mask_logits
    for axis in (0, 1):
        first, second, weight = (part.to(x.device) for part in neighbours(frame_hw[axis], grid_hw[axis]))
        weights.append(weight.to(x))
        on_canvas = neighbours(mask_logits.shape[1 + axis], canvas_hw[axis])
        low, high, share = (part.to(x.device)[torch.cat((first, second))] for part in on_canvas)
        share = share.to(x)[:, None] if axis == 0 else share.to(x)
        x = torch.lerp(x.index_select(1 + axis, low), x.index_select(1 + axis, high), share)
    top, bottom = x.sigmoid().chunk(2, dim=1)  # each [Q, grid h, 2 grid w]
    left, right = torch.lerp(top, bottom, weights[0][:, None]).chunk(2, dim=2)
    return torch.lerp(left, right, weights[1])


MAX_ASPECT = 16
"""A strip of a picture is squeezed to this many times its short edge: a line of pixels would fill any memory."""

ViewRule = Literal["short", "square", "scale", "none"]


@dataclass(frozen=True)
class TowerView:
    """How big a tower sees each picture, where it does not look at the canvas itself.

    MaskCLIP++ (arXiv 2412.11464), released code. Rules: "short" brings the short edge to `size` and nothing limits the
    long one (here: `MAX_ASPECT`); "square" makes size x size of every picture; "scale" takes `size` as a factor; "none"
    leaves it. Sides are truncated, not rounded. Pictures are resized without antialiasing, then padded to the right and
    below.
    """

    rule: ViewRule
    size: float
    multiple: int
    """Sides of the padded view are multiples of it."""
    within: Size | None = None
    """Every view is padded to this size, and smaller than the rule says where it would not fit: for networks that were
    made for one size."""

    def size_of(self, picture_hw: Size) -> Size:
        """The size of a picture in the view, before padding."""
        size_hw = self._by_rule(picture_hw)
        return size_hw if self.within is None else fit_within(size_hw, self.within)

    def _by_rule(self, picture_hw: Size) -> Size:
        height, width = picture_hw
        if self.rule == "square":
            return (int(self.size), int(self.size))
        if self.rule == "scale":
            return (max(1, int(height * self.size)), max(1, int(width * self.size)))
        if self.rule == "none":
            return (height, width)
        short = int(self.size)
        # Products first: a picture that has the size already keeps it to the pixel.
        long = min(int(max(picture_hw) * short / min(picture_hw)), MAX_ASPECT * short)
        return (short, long) if height < width else (long, short)

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
        rows, columns = self.maps((masks.shape[-2], masks.shape[-1]), images, view, grid_hw)
        return on_grid(masks, rows.to(masks), columns.to(masks))

    def maps(self, mask_hw: Size, images: Images, view: Images, grid_hw: Size) -> tuple[Tensor, Tensor]:
        """What `masks` multiplies with, for masks of that size: rows [B, h, grid h], columns [B, w, grid w]."""
        rows, columns = (
            torch.stack(
                [
                    _axis_map(
                        mask_hw[axis],
                        (images.canvas_hw[axis], picture[axis], seen[axis], view.canvas_hw[axis], grid_hw[axis]),
                    )
                    for picture, seen in zip(images.sizes_hw, view.sizes_hw, strict=True)
                ]
            )
            for axis in (0, 1)
        )
        return rows, columns

    def _canvas(self, sizes_hw: Sequence[Size]) -> Size:
        if self.within is not None:
            return self.within
        return round_up((max(h for h, _ in sizes_hw), max(w for _, w in sizes_hw)), self.multiple)

    def _resized(self, picture: Tensor, size_hw: Size) -> Tensor:
        if self.rule != "scale":
            return resize(picture, size_hw)
        # The released code samples with the factor itself, so that a side that is cut short is not stretched.
        return functional.interpolate(picture, scale_factor=self.size, mode="bilinear", align_corners=False)


def on_grid(masks: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """masks [B, Q, h, w], rows [B, h, u], columns [B, w, v] -> [B, Q, u, v]."""
    narrow = torch.einsum("bqhw,bwv->bqhv", masks, columns)
    return torch.einsum("bqhv,bhu->bquv", narrow, rows)


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

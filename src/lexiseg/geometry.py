"""Sizes, resizing and padding, as the released models were scored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.types import Size


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


def round_up(size_hw: Size, multiple: int) -> Size:
    """The smallest size not below `size_hw` whose sides are multiples of `multiple`."""
    height, width = size_hw
    return (-(-height // multiple) * multiple, -(-width // multiple) * multiple)


class RowResize:
    """Bilinear resizing of a map to `output_hw`, a few output rows at a time.

    The same numbers as `resize` up to rounding, in memory that does not grow with the height.
    """

    def __init__(self, input_hw: Size, output_hw: Size) -> None:
        self.input_hw = input_hw
        self.output_hw = output_hw
        # In float32, as the framework's own interpolation computes its positions.
        scale = torch.tensor(float(input_hw[0])) / output_hw[0]
        position = (scale * (torch.arange(output_hw[0], dtype=torch.float32) + 0.5) - 0.5).clamp_(min=0.0)
        self._upper = position.floor().long().clamp_(max=input_hw[0] - 1)
        self._lower = (self._upper + 1).clamp_(max=input_hw[0] - 1)
        self._weight = position - self._upper

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

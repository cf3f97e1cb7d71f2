"""Sizes, resizing and padding, as the released models were scored."""

from __future__ import annotations

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

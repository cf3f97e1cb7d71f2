"""Position codes and grid centres of feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lexiseg.types import Size


def sine_positions(size_hw: Size, width: int, device: torch.device | None = None) -> Tensor:
    """Position code [h, w, width] float32 of a map: the first half of the channels tells y, the second x.

    DETR's normalised sine code. Rows and columns count from 1 and are divided by the size, so that the
    last one stands at 2 pi whatever the resolution. `width` is a multiple of 4.
    """
    per_axis = width // 2
    channel = torch.arange(per_axis, dtype=torch.float32, device=device)
    period = 10000 ** (2 * torch.div(channel, 2, rounding_mode="floor") / per_axis)

    def axis(count: int) -> Tensor:
        position = torch.arange(1, count + 1, dtype=torch.float32, device=device) / (count + 1e-6) * (2 * math.pi)
        angle = position[:, None] / period  # [count, per_axis]
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=-1).flatten(1)

    height, width_px = size_hw
    # The axes are independent: h + w rows of sines instead of h * w, cheap enough not to be cached.
    rows = axis(height)[:, None].expand(-1, width_px, -1)
    columns = axis(width_px)[None].expand(height, -1, -1)
    return torch.cat((rows, columns), dim=-1)


def grid_centres(sizes_hw: Sequence[Size], device: torch.device | None = None) -> Tensor:
    """Centres (x, y) in 0..1 of the cells of several maps, row by row, one map after the other: [sum h w, 2]."""
    centres = []
    for height, width in sizes_hw:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        centres.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1))
    return torch.cat(centres)


def rotary_waves(grid_hw: Size, head_dim: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines [h w, head_dim] float32 of rotary position codes (RoPE, arXiv 2104.09864) of a map.

    As in EVA-02 (arXiv 2303.11331): the first half of the channels tells the row, the second the column, two neighbours
    share a frequency, and every map is stretched to a square of 16 x 16, the grid the towers were first trained on.
    """
    per_axis = head_dim // 2
    frequency = 10000 ** (-torch.arange(0, per_axis, 2, dtype=torch.float32, device=device) / per_axis)

    def axis(count: int) -> Tensor:
        place = torch.arange(count, dtype=torch.float32, device=device) * 16 / count
        return (place[:, None] * frequency).repeat_interleave(2, dim=-1)  # [count, per_axis]

    height, width = grid_hw
    rows = axis(height)[:, None].expand(-1, width, -1)
    columns = axis(width)[None].expand(height, -1, -1)
    angles = torch.cat((rows, columns), dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, waves: tuple[Tensor, Tensor]) -> Tensor:
    """x [..., h w, head_dim], waves of `rotary_waves` -> every pair of neighbouring channels turned by its angle."""
    cosine, sine = (wave.to(x) for wave in waves)
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cosine + turned * sine

"""Losses on masks look at random points instead of every pixel.

PointRend (arXiv 1912.08193), as Mask2Former uses it. Points are (x, y) in 0..1 over the whole map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Draw = Callable[[tuple[int, ...]], Tensor]
"""A source of randomness: a shape -> uniform numbers in 0..1, float32."""


def uniform(device: torch.device, generator: torch.Generator | None = None) -> Draw:
    """Draws on `device`, from its default generator unless another is given."""
    return lambda shape: torch.rand(shape, generator=generator, device=device)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """maps [B, C, h, w], points [B, P, 2] -> [B, C, P]: bilinear, fading to zero across the border."""
    grid = (2 * points - 1)[:, None]  # [B, 1, P, 2]
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, :, 0]


@torch.no_grad()
def uncertain_points(
    mask_logits: Tensor, num_points: int, draw: Draw, oversample: float = 3.0, importance: float = 0.75
) -> Tensor:
    """mask_logits [M, h, w] -> points [M, num_points, 2], mostly where the mask is undecided.

    Of `oversample` times as many candidates, each mask keeps the share `importance` of `num_points` whose
    logits are nearest zero, most uncertain first; the rest of the points is uniform. Two draws: candidates
    [M, int(oversample * num_points), 2], then the rest.
    """
    count = len(mask_logits)
    candidates = draw((count, int(oversample * num_points), 2)).to(mask_logits.device)
    logits = sample_points(mask_logits[:, None].float(), candidates)[:, 0]  # [M, candidates]
    num_uncertain = int(importance * num_points)
    nearest = (-logits.abs()).topk(num_uncertain, dim=1).indices
    chosen = candidates.gather(1, nearest[..., None].expand(-1, -1, 2))
    rest = draw((count, num_points - num_uncertain, 2)).to(mask_logits.device)
    return torch.cat((chosen, rest), dim=1)

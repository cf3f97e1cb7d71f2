"""Masks too small for CLIP's map, grown until it sees them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.types import Features, Images, Regions

FIRST_RADIUS = 4
"""Pixels of the canvas by which an unseen mask is grown first; doubled while it stays unseen."""

LAST_RADIUS = 64
"""Twice the coarsest stride: wherever a mask lies, a cell of CLIP's map is nearer than that."""


class GrownUntilSeen(nn.Module):
    """Another embedder, for masks that nobody else can judge: one that covers no cell of its map gets a verdict too.

    A CLIP map has a cell for every 32 x 32 pixels, and a mask is on in a cell when it is on in its middle; small and
    thin masks are on in none. Trained systems leave those to their generator, which has seen them at a finer scale.
    Without such a generator they would be void, so here they are looked at together with their surroundings. Empty
    masks stay what they are, with `valid` false.
    """

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h, w] on the canvas of `images` -> embeds [B, Q, D]."""
        regions: Regions = self.embedder(images, features, mask_logits)
        nonempty = (mask_logits > 0).flatten(2).any(-1)  # [B, Q]
        scale = mask_logits.shape[-2] / images.canvas_hw[0]
        radius = FIRST_RADIUS
        while radius <= LAST_RADIUS:
            rows = (nonempty & ~regions.valid).any(0).nonzero().flatten()
            if len(rows) == 0:
                break
            larger = grow(mask_logits[:, rows], max(1, round(radius * scale)))
            again: Regions = self.embedder(images, features, larger)
            take = nonempty[:, rows] & ~regions.valid[:, rows] & again.valid  # [B, n]
            embeds, valid = regions.embeds.clone(), regions.valid.clone()
            embeds[:, rows] = torch.where(take[..., None], again.embeds, embeds[:, rows])
            valid[:, rows] |= take
            regions = replace(regions, embeds=embeds, valid=valid)
            radius *= 2
        return regions


def grow(mask_logits: Tensor, radius: int) -> Tensor:
    """mask_logits [B, Q, h, w] -> the same, each value the largest within `radius` cells along both axes."""
    side = 2 * radius + 1
    wide = functional.max_pool2d(mask_logits, (1, side), stride=1, padding=(0, radius))
    return functional.max_pool2d(wide, (side, 1), stride=1, padding=(radius, 0))

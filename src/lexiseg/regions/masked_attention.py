"""The attention pooling of a CLIP ResNet under soft masks, with the whole tower inside.

MaskCLIP++ (arXiv 2412.11464). Parameter names below the embedder:

    trunk.trunk.*                                                              the tower, by the names of CLIP
    pool.{q_proj, k_proj, v_proj, c_proj}.{weight, bias}
    pool.positional_embedding
    pool.mask_logit_scale                                                      [heads]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.geometry import TowerView
from lexiseg.layers.mask_pooling import is_seen
from lexiseg.regions.attention_pool import MaskedAttention2d
from lexiseg.types import Features, Images, Regions, Size

OUTSIDE = -100.0
"""Added to the attention of a mask to what is outside it. Not minus infinity: an empty mask looks everywhere."""


def soft_bias(masks: Tensor, log_scale: Tensor) -> Tensor:
    """masks [B, Q, h, w] in 0..1, log_scale [heads] -> [B, heads, Q, h w], to be added to attention scores.

    exp(log_scale) times the mask where it exceeds half of its own maximum, `OUTSIDE` elsewhere.
    """
    flat = masks.flatten(2)[:, None]  # [B, 1, Q, h w]
    inside = flat > flat.amax(dim=-1, keepdim=True) / 2
    return torch.where(inside, log_scale.exp()[:, None, None] * flat, OUTSIDE)


class SoftMaskedAttention2d(MaskedAttention2d):
    """CLIP's attention pooling, each query drawn to the positions of its soft mask.

    Positions are resized bicubically with their corners aligned, unlike FC-CLIP's: the models were trained so.
    """

    def __init__(self, channels: int, num_heads: int, out_dim: int, grid_size: int) -> None:
        super().__init__(channels, num_heads, out_dim, grid_size)
        self.mask_logit_scale = nn.Parameter(torch.full((num_heads,), -5.0))

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """features [B, C, h, w], masks [B, Q, h, w] in 0..1 -> [B, Q, D]."""
        return self.attend(features, soft_bias(masks.to(features), self.mask_logit_scale))

    def positions(self, size_hw: Size) -> Tensor:
        """The learned positions [1, C, h, w] of a map of any size."""
        grid = self._grid()
        if tuple(size_hw) == (self.grid_size, self.grid_size):
            return grid
        return functional.interpolate(grid, size=tuple(size_hw), mode="bicubic", align_corners=True)


class SoftAttentionPool(nn.Module):
    """Each proposal as a CLIP ResNet of its own sees it, at its own size of picture.

    An empty mask looks everywhere and has `valid` false.
    """

    def __init__(self, view: TowerView, trunk: nn.Module, pool: SoftMaskedAttention2d) -> None:
        """trunk(images) -> Features."""
        super().__init__()
        self.view = view
        self.trunk = trunk
        self.pool = pool

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]. features are not looked at."""
        view = self.view(images)
        dense = self.trunk(view).dense
        grid_hw = (dense.shape[-2], dense.shape[-1])
        masks = self.view.masks(mask_logits.detach().sigmoid(), images, view, grid_hw)
        return Regions(embeds=self.pool(dense, masks), valid=is_seen(masks))

"""Masked attention pooling, for the CLIP ResNets."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lexiseg.geometry import resize
from lexiseg.layers.mask_pooling import inside_masks
from lexiseg.types import Features, Images, Regions, Size


class MaskedAttention2d(nn.Module):
    """CLIP's attention pooling, each query looking only at the positions of its mask.

    FC-CLIP, `visual_prediction_forward_resnet`. The query is the mean over the *whole* map, the same for every mask;
    unlike in CLIP's own pooling it is not among the keys, and the mean is taken before the positions are added.
    Parameters carry CLIP's names.
    """

    def __init__(self, channels: int, num_heads: int, out_dim: int, grid_size: int) -> None:
        """channels C, out_dim D, grid_size: the positions were trained on a square grid of this side."""
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be split among {num_heads} heads")
        self.num_heads = num_heads
        self.grid_size = grid_size
        self.positional_embedding = nn.Parameter(torch.randn(grid_size**2 + 1, channels) / math.sqrt(channels))
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, out_dim)

    def forward(self, features: Tensor, inside: Tensor) -> Tensor:
        """features [B, C, h, w], inside bool [B, Q, h, w] -> [B, Q, D]. An empty mask looks everywhere."""
        allowed = inside.flatten(2)  # [B, Q, N]
        # A softmax over nothing is NaN, which would spread through gradients and sums even where `valid` is false.
        allowed = allowed | ~allowed.any(dim=-1, keepdim=True)
        bias = torch.zeros(1, dtype=features.dtype, device=features.device).where(allowed, -torch.inf)
        return self.attend(features, bias[:, None])

    def attend(self, features: Tensor, bias: Tensor) -> Tensor:
        """features [B, C, h, w], bias added to the scores [B, heads or 1, Q, h w] -> [B, Q, D]."""
        tokens = (features + self.positions((features.shape[-2], features.shape[-1]))).flatten(2).transpose(1, 2)
        whole = features.mean((-2, -1)) + self.positional_embedding[0]  # [B, C]

        query = self.q_proj(whole).unflatten(-1, (self.num_heads, -1))  # [B, heads, d]
        key = self.k_proj(tokens).unflatten(-1, (self.num_heads, -1))  # [B, N, heads, d]
        value = self.v_proj(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, d]
        # One query per image: its similarities are computed once, only the softmax differs from mask to mask.
        scores = torch.einsum("bhd,bnhd->bhn", query * query.shape[-1] ** -0.5, key)
        weights = (scores[:, :, None] + bias).softmax(dim=-1)  # [B, heads, Q, N]
        return self.c_proj((weights @ value).transpose(1, 2).flatten(2))

    def positions(self, size_hw: Size) -> Tensor:
        """The learned positions [1, C, h, w] of a map of any size."""
        return resize(self._grid(), size_hw)

    def _grid(self) -> Tensor:
        """The positions as they were trained, [1, C, grid_size, grid_size]."""
        return self.positional_embedding[1:].T.unflatten(1, (self.grid_size, self.grid_size))[None]


class AttentionPool(nn.Module):
    """Each proposal as the attention pooling of a CLIP ResNet sees it.

    FC-CLIP, appendix (ResNet towers). `pool` is also the projection: its output is in the joint space. An empty mask
    keeps its row, finite and with `valid` false; systems with this embedder fuse with `only_valid`.
    """

    def __init__(self, pool: MaskedAttention2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, images: Images, features: Features, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]."""
        h, w = features.dense.shape[-2:]
        inside = inside_masks(mask_logits, (h, w))  # [B, Q, h, w]
        return Regions(embeds=self.pool(features.dense, inside), valid=inside.flatten(2).any(dim=-1))

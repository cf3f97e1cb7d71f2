"""Multi-head attention with one packed input projection."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with the same parameters, batch first, never materialising its weights.

    With `fused` false they are: products, softmax and products one after the other, as PyTorch's module has it where
    its weights are asked for. The last bits are then those of programs that use it so.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, fused: bool = True) -> None:
        """dropout: of the attention weights, in training."""
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        self.dropout = dropout
        self.fused = fused
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        """query [B, Q, width], key and value [B, L, width] -> [B, Q, width].

        visible: bool [B, Q, L], where a query may look, the same for all heads. Every row needs one
        visible place.
        """
        return self.attend(self.project("q", query), self.project("k", key), self.project("v", value), visible)

    def project(self, part: Literal["q", "k", "v"], x: Tensor) -> Tensor:
        """x [B, L, width] -> [B, heads, L, dim]: what it asks, what it is found by, what it says."""
        index = "qkv".index(part)
        weight, bias = self.in_proj_weight.chunk(3)[index], self.in_proj_bias.chunk(3)[index]
        return functional.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
        """q [B, heads, Q, dim], k and v [B, heads, L, dim], visible bool [B, Q, L] -> [B, Q, width]."""
        mask = None if visible is None else visible[:, None]
        dropout = self.dropout if self.training else 0.0
        if self.fused:
            return self.join(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        return self.join(functional.dropout(scores.softmax(dim=-1), dropout) @ v)

    def join(self, attended: Tensor) -> Tensor:
        """What each head found [B, heads, Q, dim] -> [B, Q, width]."""
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class CrossAttentionBlock(nn.Module):
    """Queries look at a memory; residual, normalised after the sum."""

    def __init__(self, width: int, heads: int, fused: bool = True) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(width, heads, fused=fused)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """x [B, Q, width], positions [Q, width], keys and values [B, L, width], visible [B, Q, L]."""
        return self.norm(x + self.multihead_attn(x + positions, keys, values, visible))


class SelfAttentionBlock(nn.Module):
    """Queries look at each other; residual, normalised after the sum."""

    def __init__(self, width: int, heads: int, fused: bool = True) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(width, heads, fused=fused)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [B, Q, width], positions [Q, width]: added to queries and keys, not to values."""
        placed = x + positions
        return self.norm(x + self.self_attn(placed, placed, x))

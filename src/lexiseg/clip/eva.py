"""The vision transformers of EVA-CLIP, at any size of picture, block by block."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.trunk import Trunk
from lexiseg.layers.positions import rotary_waves, rotate
from lexiseg.types import Images, Size

Waves = tuple[Tensor, Tensor]


class EvaTrunk(Trunk):
    """timm's `Eva` in the two forms of EVA-CLIP: EVA-01 (arXiv 2211.07636) and EVA-02 (arXiv 2303.11331).

    Tensor names are timm's; its forward is not used, for two reasons. Positions of grids other than the trained one are
    resized bicubically with their corners aligned, as the models of MaskCLIP++ were trained, where timm antialiases.
    And a block is open to tokens that look at the picture without being seen by it: `attention` gives what it makes of
    the picture's tokens, `query` what a foreign token asks, `finish` what either becomes.

    The class token comes first, then the patches. The head is part of the trunk: it projects into the joint space.
    """

    def __init__(self, trunk: Any, **options: Any) -> None:
        """trunk: an Eva model with a head of D outputs. options: those of `Trunk`."""
        if not isinstance(trunk, Eva) or not all(isinstance(block, EvaBlock) for block in trunk.blocks):
            raise ValueError(f"{type(trunk).__name__} is no EVA-CLIP vision transformer")
        if trunk.num_prefix_tokens != 1 or trunk.pos_embed is None or not isinstance(trunk.norm_pre, nn.Identity):
            raise ValueError("needed are one class token, learned positions and no norm before the blocks")
        attention = trunk.blocks[0].attn
        if not isinstance(attention, EvaAttention) or attention.rotate_half or attention.gate is not None:
            raise ValueError("attention of this form is not built")
        self.rotary = trunk.rope is not None
        # Neither is in any checkpoint: what they hold is computed here, and a model built on the meta device has none.
        trunk.rope = None  # type: ignore[assignment]
        for block in trunk.blocks:
            own: Any = block.attn
            own.k_bias = None
        super().__init__(trunk, (), trunk.embed_dim, **options)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.trunk.blocks)

    @property
    def num_heads(self) -> int:
        return self.trunk.blocks[0].attn.num_heads

    @property
    def patch_size(self) -> int:
        return self.trunk.patch_embed.patch_size[0]

    def enter(self, images: Images) -> tuple[Tensor, Size]:
        """Pictures on a canvas of whole patches -> tokens [B, 1 + h w, C] before the first block, and (h, w)."""
        patches = self.trunk.patch_embed.proj(self.normalise(images))  # [B, C, h, w]
        grid_hw = (patches.shape[-2], patches.shape[-1])
        first = self.trunk.cls_token.expand(len(patches), -1, -1)
        tokens = torch.cat((first, patches.flatten(2).transpose(1, 2)), dim=1)
        return tokens + self.positions(grid_hw), grid_hw

    def positions(self, grid_hw: Size) -> Tensor:
        """The learned positions [1, 1 + h w, C] of a grid."""
        trained = tuple(self.trunk.patch_embed.grid_size)
        if tuple(grid_hw) == trained:
            return self.trunk.pos_embed
        first, grid = self.trunk.pos_embed[:, :1], self.trunk.pos_embed[:, 1:]
        grid = grid.transpose(1, 2).unflatten(-1, trained)  # [1, C, h, w]
        grid = functional.interpolate(grid, size=tuple(grid_hw), mode="bicubic", align_corners=True)
        return torch.cat((first, grid.flatten(2).transpose(1, 2)), dim=1)

    def waves(self, grid_hw: Size) -> Waves | None:
        """What turns queries and keys of the patches of a grid; None for EVA-01."""
        if not self.rotary:
            return None
        return rotary_waves(grid_hw, self.trunk.embed_dim // self.num_heads, self.trunk.cls_token.device)

    def forward(self, images: Images) -> Tensor:
        """Pictures -> [B, D], the class token through all blocks and the head: CLIP's own embedding."""
        tokens, grid_hw = self.enter(images)
        waves = self.waves(grid_hw)
        for index in range(self.depth):
            tokens = self.block(index, tokens, waves)
        return self.leave(tokens[:, 0])

    def block(self, index: int, tokens: Tensor, waves: Waves | None) -> Tensor:
        """tokens [B, 1 + h w, C] -> the same after block `index`."""
        return self.attend(index, tokens, *self.attention(index, tokens, waves))

    def attention(self, index: int, tokens: Tensor, waves: Waves | None) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B, 1 + h w, C] -> queries, keys and values [B, heads, 1 + h w, d] of block `index`."""
        block = self.trunk.blocks[index]
        normed = block.norm1(tokens)
        query, key, value = (self._project(block.attn, part, normed) for part in ("q", "k", "v"))
        if waves is not None:  # the class token is not turned
            query, key = (torch.cat((x[:, :, :1], rotate(x[:, :, 1:], waves)), dim=2) for x in (query, key))
        return query, key, value

    def query(self, index: int, tokens: Tensor) -> Tensor:
        """Foreign tokens [B, Q, C] -> what they ask of the picture in block `index`, [B, heads, Q, d]; not turned."""
        block = self.trunk.blocks[index]
        return self._project(block.attn, "q", block.norm1(tokens))

    def attend(
        self, index: int, tokens: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """tokens [B, N, C], what they ask [B, heads, N, d], keys and values [B, heads, L, d], bias added to the scores
        [B, heads, N, L] -> the tokens after block `index`."""
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.finish(index, tokens, mixed)

    def finish(self, index: int, tokens: Tensor, attended: Tensor) -> Tensor:
        """tokens [B, N, C], what they found [B, heads, N, d] -> the tokens after block `index`."""
        block = self.trunk.blocks[index]
        found = block.attn.norm(attended.transpose(1, 2).flatten(2))
        tokens = tokens + _scaled(block.gamma_1, block.drop_path1(block.attn.proj(found)))
        return tokens + _scaled(block.gamma_2, block.drop_path2(block.mlp(block.norm2(tokens))))

    def leave(self, tokens: Tensor) -> Tensor:
        """Tokens [..., C] after the last block -> [..., D] in the joint space, not normalised."""
        return self.trunk.head(self.trunk.fc_norm(self.trunk.norm(tokens)))

    def _project(self, attention: Any, part: str, normed: Tensor) -> Tensor:
        """[B, N, C] -> [B, heads, N, d]: "q", "k" or "v" of an attention, whose weights may be packed."""
        if attention.qkv is None:
            projected = getattr(attention, f"{part}_proj")(normed)
        else:
            weight = attention.qkv.weight.chunk(3)["qkv".index(part)]
            bias = getattr(attention, f"{part}_bias")
            projected = functional.linear(normed, weight, bias)
        return projected.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _scaled(gamma: Tensor | None, x: Tensor) -> Tensor:
    return x if gamma is None else gamma * x

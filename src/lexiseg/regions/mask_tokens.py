"""Mask tokens: in the last blocks of a vision transformer, one class token per mask, looking at its mask alone.

MaskCLIP++ (arXiv 2412.11464), the EVA-CLIP towers. Parameter names below the embedder:

    trunk.trunk.*            the tower, by the names of timm
    mask_logit_scale         [blocks with mask tokens, heads]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.geometry import TowerView
from lexiseg.layers.mask_pooling import is_seen
from lexiseg.regions.masked_attention import soft_bias
from lexiseg.types import Features, Images, Regions, Size


class MaskTokens(nn.Module):
    """Each proposal as a class token of its own sees it, with the whole tower inside.

    The first blocks run on the picture alone. Before block `first_block` every mask gets a copy of the class token;
    from there on mask tokens look at the patches inside their mask (`soft_bias`), not at each other and not at the
    class token. The picture's tokens never see mask tokens, so they are computed without them, and in the last block
    only what mask tokens look at. The same function as one attention over all tokens with a bias, for less.

    Scales count blocks from the end: row 0 belongs to the last block.
    """

    def __init__(self, view: TowerView, trunk: Any, first_block: int) -> None:
        """trunk: see `clip.eva.EvaTrunk`. first_block counts from 0."""
        super().__init__()
        if not 0 <= first_block < trunk.depth:
            raise ValueError(
                f"mask tokens from block {first_block} on, but the tower has blocks 0 to {trunk.depth - 1}"
            )
        self.view = view
        self.trunk: Any = trunk
        self.first_block = first_block
        self.mask_logit_scale = nn.Parameter(torch.full((trunk.depth - first_block, trunk.num_heads), -5.0))

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]. features are not looked at."""
        view = self.view(images)
        grid_hw = self.grid_of(view)
        masks = self.view.masks(mask_logits.detach().sigmoid(), images, view, grid_hw)
        return Regions(embeds=self.look(view, masks), valid=is_seen(masks))

    def grid_of(self, view: Images) -> Size:
        """Rows and columns of patches of a view."""
        height, width = view.canvas_hw
        return (height // self.trunk.patch_size, width // self.trunk.patch_size)

    def look(self, view: Images, masks: Tensor) -> Tensor:
        """Pictures as the tower sees them, masks [B, Q, h, w] in 0..1 on its patches -> embeds [B, Q, D]."""
        trunk, last = self.trunk, self.trunk.depth - 1
        tokens, grid_hw = trunk.enter(view)
        waves = trunk.waves(grid_hw)
        for index in range(self.first_block):
            tokens = trunk.block(index, tokens, waves)
        mask_tokens = tokens[:, :1].expand(-1, masks.shape[1], -1)  # [B, Q, C]
        for index in range(self.first_block, last + 1):
            query, key, value = trunk.attention(index, tokens, waves)
            bias = self.bias(masks, last - index)
            own = trunk.query(index, mask_tokens)
            mask_tokens = trunk.attend(index, mask_tokens, own, key[:, :, 1:], value[:, :, 1:], bias)
            if index < last:
                tokens = trunk.attend(index, tokens, query, key, value)
        return trunk.leave(mask_tokens)

    def bias(self, masks: Tensor, from_end: int) -> Tensor:
        """masks [B, Q, h, w] -> what is added to their scores [B, heads, Q, h w], `from_end` blocks before the last."""
        return soft_bias(masks, self.mask_logit_scale[from_end])

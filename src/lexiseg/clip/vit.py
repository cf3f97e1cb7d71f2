"""The vision transformers of OpenAI's CLIP, and the form of them that OVSeg adapted to masked regions.

Learning Transferable Visual Models From Natural Language Supervision (arXiv 2103.00020). Tensor names are OpenAI's own
below `visual.`, which open_clip has kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.text import Mlp, QuickGELU
from lexiseg.layers.attention import MultiheadAttention
from lexiseg.types import Size


class ResidualBlock(nn.Module):
    """Attention and a feed-forward part; residual, normalised before each."""

    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = MultiheadAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, activation)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """x [N, L, W] -> the same shape; with `first` only so many leading tokens of it, which see all of x."""
        normed = self.ln_1(x)
        x = x[:, :first] + self.attn(normed[:, :first], normed, normed)
        return self.finish(x)

    def of(self, x: Tensor, chosen: Tensor) -> Tensor:
        """x [N, L, W], chosen bool [N, L] -> [T, W]: what becomes of the chosen tokens, which see all of x.

        Nothing is computed of the others but what the chosen ones find and read.
        """
        normed, attention = self.ln_1(x), self.attn
        asked = attention.project("q", normed[chosen][None])[0].transpose(0, 1)  # [T, heads, dim]
        q = asked.new_zeros(*chosen.shape, *asked.shape[1:])
        q[chosen] = asked
        k, v = attention.project("k", normed), attention.project("v", normed)
        found = functional.scaled_dot_product_attention(q.transpose(1, 2), k, v)  # [N, heads, L, dim]
        return self.finish(x[chosen] + attention.out_proj(found.transpose(1, 2)[chosen].flatten(1)))

    def finish(self, x: Tensor) -> Tensor:
        """x [N, L, W] after the attention -> after the whole block."""
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """Blocks one after the other, under CLIP's name."""

    def __init__(self, width: int, heads: int, layers: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(width, heads, hidden, activation) for _ in range(layers))


class VisionTransformer(nn.Module):
    """CLIP's image tower in parts, for those who do something between them; `forward` is the plain tower."""

    def __init__(
        self,
        embed_dim: int,
        *,
        width: int,
        layers: int,
        patch_size: int,
        image_size: int,
        head_width: int = 64,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = True,
    ) -> None:
        """embed_dim D. image_size: side of the square pictures it was trained on. quick_gelu: of OpenAI's weights."""
        super().__init__()
        self.embed_dim, self.image_size, self.patch_size = embed_dim, image_size, patch_size
        self.grid_size = image_size // patch_size
        scale = width**-0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * scale)
        self.positional_embedding = nn.Parameter(torch.randn(self.grid_size**2 + 1, width) * scale)
        self.ln_pre = nn.LayerNorm(width)
        activation: nn.Module = QuickGELU() if quick_gelu else nn.GELU()
        self.transformer = Blocks(width, width // head_width, layers, int(width * mlp_ratio), activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, embed_dim) * scale)

    @property
    def blocks(self) -> Sequence[ResidualBlock]:
        return list(self.transformer.resblocks)  # type: ignore[arg-type]  # a list of modules forgets their type

    def patches(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, H, W], normalised -> [N, h w, W], without places; what fills no patch is cut off."""
        return self.conv1(pixels).flatten(2).transpose(1, 2)

    def positions(self, grid_hw: Size) -> Tensor:
        """The learned positions [1 + h w, W] of a grid: those of another size are resized, bicubically and with their
        corners aligned."""
        if tuple(grid_hw) == (self.grid_size, self.grid_size):
            return self.positional_embedding
        whole, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = grid.T.unflatten(-1, (self.grid_size, self.grid_size))[None]  # [1, W, h, w]
        grid = functional.interpolate(grid, size=tuple(grid_hw), mode="bicubic", align_corners=True)
        return torch.cat((whole, grid[0].flatten(1).T))

    def enter(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, H, W] of any size, normalised -> tokens [N, 1 + h w, W] as the first block reads them."""
        height, width = (side // self.patch_size for side in pixels.shape[-2:])
        return self.begin(self.patches(pixels), self.positions((height, width)))

    def begin(self, patches: Tensor, positions: Tensor | None = None) -> Tensor:
        """patches [N, P, W] -> tokens [N, 1 + P, W] as the first block reads them, the class token first.

        positions [1 + P, W]: for grids of another size than it was trained on.
        """
        positions = self.positional_embedding if positions is None else positions
        whole = self.class_embedding.expand(len(patches), 1, -1)
        return self.ln_pre(torch.cat((whole, patches), dim=1) + positions)

    def end(self, tokens: Tensor) -> Tensor:
        """Class tokens [..., W] after the last block -> [..., D], not normalised."""
        return self.ln_post(tokens) @ self.proj

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [N, 3, H, W] of any size, normalised -> [N, D], not normalised."""
        x = self.enter(pixels)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.end(last(x, first=1)[:, 0])


class MaskPromptedTransformer(VisionTransformer):
    """CLIP's tower for pictures of which only a part is shown: blank patches are replaced by learned ones.

    Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (OVSeg, CVPR 2023, arXiv 2210.04150), section 3.3.
    Replaced, not removed: they are looked at like any other. Before each of the first `prompt_depth` blocks every blank
    patch becomes the prompt of its place, so what a block makes of it counts only after the last of them.

    What is not computed, with the same result up to rounding: in the last block everything but the class token; of
    blank patches, in the blocks after which they are replaced, everything but what the others find and read of them.
    """

    def __init__(self, embed_dim: int, *, prompt_depth: int = 3, shared_prompts: bool = False, **sizes: Any) -> None:
        """prompt_depth: 0 for a tower that was only fine-tuned. shared_prompts: one for all places of a block. sizes:
        of `VisionTransformer`."""
        super().__init__(embed_dim, **sizes)
        self.prompt_depth = prompt_depth
        self.mask_embedding: nn.Parameter | None = None
        if prompt_depth:
            places, width = (1 if shared_prompts else self.grid_size**2), len(self.class_embedding)
            self.mask_embedding = nn.Parameter(torch.randn(prompt_depth, places, width) * 0.02)

    def keep(self, masks: Tensor) -> Tensor:
        """Region masks [N, S, S], bool or in 0..1 -> bool [N, P]: patches with any foreground."""
        size = self.patch_size
        return masks.unfold(1, size, size).unfold(2, size, size).flatten(3).gt(0).any(-1).flatten(1)

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """pixels [N, 3, S, S], normalised, keep bool [N, P] -> [N, D], not normalised. Without `keep` or without
        prompts it is the plain tower."""
        if keep is None or self.mask_embedding is None:
            return super().forward(pixels)
        x = self.begin(torch.where(keep[..., None], self.patches(pixels), self.mask_embedding[0]))
        stays = functional.pad(keep, (1, 0), value=True)  # [N, 1 + P]: the class token, too
        *blocks, last = self.blocks
        for index, block in enumerate(blocks, 1):
            if index < self.prompt_depth:
                computed = block.of(x, stays)
                prompts = self.mask_embedding[index].to(computed).expand(x.shape[1] - 1, -1)
                x = functional.pad(prompts, (0, 0, 1, 0)).repeat(len(x), 1, 1)
                x[stays] = computed
            else:
                x = block(x)
        return self.end(last(x, first=1)[:, 0])

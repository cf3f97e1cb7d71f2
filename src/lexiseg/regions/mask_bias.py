"""One pass of a CLIP transformer for all masks: in its last blocks a class token per mask looks inside that mask alone.

Learning Mask-aware CLIP Representations for Zero-Shot Segmentation (MAFT, NeurIPS 2023, arXiv 2310.00240), section 3.2
("IP-CLIP"). No parameter is added: the tower is CLIP's own, as it came or fine-tuned.

Parameter names below the embedder; the official ones are `IPCLIP.*`:

    tower.{CLIP's own names}
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lexiseg.geometry import probs_on_grid, resize, round_up
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD, normalise
from lexiseg.types import Features, Images, Regions, Size

PADDED_TO = 32
"""Pictures are padded to multiples of it before they are made square: the padding is part of what CLIP sees."""

MaskFrame = Literal["padded", "picture"]
"""What the square grid of a mask covers: the padded picture, which the square that CLIP sees covers too, or the picture
alone, which shifts masks against it a little."""

SeenBy = Literal["patch", "pixel"]
"""When a mask counts as seen: one patch lies in it, or one pixel of the picture."""


class MaskBiasedAttention(nn.Module):
    """Each proposal as a class token of its own sees it, with the whole tower inside.

    A picture is squeezed into a square whatever its aspect. The first blocks run on it alone. Before block
    `first_block` the class token is copied once per mask; from there on a copy looks at itself and at the patches whose
    probability is at least `threshold`, and patches look at patches alone. Copies never look at each other and no patch
    looks at them, so patches are computed once for any number of masks and the copies beside them: the same function as
    one attention over all tokens under a bias for each pair of them, which is never made. In the last block only the
    copies are computed.

    A mask without a patch leaves its copy looking at itself; it keeps its row, and `valid` is false by the rule
    `seen_by`. Each picture has its own frame: what else is in the batch does not matter.
    """

    def __init__(
        self,
        tower: Any,
        *,
        side: int = 480,
        first_block: int = 8,
        threshold: float = 0.5,
        mask_frame: MaskFrame = "padded",
        seen_by: SeenBy = "patch",
    ) -> None:
        """tower: see `clip.vit.VisionTransformer`. side: of the square it sees. first_block counts from 0."""
        super().__init__()
        if not 0 <= first_block < len(tower.blocks):
            raise ValueError(
                f"mask tokens from block {first_block} on, but the tower has blocks 0 to {len(tower.blocks) - 1}"
            )
        if side < tower.patch_size:
            raise ValueError(f"a square of {side} pixels has no patch of {tower.patch_size}")
        self.tower = tower
        self.side, self.first_block, self.threshold = side, first_block, threshold
        self.mask_frame: MaskFrame = mask_frame
        self.seen_by: SeenBy = seen_by

    @property
    def grid_hw(self) -> Size:
        """Rows and columns of patches."""
        return (self.side // self.tower.patch_size,) * 2

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]. features: not looked at."""
        allowed = self.allowed(images, mask_logits)
        embeds = self.regions(self.shared(self.view(images)), allowed)
        return Regions(embeds=embeds, valid=self.valid(images, mask_logits, allowed))

    def view(self, images: Images) -> Tensor:
        """Pictures as the tower sees them, [B, 3, side, side], normalised."""
        pixels = normalise(images, CLIP_MEAN, CLIP_STD)
        squares = [
            resize(x[None, :, :height, :width], (self.side, self.side))
            for x, (height, width) in zip(pixels, _padded(images), strict=True)
        ]
        return torch.cat(squares)

    @torch.no_grad()
    def allowed(self, images: Images, mask_logits: Tensor) -> Tensor:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> bool [B, Q, P]: the patches a mask may look at."""
        return self.masks(images, mask_logits).flatten(2) >= self.threshold

    @torch.no_grad()
    def masks(self, images: Images, mask_logits: Tensor) -> Tensor:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> probabilities [B, Q, *grid_hw] on the patches."""
        frames = images.sizes_hw if self.mask_frame == "picture" else _padded(images)
        pairs = zip(mask_logits.float(), frames, strict=True)
        return torch.stack([probs_on_grid(x, images.canvas_hw, frame_hw, self.grid_hw) for x, frame_hw in pairs])

    def valid(self, images: Images, mask_logits: Tensor, allowed: Tensor) -> Tensor:
        """bool [B, Q]: the masks that are anywhere, by the rule `seen_by`."""
        if self.seen_by == "patch":
            return allowed.any(-1)
        rows = []
        for masks, (height, width) in zip(mask_logits, images.sizes_hw, strict=True):
            on_canvas = resize(masks[None], images.canvas_hw)[0, :, :height, :width]
            rows.append((on_canvas > 0).flatten(1).any(-1))
        return torch.stack(rows)

    def shared(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, side, side], normalised -> tokens [B, 1 + P, W] before the first block that knows masks."""
        tokens = self.tower.enter(pixels)
        for block in self.tower.blocks[: self.first_block]:
            tokens = block(tokens)
        return tokens

    def whole(self, tokens: Tensor) -> Tensor:
        """What CLIP itself makes of the picture, without masks: tokens of `shared` -> [B, D], not normalised."""
        *blocks, last = self.tower.blocks[self.first_block :]
        for block in blocks:
            tokens = block(tokens)
        return self.tower.end(last(tokens, first=1)[:, 0])

    def regions(self, tokens: Tensor, allowed: Tensor) -> Tensor:
        """Tokens of `shared`, allowed bool [B, Q, P] -> [B, Q, D], not normalised."""
        patches = tokens[:, 1:]
        mask_tokens = tokens[:, :1].expand(-1, allowed.shape[1], -1)
        *blocks, last = self.tower.blocks[self.first_block :]
        for block in blocks:
            mask_tokens, patches = look_inside(block, mask_tokens, patches, allowed)
        return self.tower.end(look_inside(last, mask_tokens, patches, allowed, only_tokens=True)[0])


def look_inside(
    block: Any, mask_tokens: Tensor, patches: Tensor, allowed: Tensor, only_tokens: bool = False
) -> tuple[Tensor, Tensor]:
    """mask_tokens [B, Q, W] and patches [B, P, W] before a block, allowed bool [B, Q, P] -> both after it.

    only_tokens: the patches are not needed any more and come back as they were.
    """
    attention, own, normed = block.attn, block.ln_1(mask_tokens), block.ln_1(patches)
    key, value = attention.project("k", normed), attention.project("v", normed)  # [B, heads, P, d]
    query, own_key, own_value = (attention.project(part, own) for part in "qkv")  # [B, heads, Q, d]
    query = query * query.shape[-1] ** -0.5
    scores = (query @ key.transpose(-2, -1)).masked_fill(~allowed[:, None], -torch.inf)  # [B, heads, Q, P]
    own_score = (query * own_key).sum(dim=-1, keepdim=True)  # each sees itself, so that no row is without a place
    weights = torch.cat((own_score, scores), dim=-1).softmax(dim=-1)
    found = weights[..., 1:] @ value + weights[..., :1] * own_value
    mask_tokens = block.finish(mask_tokens + attention.join(found))
    if not only_tokens:
        patches = block.finish(patches + attention.attend(attention.project("q", normed), key, value))
    return mask_tokens, patches


def _padded(images: Images) -> list[Size]:
    """The size of each picture with the padding that it would have alone."""
    height, width = images.canvas_hw
    sides = (round_up(size_hw, PADDED_TO) for size_hw in images.sizes_hw)
    return [(min(h, height), min(w, width)) for h, w in sides]

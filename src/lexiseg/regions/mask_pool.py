"""Mask pooling: a region is the mean of CLIP's map inside its mask."""

from __future__ import annotations

from torch import Tensor, nn

from lexiseg.layers.dense_projection import DenseOrder, project_dense
from lexiseg.layers.mask_pooling import inside_masks, mean_inside
from lexiseg.types import Features, Images, Regions


class MaskPool(nn.Module):
    """Mean of the dense CLIP map inside each mask, projected to the joint space.

    FC-CLIP, section 3.2. A pixel is inside when its mask logit is above zero, so gradients reach the CLIP map and
    never the generator. An empty mask keeps its row with `valid` false: row q is the same proposal in every stage.
    """

    def __init__(self, projection: nn.Module, dense_order: DenseOrder | None = None) -> None:
        """projection: [..., C] -> [..., D], the head CLIP applies to its own pooled map. dense_order: how
        `Regions.dense_embeds` is made, for scorers that read it; None leaves it out."""
        super().__init__()
        self.projection = projection
        self.dense_order: DenseOrder | None = dense_order

    def forward(self, images: Images, features: Features, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]."""
        h, w = features.dense.shape[-2:]
        inside = inside_masks(mask_logits, (h, w))  # [B, Q, h, w]
        pooled = mean_inside(features.dense, inside)  # [B, Q, C]
        order = self.dense_order
        return Regions(
            embeds=self.projection(pooled),
            valid=inside.flatten(2).any(dim=-1),
            dense_embeds=None if order is None else project_dense(features.dense, self.projection, order),
        )

"""Mask pooling under soft masks, with the whole tower inside.

MaskCLIP++ (arXiv 2412.11464). Parameter names below the embedder:

    trunk.trunk.*                                    the tower, by the names of timm
    projection.{norm, head.*}                        CLIP's head, see `clip.projection`
"""

from __future__ import annotations

from torch import Tensor, nn

from lexiseg.geometry import TowerView
from lexiseg.layers.dense_projection import project_dense
from lexiseg.layers.mask_pooling import is_seen, soft_mean
from lexiseg.types import Features, Images, Regions


class SoftMaskPool(nn.Module):
    """Each proposal as the mean of a CLIP's own map under its soft mask, projected to the joint space.

    The tower sees the picture at its own size. No threshold: probabilities weigh the cells. An empty mask is a mean of
    zeros, projected like any other, with `valid` false.
    """

    def __init__(self, view: TowerView, trunk: nn.Module, projection: nn.Module, shows_picture: bool = True) -> None:
        """trunk(images) -> Features. projection: [..., C] -> [..., D], the head of that CLIP. shows_picture: give
        `Regions.dense_embeds` too, every position projected, for scorers that read it."""
        super().__init__()
        self.view = view
        self.trunk = trunk
        self.projection = projection
        self.shows_picture = shows_picture

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]. features are not looked at."""
        view = self.view(images)
        dense = self.trunk(view).dense
        grid_hw = (dense.shape[-2], dense.shape[-1])
        masks = self.view.masks(mask_logits.detach().sigmoid(), images, view, grid_hw)
        return Regions(
            embeds=self.projection(soft_mean(dense, masks)),
            valid=is_seen(masks),
            dense_embeds=project_dense(dense, self.projection, "position") if self.shows_picture else None,
        )

"""MAFT+: FC-CLIP's mask generator on a CLIP that was tuned for regions, and words fitted to every picture.

Paper: Collaborative Vision-Text Representation Optimizing for Open-Vocabulary Segmentation (ECCV 2024, arXiv
2408.00744). Code licence of the original: MIT; this is an implementation from the paper and a specification.
"""

from __future__ import annotations

from typing import Any

import torch

from lexiseg.clip.open_clip import build_image_tower, clip_config
from lexiseg.layers.dense_projection import DenseOrder
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.scoring.fusion import RegionWithVoid
from lexiseg.scoring.image_conditioned import ContentDependentTransfer, ImageConditioned, NormOrder
from lexiseg.system import System

OBJECT_MASK_THRESHOLD, OVERLAP_THRESHOLD = 0.2, 0.7
"""Of the released panoptic model. FC-CLIP's are 0 and 0.8."""


def maftplus(
    tower: str | dict[str, Any],
    *,
    norm_order: NormOrder = "after_sum",
    dense_order: DenseOrder = "memory",
    num_queries: int = 100,
    transfer_heads: int = 8,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """The system of the released models, or a smaller one by other numbers.

    tower: a name or a configuration of open_clip. norm_order: "after_sum" for the released semantic models,
    "before_sum" for the panoptic one, whatever output is asked for. dense_order: "memory" for all released weights, an
    accident they were trained with (see `layers.dense_projection`); "position" is for weights trained so. generator:
    arguments of `fcclip_generator`. On the meta device nothing is allocated; on a real one the weights are random.
    """
    parts = build_image_tower(tower, device=device)
    if parts.projection is None:
        raise ValueError("MAFT+ projects every position of CLIP's map; the attention pooling of a CLIP ResNet cannot")
    embed_dim = clip_config(tower)["embed_dim"]
    with torch.device(device):
        return System(
            encoder=parts.trunk,
            generator=fcclip_generator(parts.trunk.channels, embed_dim, num_queries=num_queries, **generator),
            embedder=MaskPool(parts.projection, dense_order).requires_grad_(False),
            scorer=ImageConditioned(ContentDependentTransfer(embed_dim, transfer_heads, norm_order)),
            fuse=RegionWithVoid(),
        )

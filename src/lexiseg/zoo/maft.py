"""MAFT: FreeSeg's masks, read by a CLIP transformer that gives every mask a class token of its own.

Paper: Learning Mask-aware CLIP Representations for Zero-Shot Segmentation (NeurIPS 2023, arXiv 2310.00240). Licence of
the original's code: see its page; this is an implementation from the paper and a specification.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from lexiseg.clip.open_clip import build_vision_transformer, clip_config
from lexiseg.images import Canvas
from lexiseg.proposals.freeseg import freeseg_generator
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.mask_bias import MaskBiasedAttention, MaskFrame, SeenBy
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.fusion import PowerProduct, RegionOnly
from lexiseg.system import System
from lexiseg.zoo.ovseg import build_backbone

CANVAS = Canvas(short_edge=640, long_edge=2560)

SIDE, FIRST_BLOCK = 480, 8
"""Of `MaskBiasedAttention`, for every released tower: the settings that seem to choose the block are never read."""


def maft(
    tower: str | dict[str, Any],
    *,
    backbone: str | dict[str, Any] = "resnet101c",
    clip_weight: float = 0.0,
    side: int = SIDE,
    first_block: int = FIRST_BLOCK,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """The system of the released models, or a smaller one by other numbers.

    tower: one of OpenAI's CLIP transformers, a name or a configuration of open_clip; trained or not. backbone: of the
    generator, see `zoo.ovseg.build_backbone`. clip_weight: exponent of CLIP's scores for classes that the generator was
    not trained with, and of the generator's for the others; 0 stands for CLIP alone, as published. side, first_block:
    of `MaskBiasedAttention`. generator: arguments of `freeseg_generator`. On the meta device nothing is allocated; on a
    real one the weights are random.
    """
    alone = clip_weight == 0
    return System(
        None,
        _freeseg(tower, backbone, device, generator),
        _tower(tower, side, first_block, device, "padded", "patch" if alone else "pixel"),
        _similarity(),
        RegionOnly(only_valid=False) if alone else PowerProduct(clip_weight, seen_weight=1 - clip_weight),
    )


def freeseg(
    tower: str | dict[str, Any],
    *,
    backbone: str | dict[str, Any] = "resnet101c",
    clip_weight: float = 0.0,
    side: int = SIDE,
    first_block: int = FIRST_BLOCK,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """What MAFT starts from and is compared with: the same before CLIP was tuned, with two differences.

    Masks without a pixel are left out, and CLIP's masks are those of the picture while it sees the padding too. The
    arguments are those of `maft`; FreeSeg's own default for clip_weight is 0.8, what MAFT's authors published is 0.
    """
    return System(
        None,
        _freeseg(tower, backbone, device, generator),
        _tower(tower, side, first_block, device, "picture", "pixel"),
        _similarity(),
        PowerProduct(clip_weight, seen_weight=1 - clip_weight) if clip_weight else RegionOnly(),
    )


def maft_given(
    tower: str | dict[str, Any],
    *,
    side: int = SIDE,
    first_block: int = FIRST_BLOCK,
    device: str | torch.device = "meta",
) -> System:
    """The tower alone, for masks that come with the pictures or from any other generator. The arguments are those of
    `maft`."""
    embedder = _tower(tower, side, first_block, device, "padded", "patch")
    return System(None, GivenMasks(), embedder, _similarity(), RegionOnly())


def _freeseg(
    tower: str | dict[str, Any], backbone: str | dict[str, Any], device: str | torch.device, sizes: dict[str, int]
) -> nn.Module:
    with torch.device(device):
        maps = build_backbone(backbone)
        return OwnBackbone(maps, freeseg_generator(maps.channels, clip_config(tower)["embed_dim"], **sizes))


def _tower(
    tower: str | dict[str, Any],
    side: int,
    first_block: int,
    device: str | torch.device,
    mask_frame: MaskFrame,
    seen_by: SeenBy,
) -> MaskBiasedAttention:
    vision = build_vision_transformer(tower, device=device).requires_grad_(False)
    return MaskBiasedAttention(vision, side=side, first_block=first_block, mask_frame=mask_frame, seen_by=seen_by)


def _similarity() -> Cosine:
    # The factor is a constant; CLIP's own scale is in the files and not read.
    return Cosine(math.log(100), stored=False)

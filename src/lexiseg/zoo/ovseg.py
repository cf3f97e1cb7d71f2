"""OVSeg: a mask generator that compares with words, and a CLIP adapted to masked crops that looks at every mask alone.

Paper: Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150). Licence of the
original's code and weights: CC BY-NC 4.0; this is an implementation from the paper and a specification, and what is
computed with the released weights is for non-commercial use only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from lexiseg.backbones.resnet import ResNet
from lexiseg.backbones.swin import Swin
from lexiseg.clip.open_clip import build_crop_tower, clip_config
from lexiseg.images import Canvas
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.maskformer import maskformer_generator
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.crops import Fill, MaskedCrops
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.fusion import PowerProduct, RegionOnly
from lexiseg.system import System
from lexiseg.zoo.mask2former import SWIN, build_swin

SMALL_CANVAS = Canvas(short_edge=512, long_edge=2048)
LARGE_CANVAS = Canvas(short_edge=640, long_edge=2560)
GIVEN_CANVAS = Canvas(short_edge=1280, long_edge=1280)
"""For masks of another generator: the long edge becomes 1280, as in the released demonstration with SAM."""

SMALL_THRESHOLD, LARGE_THRESHOLD, USER_WORDS_THRESHOLD = 0.5, 0.4, 0.35
"""Of the masks that are cut out; the last one with words of a user's own, where CLIP decides alone."""

CLIP_WEIGHT = 0.7
"""On ADE20K, with 150 classes and with 847. Pascal Context was scored with 0.6, Pascal VOC with 0.45."""

GRANULARITY = 0.8
"""Of the released demonstration with SAM: its examples have 0.7 to 0.8."""

Verdict = Literal["both", "clip"]
"""Who tells the class: the generator and CLIP, or CLIP alone, as in the released demonstration with a user's words."""


def ovseg(
    tower: str | dict[str, Any],
    *,
    backbone: str | dict[str, Any],
    verdict: Verdict = "both",
    clip_weight: float = CLIP_WEIGHT,
    threshold: float = LARGE_THRESHOLD,
    prompt_depth: int = 3,
    fill: Fill = "mean",
    matting: bool = False,
    expansion: float = 1.0,
    crops_at_once: int = 32,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """The system of the released models, or a smaller one by other numbers.

    tower: one of OpenAI's CLIP transformers, a name or a configuration of open_clip. backbone: of the generator,
    "resnet101c", a name of `zoo.mask2former.SWIN`, or the arguments of `ResNet` or `Swin`. clip_weight: exponent of
    CLIP's scores where both decide. prompt_depth: 0 for a CLIP that was only fine-tuned. threshold, fill, matting,
    expansion: of `MaskedCrops`. generator: arguments of `maskformer_generator`. On the meta device nothing is
    allocated; on a real one the weights are random.
    """
    crops = _crops(tower, prompt_depth, device, threshold, fill, matting, expansion, crops_at_once)
    with torch.device(device):
        maps = build_backbone(backbone)
        head = maskformer_generator(maps.channels, clip_config(tower)["embed_dim"], **generator)
    fuse: nn.Module = PowerProduct(clip_weight) if verdict == "both" else RegionOnly()
    # The factor is a constant: CLIP's own scale, which prompt tuning moves, was used in training alone.
    return System(None, OwnBackbone(maps, head), crops, Cosine(math.log(100), stored=False), fuse)


def ovseg_given(
    tower: str | dict[str, Any],
    *,
    threshold: float = SMALL_THRESHOLD,
    prompt_depth: int = 0,
    fill: Fill = "mean",
    matting: bool = False,
    expansion: float = 1.0,
    crops_at_once: int = 32,
    crop_side: int | None = None,
    device: str | torch.device = "meta",
) -> System:
    """The adapted CLIP alone, for masks that come with the pictures or from any other generator.

    The arguments are those of `ovseg`; here the CLIP may be a ConvNet too, which is shown crops of any side: crop_side.
    The released demonstration with SAM has a CLIP that was only fine-tuned.
    """
    crops = _crops(tower, prompt_depth, device, threshold, fill, matting, expansion, crops_at_once, crop_side)
    return System(None, GivenMasks(), crops, Cosine(math.log(100), stored=False), RegionOnly())


def _crops(
    tower: str | dict[str, Any],
    prompt_depth: int,
    device: str | torch.device,
    threshold: float,
    fill: Fill,
    matting: bool,
    expansion: float,
    crops_at_once: int,
    crop_side: int | None = None,
) -> MaskedCrops:
    vision = build_crop_tower(tower, prompt_depth=prompt_depth, side=crop_side, device=device).requires_grad_(False)
    return MaskedCrops(
        vision, threshold=threshold, fill=fill, matting=matting, expansion=expansion, at_once=crops_at_once
    )


def build_backbone(backbone: str | Mapping[str, Any]) -> ResNet | Swin:
    """A backbone by its name, or by the arguments of its class: a Swin's have a window."""
    if backbone == "resnet101c":
        return ResNet()
    if isinstance(backbone, str) and backbone not in SWIN:
        raise ValueError(f"no backbone is called {backbone!r}: choose one of resnet101c, {', '.join(SWIN)}")
    if isinstance(backbone, str) or "window" in backbone:
        return build_swin(backbone)
    return ResNet(**backbone)

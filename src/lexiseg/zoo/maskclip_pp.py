"""MaskCLIP++: a CLIP tuned to name given masks, behind any generator of masks.

Paper: High-Quality Mask Tuning Matters for Open-Vocabulary Segmentation (arXiv 2412.11464). Code licence of the
original: Apache-2.0; this is an implementation from the paper and a specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from lexiseg.clip.open_clip import build_image_tower, build_transformer_tower, clip_config, is_transformer
from lexiseg.geometry import TowerView
from lexiseg.proposals.closed_set import ClosedSet
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.regions.masked_attention import SoftAttentionPool, SoftMaskedAttention2d
from lexiseg.regions.soft_mask_pool import SoftMaskPool
from lexiseg.scoring.fusion import FLOOR, GeometricEnsemble, RegionOnly, RegionWithVoid
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.scoring.template_mix import TemplateMean, TemplateMix
from lexiseg.system import System
from lexiseg.zoo.mask2former import mask2former

Tower = str | dict[str, Any]
Similarity = Literal["pseudo-text", "template-mix", "template-mean"]
"""How regions are compared with words: by words that have looked at the picture, by templates weighed as trained, or by
the mean of the templates, which is CLIP as it came."""


def maskclip_pp(
    tower: Tower,
    *,
    generator_tower: Tower,
    short_edge: int,
    similarity: Similarity | None = None,
    num_templates: int = 14,
    mix_width: int = 768,
    mask_blocks: int = 3,
    alpha: float | None = None,
    beta: float = 1.0,
    num_queries: int = 250,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """A classifier behind FC-CLIP's generator or MAFT+'s: the system of the released models, or a smaller one.

    tower: the classifier, a name or a configuration of open_clip. generator_tower: the CLIP whose maps the generator
    reads. short_edge: of the classifier's view. similarity: None for what the released classifiers of that family
    have. num_templates, mix_width: of "template-mix". mask_blocks: last blocks of a transformer that have mask tokens.
    alpha, beta: the weight of the classifier's verdict for classes seen in training and for the others; without alpha
    the generator is asked about void alone. generator: arguments of `fcclip_generator`. On the meta device nothing is
    allocated; on a real one the weights are random.
    """
    backbone = build_image_tower(generator_tower, device=device).trunk
    with torch.device(device):
        head = fcclip_generator(
            backbone.channels, clip_config(generator_tower)["embed_dim"], num_queries=num_queries, **generator
        )
    embedder, scorer = mask_classifier(tower, short_edge, similarity, num_templates, mix_width, mask_blocks, device)
    return System(None, OwnBackbone(backbone, head), embedder, scorer, _fusion(alpha, beta))


def maskclip_pp_mask2former(
    tower: Tower,
    *,
    swin: str | dict[str, Any],
    short_edge: int,
    similarity: Similarity | None = None,
    num_templates: int = 14,
    mix_width: int = 768,
    mask_blocks: int = 3,
    alpha: float | None = None,
    beta: float = 1.0,
    num_classes: int = 133,
    num_queries: int = 100,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """A classifier behind Mask2Former, whose own classes become those of the vocabulary where they share a word.

    swin: see `zoo.mask2former.mask2former`, which takes num_classes, num_queries and generator. The other arguments are
    those of `maskclip_pp`.
    """
    masks = mask2former(swin, num_classes=num_classes, num_queries=num_queries, device=device, **generator)
    embedder, scorer = mask_classifier(tower, short_edge, similarity, num_templates, mix_width, mask_blocks, device)
    return System(None, ClosedSet(masks), embedder, scorer, _fusion(alpha, beta))


def maskclip_pp_given(
    tower: Tower,
    *,
    short_edge: int,
    similarity: Similarity | None = None,
    num_templates: int = 14,
    mix_width: int = 768,
    mask_blocks: int = 3,
    device: str | torch.device = "meta",
) -> System:
    """A classifier alone, for masks that come with the pictures. The arguments are those of `maskclip_pp`."""
    embedder, scorer = mask_classifier(tower, short_edge, similarity, num_templates, mix_width, mask_blocks, device)
    return System(None, GivenMasks(), embedder, scorer, RegionOnly())


def mask_classifier(
    tower: str | Mapping[str, Any],
    short_edge: int,
    similarity: Similarity | None = None,
    num_templates: int = 14,
    mix_width: int = 768,
    mask_blocks: int = 3,
    device: str | torch.device = "meta",
) -> tuple[nn.Module, nn.Module]:
    """Embedder and scorer: all of a classifier but its words. The arguments are those of `maskclip_pp`."""
    embed_dim = clip_config(tower)["embed_dim"]
    embedder: nn.Module
    if is_transformer(tower):
        if similarity == "pseudo-text":
            raise ValueError("pseudo-text reads the projected map of a convolutional tower; a transformer gives none")
        trunk = build_transformer_tower(tower, device=device)
        usual: Similarity = "template-mix"
        with torch.device(device):
            view = TowerView("short", short_edge, trunk.patch_size)
            embedder = MaskTokens(view, trunk, trunk.depth - mask_blocks)
    else:
        parts = build_image_tower(tower, device=device)
        usual = "template-mix" if parts.projection is None else "pseudo-text"
        view = TowerView("short", short_edge, 32)
        if parts.projection is not None:
            shows_picture = (similarity or usual) == "pseudo-text"
            embedder = SoftMaskPool(view, parts.trunk, parts.projection, shows_picture)
        elif similarity == "pseudo-text":
            raise ValueError("pseudo-text reads CLIP's map in the joint space; the pooling of a CLIP ResNet has none")
        else:
            with torch.device(device):
                pool = SoftMaskedAttention2d(**(parts.attention_pool or {}))
            embedder = SoftAttentionPool(view, parts.trunk, pool)
    with torch.device(device):
        scorer = similarity_model(similarity or usual, embed_dim, num_templates, mix_width)
    return embedder.requires_grad_(False), scorer.requires_grad_(False)


def similarity_model(
    kind: Similarity, embed_dim: int, num_templates: int = 14, mix_width: int = 768
) -> PseudoText | TemplateMix | TemplateMean:
    """What compares regions with words. The arguments are those of `maskclip_pp`; embed_dim D."""
    match kind:
        case "pseudo-text":
            return PseudoText(embed_dim)
        case "template-mix":
            return TemplateMix(num_templates, mix_width)
        case "template-mean":
            return TemplateMean()


def _fusion(alpha: float | None, beta: float) -> nn.Module:
    return RegionWithVoid() if alpha is None else GeometricEnsemble(alpha, beta, floor=FLOOR)

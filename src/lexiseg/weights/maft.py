"""The official checkpoint layout of MAFT and of the FreeSeg it starts from, as detectron2's checkpointer wrote it.

Source of the names: the published checkpoints of jiaosiyu1999/MAFT at commit bb6e8fe (names and shapes only). One file
holds the mask generator with its backbone, a whole CLIP as OpenAI published it, and for MAFT the tuned image tower and
one more copy of CLIP's that nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lexiseg.weights.mask2former import BACKBONE, DECODER, PIXEL_DECODER, describe_decoders
from lexiseg.weights.ovseg import describe_backbone, describe_tower
from lexiseg.weights.rules import ConversionError, Ignored, Rule, shape_of

CLIP = "clip_adapter.clip_model."
VISUAL = CLIP + "visual."
VOID = "clip_adapter.non_object_embedding"
INTERACTION = "sem_seg_head.interaction."
TUNED = "IPCLIP."
"""The image tower of MAFT."""

GENERATOR_RULES = (
    Rule(BACKBONE + "{*}", "generator.backbone.{*}"),
    Rule(PIXEL_DECODER + "{*}", "generator.head.pixel_decoder.{*}"),
    Rule(INTERACTION + "{*}", "generator.head.interaction.{*}"),
    Rule(DECODER + "static_query.{*}", "generator.head.decoder.query_feat.{*}"),  # its name in older files
    Rule(DECODER + "{*}", "generator.head.decoder.{*}"),
    Rule(VOID, "generator.head.void_embedding.weight"),
)

MAFT_RULES = (*GENERATOR_RULES, Rule(TUNED + "{*}", "embedder.tower.{*}"))
FREESEG_RULES = (*GENERATOR_RULES, Rule(VISUAL + "{*}", "embedder.tower.{*}"))

_ALWAYS_IGNORED = (
    Ignored("criterion.empty_weight", "class weights of the training loss"),
    Ignored("clip_adapter.pixel_mean", "CLIP's constants for photos, which are in the code"),
    Ignored("clip_adapter.pixel_std", "CLIP's constants for photos, which are in the code"),
    Ignored(CLIP + "logit_scale", "the released models are scored with a constant factor of 100"),
    Ignored("T.{*}", "a copy of CLIP's image tower that nothing reads"),
)
MAFT_IGNORED = (*_ALWAYS_IGNORED, Ignored(VISUAL + "{*}", "CLIP's image tower before it was tuned"))
FREESEG_IGNORED = (*_ALWAYS_IGNORED, Ignored(TUNED + "{*}", "the tuned image tower of MAFT"))


def is_official(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of MAFT or FreeSeg, judged by the parts only they have."""
    return all(any(name.startswith(part) for name in source) for part in (VISUAL, VOID, INTERACTION))


def is_tuned(source: Mapping[str, Tensor]) -> bool:
    """Whether MAFT's own image tower is there."""
    return any(name.startswith(TUNED) for name in source)


def describe(source: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `zoo.maft.maft` that names and shapes tell: all but heads and settings of inference.

    Raises `ConversionError` where a tensor it needs is absent.
    """
    sizes = describe_decoders(source)
    if sizes.pop("mask_width") != sizes["width"]:
        raise ConversionError("mask features as wide as the queries are needed: the words are shown to both alike")
    return {
        "tower": describe_tower(source, CLIP),
        "backbone": describe_backbone(source),
        **sizes,
        "class_width": shape_of(source, DECODER + "class_embed.layers.0.weight")[0],
        "interaction_width": shape_of(source, INTERACTION + "attn.q_proj.weight")[0],
    }

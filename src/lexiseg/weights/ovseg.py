"""The official OVSeg checkpoint layout, as detectron2's checkpointer wrote it.

Source of the names: the published checkpoints of facebookresearch/ov-seg at commit 36f49d4 (names and shapes only). One
file holds the mask generator with its backbone and a whole CLIP, text tower included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from lexiseg.weights.mask2former import BACKBONE, DECODER, PIXEL_DECODER, describe_swin
from lexiseg.weights.rules import ConversionError, Ignored, Rule, count_names, shape_of

CLIP = "clip_adapter.clip_model."
VISUAL = CLIP + "visual."
VOID = "clip_adapter.non_object_embedding"

OFFICIAL_LAYER = DECODER + "transformer.decoder.layers.{}."
LAYER = "generator.head.decoder.layers.{}."

SYSTEM_RULES = (
    Rule(BACKBONE + "{*}", "generator.backbone.{*}"),
    Rule(PIXEL_DECODER + "{*}", "generator.head.pixel_decoder.{*}"),
    Rule(OFFICIAL_LAYER + "self_attn.{*}", LAYER + "self_attention.self_attn.{*}"),
    Rule(OFFICIAL_LAYER + "norm1.{*}", LAYER + "self_attention.norm.{*}"),
    Rule(OFFICIAL_LAYER + "multihead_attn.{*}", LAYER + "cross_attention.multihead_attn.{*}"),
    Rule(OFFICIAL_LAYER + "norm2.{*}", LAYER + "cross_attention.norm.{*}"),
    Rule(OFFICIAL_LAYER + "norm3.{*}", LAYER + "feed_forward.norm.{*}"),
    Rule(OFFICIAL_LAYER + "{*}", LAYER + "feed_forward.{*}"),
    Rule(DECODER + "transformer.decoder.norm.{*}", "generator.head.decoder.norm.{*}"),
    Rule(DECODER + "{*}", "generator.head.decoder.{*}"),
    Rule("sem_seg_head.{*}", "generator.head.pixel_decoder.{*}"),  # as older files name it
    Rule(VOID, "generator.head.void_embedding.weight"),
    Rule(VISUAL + "{*}", "embedder.tower.{*}"),
)

IGNORED = (
    Ignored(BACKBONE + "layers.{}.blocks.{}.attn.relative_position_index", "follows from the size of the window"),
    Ignored("criterion.empty_weight", "class weights of the training loss"),
    Ignored("clip_adapter.pixel_mean", "CLIP's constants for photos, which are in the code"),
    Ignored("clip_adapter.pixel_std", "CLIP's constants for photos, which are in the code"),
    Ignored(CLIP + "logit_scale", "the released models are scored with a constant factor of 100"),
)

CLIP_RULES = (Rule("visual.{*}", "embedder.tower.{*}"),)
"""Of an adapted CLIP that was published alone, under OpenAI's own names."""

CLIP_IGNORED = (Ignored("logit_scale", "the released models are scored with a constant factor of 100"),)

PROMPTS = "visual.mask_embedding"

BACKBONES: dict[tuple[int, ...], str] = {(3, 4, 23, 3): "resnet101c"}
"""Blocks of a ResNet -> its name, if its width is 64."""

TOWERS: dict[tuple[int, ...], str] = {
    (768, 12, 16, 224, 512, 512, 12): "ViT-B-16-quickgelu",
    (1024, 24, 14, 224, 768, 768, 12): "ViT-L-14-quickgelu",
}
"""Width, blocks, patch, side of the picture, joint width, width and blocks of the text tower -> open_clip name."""

HEAD_WIDTH = 64
"""Of every CLIP of OpenAI; no shape tells it."""


def is_official(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an official OVSeg checkpoint, judged by the parts only it has."""
    return all(any(name.startswith(part) for name in source) for part in (VISUAL, VOID, DECODER + "transformer."))


def is_clip(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of one of OpenAI's transformers alone, adapted or not."""
    return all(name in source for name in ("visual.class_embedding", "visual.ln_pre.weight", "token_embedding.weight"))


def with_clip(segmenter: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole checkpoint with another CLIP in it: what training the parts one after the other ends with.

    A CLIP without prompts makes a model without them: prompts belong to the CLIP that they were trained with.
    """
    if not is_official(segmenter) or not is_clip(clip):
        raise ConversionError("needed are an OVSeg checkpoint and a CLIP under OpenAI's names")
    kept = {name: tensor for name, tensor in segmenter.items() if name != CLIP + PROMPTS}
    others = [name for name in clip if name != PROMPTS and CLIP + name not in kept]
    differing = [name for name in clip if CLIP + name in kept and clip[name].shape != kept[CLIP + name].shape]
    lacking = [name for name in kept if name.startswith(CLIP) and name.removeprefix(CLIP) not in clip]
    if others or differing or lacking:
        shown = ", ".join((others + differing + lacking)[:5])
        raise ConversionError(
            f"{len(others)} tensors of the CLIP are not in the checkpoint, {len(lacking)} of it not in the CLIP, and "
            f"{len(differing)} have another shape ({shown}): this is another tower"
        )
    return kept | {CLIP + name: tensor for name, tensor in clip.items()}


def is_prompts(source: Mapping[str, Tensor]) -> bool:
    """Whether these are the mask prompts of a CLIP, trained by themselves, and nothing else."""
    return set(source) == {PROMPTS}


def with_parts(source: Mapping[str, Tensor], parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A checkpoint, or a CLIP alone, with what was trained one after the other: whole CLIPs and prompts, in order."""
    joined = dict(source)
    for part in parts:
        joined = with_prompts(joined, part) if is_prompts(part) else with_clip(joined, part)
    return joined


def with_prompts(source: Mapping[str, Tensor], prompts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same CLIP with these prompts in the place of its own, or of none."""
    clip = CLIP if is_official(source) else ""
    if not clip and not is_clip(source):
        raise ConversionError("needed are an OVSeg checkpoint or a CLIP under OpenAI's names to put the prompts into")
    given = shape_of(prompts, PROMPTS, 3)
    places, width = shape_of(source, clip + "visual.positional_embedding", 2)
    if given[1] not in (1, places - 1) or given[2] != width:
        raise ConversionError(
            f"prompts for {given[1]} places of {given[2]} channels, but the CLIP has {places - 1} of {width}: they "
            "were trained with another tower"
        )
    return dict(source) | {clip + PROMPTS: prompts[PROMPTS]}


def has_swin(source: Mapping[str, Tensor]) -> bool:
    """Whether the generator's backbone is a Swin, as in the large model, and not a ResNet."""
    return BACKBONE + "patch_embed.proj.weight" in source


def describe(source: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `zoo.ovseg.ovseg` that names and shapes tell: all but heads and settings of inference.

    Raises `ConversionError` where a tensor it needs is absent.
    """
    num_queries, decoder_width = shape_of(source, DECODER + "query_embed.weight", 2)
    return {
        **describe_clip(source, CLIP),
        "backbone": describe_backbone(source),
        "width": shape_of(source, PIXEL_DECODER + "layer_4.weight")[0],
        "mask_width": shape_of(source, PIXEL_DECODER + "mask_features.weight")[0],
        "num_queries": num_queries,
        "decoder_width": decoder_width,
        "decoder_layers": count_names(source, OFFICIAL_LAYER + "norm1.weight"),
        "decoder_ffn_width": shape_of(source, OFFICIAL_LAYER.replace("{}", "0") + "linear1.weight")[0],
        "class_width": shape_of(source, DECODER + "class_embed.layers.0.weight")[0],
    }


def describe_clip(source: Mapping[str, Tensor], clip: str = "") -> dict[str, Any]:
    """Tower and depth of the prompts of a CLIP whose names begin with `clip`."""
    prompts = clip + PROMPTS
    depth = shape_of(source, prompts, 3)[0] if prompts in source else 0
    return {"tower": describe_tower(source, clip), "prompt_depth": depth}


def describe_tower(source: Mapping[str, Tensor], clip: str = "") -> str | dict[str, Any]:
    """The CLIP: its open_clip name, or its configuration in open_clip's format."""
    visual = clip + "visual."
    width, _, patch, _ = shape_of(source, visual + "conv1.weight", 4)
    side = patch * isqrt(shape_of(source, visual + "positional_embedding", 2)[0] - 1)
    layers = count_names(source, visual + "transformer.resblocks.{}.ln_1.weight")
    text_width, joint_width = shape_of(source, clip + "text_projection", 2)
    text_layers = count_names(source, clip + "transformer.resblocks.{}.ln_1.weight")
    named = TOWERS.get((width, layers, patch, side, joint_width, text_width, text_layers))
    if named is not None:
        return named
    return {
        "embed_dim": joint_width,
        "quick_gelu": True,
        "vision_cfg": {"image_size": side, "layers": layers, "width": width, "patch_size": patch},
        "text_cfg": {
            "context_length": shape_of(source, clip + "positional_embedding", 2)[0],
            "vocab_size": shape_of(source, clip + "token_embedding.weight", 2)[0],
            "width": text_width,
            "heads": text_width // HEAD_WIDTH,
            "layers": text_layers,
        },
    }


def describe_backbone(source: Mapping[str, Tensor]) -> str | dict[str, Any]:
    """The generator's backbone: its name, or its sizes."""
    if not has_swin(source):
        depths = tuple(count_names(source, BACKBONE + f"res{stage}.{{}}.conv1.weight") for stage in range(2, 6))
        width = shape_of(source, BACKBONE + "stem.conv1.weight")[0]
        if width == 64 and depths in BACKBONES:
            return BACKBONES[depths]
        return {"depths": list(depths), "width": width, "last_dilations": [2**block for block in range(depths[-1])]}
    found = describe_swin(source)
    sizes = {"width": found.width, "depths": list(found.depths), "heads": list(found.heads), "window": found.window}
    return "swin_base" if tuple(sizes.values()) == (128, [2, 2, 18, 2], [4, 8, 16, 32], 12) else sizes

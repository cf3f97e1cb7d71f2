"""The official FC-CLIP checkpoint layout, as detectron2's checkpointer wrote it.

Source of the names: the published checkpoints of bytedance/fc-clip at commit 2b0bbe2 (names and shapes
only). One file holds both CLIP towers, the pixel decoder, the mask decoder and the void embedding; it
is split into the state dict of the system and that of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from lexiseg.weights import mask2former
from lexiseg.weights.mask2former import DECODER, PIXEL_DECODER
from lexiseg.weights.rules import Conversion, Fresh, Ignored, Rule, convert, count_names, shape_of

CLIP = "backbone.clip_model."

SYSTEM_RULES = (
    # The head's norm sits in the trunk's name space, but it is applied after pooling: it belongs to the projection.
    Rule(CLIP + "visual.trunk.head.norm.{*}", "embedder.projection.norm.{*}"),
    Rule(CLIP + "visual.trunk.{*}", "encoder.trunk.{*}"),
    Rule(CLIP + "visual.head.{*}", "embedder.projection.head.{*}"),
    Rule(CLIP + "visual.attnpool.{*}", "embedder.pool.{*}"),
    Rule(CLIP + "visual.{*}", "encoder.trunk.{*}"),
    Rule(CLIP + "logit_scale", "scorer.logit_scale"),
    Rule(PIXEL_DECODER + "{*}", "generator.pixel_decoder.{*}"),
    Rule(DECODER + "_mask_pooling_proj.{}.{*}", "generator.decoder.mask_pooling_proj.{}.{*}"),
    Rule(DECODER + "{*}", "generator.decoder.{*}"),
    Rule("void_embedding.weight", "generator.void_embedding.weight"),
)


def text_rules(clip: str) -> tuple[Rule, ...]:
    """For the text tower of a CLIP whose names begin with `clip`."""
    names = ("token_embedding.{*}", "transformer.{*}", "ln_final.{*}", "positional_embedding", "text_projection")
    return tuple(Rule(clip + name, name) for name in names)


TEXT_RULES = text_rules(CLIP)

IGNORED = (
    Ignored("criterion.empty_weight", "class weights of the training loss"),
    Ignored(CLIP + "attn_mask", "the causal mask is computed; old releases stored it"),
)

FRESH = (Fresh("{*}.num_batches_tracked", "a counter of training steps, unused by the frozen batch norm"),)


@dataclass(frozen=True)
class Layout:
    """What the shapes of a checkpoint say about the model that wrote it."""

    family: str
    """"convnext" or "resnet"."""
    tower: str | None
    """The open_clip name of the tower; None where no published tower has these shapes."""
    depths: tuple[int, ...]
    """Blocks per stage of the image tower."""
    widths: tuple[int, ...]
    """Channels of the four maps."""
    embed_dim: int
    num_queries: int
    width: int
    """Of queries and tokens."""
    mask_width: int
    encoder_layers: int
    encoder_ffn_width: int
    decoder_layers: int
    decoder_ffn_width: int
    heads_times_points: int
    """Of the deformable attention. No shape tells the number of heads; all released models have 8."""


TOWERS: dict[tuple[str, tuple[int, ...], tuple[int, ...], int], str] = {
    ("resnet", (3, 4, 6, 3), (256, 512, 1024, 2048), 1024): "RN50",
    ("resnet", (3, 4, 23, 3), (256, 512, 1024, 2048), 512): "RN101",
    ("resnet", (4, 6, 10, 6), (320, 640, 1280, 2560), 640): "RN50x4",
    ("resnet", (6, 8, 18, 8), (384, 768, 1536, 3072), 768): "RN50x16",
    ("resnet", (3, 15, 36, 10), (512, 1024, 2048, 4096), 1024): "RN50x64",
    ("convnext", (3, 3, 27, 3), (128, 256, 512, 1024), 640): "convnext_base_w_320",
    ("convnext", (3, 3, 27, 3), (192, 384, 768, 1536), 768): "convnext_large_d_320",
    ("convnext", (3, 4, 30, 3), (384, 768, 1536, 3072), 1024): "convnext_xxlarge",
}
"""(family, depths, widths of the four maps, joint width) -> open_clip name."""


def is_official(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an official FC-CLIP checkpoint, judged by the parts only it has."""
    return all(any(name.startswith(part) for name in source) for part in (CLIP, PIXEL_DECODER, DECODER))


def describe(source: Mapping[str, Tensor]) -> Layout:
    """Reads the architecture off names and shapes; raises `ConversionError` where a tensor it needs is absent."""
    visual = CLIP + "visual."
    if visual + "trunk.stem.0.weight" in source:
        family = "convnext"
        stage_pattern, last_conv = visual + "trunk.stages.{}.blocks.{}.mlp.fc2.weight", "trunk.stages.{}.blocks.0"
        stage_names, width_name = range(4), visual + last_conv + ".mlp.fc2.weight"
    else:
        family = "resnet"
        stage_pattern, width_name = visual + "layer{}.{}.conv3.weight", visual + "layer{}.0.conv3.weight"
        stage_names = range(1, 5)
    depths = tuple(count_names(source, stage_pattern.replace("{}", str(stage), 1)) for stage in stage_names)
    widths = tuple(shape_of(source, width_name.replace("{}", str(stage)))[0] for stage in stage_names)
    embed_dim = shape_of(source, CLIP + "text_projection", 2)[1]
    return Layout(
        family=family,
        tower=TOWERS.get((family, depths, widths, embed_dim)),
        depths=depths,
        widths=widths,
        embed_dim=embed_dim,
        **mask2former.describe_decoders(source),
    )


def convert_official(
    source: Mapping[str, Tensor],
    system: Mapping[str, tuple[int, ...]],
    text: Mapping[str, tuple[int, ...]],
    rules: Sequence[Rule] = SYSTEM_RULES,
    ignored: Sequence[Ignored] = IGNORED,
    clip: str = CLIP,
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """Fills the system's and the text encoder's state dicts (name -> shape) from one official checkpoint.

    rules, ignored: of the layouts that build on this one. clip: how the names of its text tower begin. Returns the
    whole account, whose text targets are prefixed "text.", then the two state dicts.
    """
    words = [Rule(rule.pattern, "text." + rule.target) for rule in text_rules(clip)]
    targets = {**system, **{"text." + name: shape for name, shape in text.items()}}
    account = convert(source, targets, [*rules, *words], ignored, FRESH)
    return (
        account,
        {name: tensor for name, tensor in account.tensors.items() if not name.startswith("text.")},
        {name[5:]: tensor for name, tensor in account.tensors.items() if name.startswith("text.")},
    )

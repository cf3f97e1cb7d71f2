"""The official Mask2Former checkpoint layout, and the names of its two decoders, which many models share.

Source of the names: the published COCO panoptic models with a Swin backbone of facebookresearch/Mask2Former (names and
shapes only). They are pickles of numpy arrays; `weights.files` reads them without unpickling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor

from lexiseg.weights.rules import ConversionError, Ignored, Rule, count_names, shape_of

BACKBONE = "backbone."
PIXEL_DECODER = "sem_seg_head.pixel_decoder."
DECODER = "sem_seg_head.predictor."


def generator_rules(prefix: str) -> tuple[Rule, ...]:
    """For a backbone and a generator that are `backbone` and `head` below `prefix`, which ends in a dot."""
    return (
        Rule(BACKBONE + "{*}", prefix + "backbone.{*}"),
        Rule(PIXEL_DECODER + "{*}", prefix + "head.pixel_decoder.{*}"),
        Rule(DECODER + "static_query.{*}", prefix + "head.decoder.query_feat.{*}"),  # its name in older files
        Rule(DECODER + "{*}", prefix + "head.decoder.{*}"),
    )


IGNORED = (
    Ignored(BACKBONE + "layers.{}.blocks.{}.attn.relative_position_index", "follows from the size of the window"),
    Ignored("criterion.{*}", "class weights of the training loss"),
)


@dataclass(frozen=True)
class SwinSizes:
    """What the shapes say about a Swin backbone: arguments of `backbones.swin.Swin`."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int


def is_official(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a Mask2Former with a Swin backbone and classes of its own."""
    needed = (BACKBONE + "patch_embed.proj.weight", PIXEL_DECODER + "adapter_1.weight", DECODER + "class_embed.weight")
    return all(name in source for name in needed)


def describe_swin(source: Mapping[str, Tensor]) -> SwinSizes:
    """Reads the backbone off names and shapes; raises `ConversionError` where a tensor it needs is absent."""
    table = BACKBONE + "layers.{}.blocks.{}.attn.relative_position_bias_table"
    stages = range(count_names(source, table.replace("blocks.{}", "blocks.0")))
    tables = [shape_of(source, table.replace("{}", str(stage), 1).replace("{}", "0"), 2) for stage in stages]
    side = isqrt(tables[0][0]) if tables else 0
    if side % 2 == 0 or side**2 != tables[0][0]:
        raise ConversionError(f"{table}: {[list(shape) for shape in tables[:1]]} is the table of no window")
    return SwinSizes(
        width=shape_of(source, BACKBONE + "patch_embed.proj.weight")[0],
        depths=tuple(count_names(source, table.replace("{}", str(stage), 1)) for stage in stages),
        heads=tuple(shape[1] for shape in tables),
        window=(side + 1) // 2,
    )


def describe_decoders(source: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes of the pixel decoder and the masked-attention decoder, by the names of the arguments that build them.

    `heads_times_points` of the deformable attention is all that the shapes tell of both; released models have 8 heads.
    """
    query = DECODER + ("static_query.weight" if DECODER + "static_query.weight" in source else "query_feat.weight")
    num_queries, width = shape_of(source, query, 2)
    levels = shape_of(source, DECODER + "level_embed.weight")[0]
    first = PIXEL_DECODER + "transformer.encoder.layers.0."
    return {
        "num_queries": num_queries,
        "width": width,
        "mask_width": shape_of(source, PIXEL_DECODER + "mask_features.weight")[0],
        "encoder_layers": count_names(source, PIXEL_DECODER + "transformer.encoder.layers.{}.norm1.weight"),
        "encoder_ffn_width": shape_of(source, first + "linear1.weight")[0],
        "decoder_layers": count_names(source, DECODER + "transformer_ffn_layers.{}.norm.weight"),
        "decoder_ffn_width": shape_of(source, DECODER + "transformer_ffn_layers.0.linear1.weight")[0],
        "heads_times_points": shape_of(source, first + "self_attn.attention_weights.weight")[0] // levels,
    }


def describe_classes(source: Mapping[str, Tensor]) -> int:
    """How many classes the generator tells, void not counted."""
    return shape_of(source, DECODER + "class_embed.weight", 2)[0] - 1

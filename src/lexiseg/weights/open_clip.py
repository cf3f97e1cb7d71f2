"""Checkpoints of open_clip: the CLIP part of an FC-CLIP checkpoint, under open_clip's own names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lexiseg.weights.fcclip import CLIP, convert_official
from lexiseg.weights.rules import Conversion, ConversionError, Rule

TEXT = "text."
"""Before the names of the text tower in open_clip's models of a later form; the earlier ones have nothing there."""


def convert_open_clip(
    source: Mapping[str, Tensor], system: Mapping[str, tuple[int, ...]], text: Mapping[str, tuple[int, ...]]
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """Fills the state dicts (name -> shape) of a system without a trained generator and of its text encoder.

    As `fcclip.convert_official`. Raises `ConversionError` with open_clip's own names.
    """
    try:
        return convert_official({CLIP + name.removeprefix(TEXT): value for name, value in source.items()}, system, text)
    except ConversionError as error:
        raise ConversionError(str(error).replace(CLIP, "")) from error


TRANSFORMER_RULES = (
    Rule(CLIP + "visual.trunk.{*}", "embedder.trunk.trunk.{*}"),
    Rule(CLIP + "logit_scale", "scorer.logit_scale"),
)
"""An EVA-CLIP inside the embedder; timm's names stay."""


def convert_open_clip_transformer(
    source: Mapping[str, Tensor], system: Mapping[str, tuple[int, ...]], text: Mapping[str, tuple[int, ...]]
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """The same for an EVA-CLIP, whose tower stands in the embedder. `system`: without what no CLIP has."""
    try:
        named = {CLIP + name.removeprefix(TEXT): value for name, value in source.items()}
        return convert_official(named, system, text, TRANSFORMER_RULES, ())
    except ConversionError as error:
        raise ConversionError(str(error).replace(CLIP, "")) from error

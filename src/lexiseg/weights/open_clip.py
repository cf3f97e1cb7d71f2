"""Checkpoints of open_clip: the CLIP part of an FC-CLIP checkpoint, under open_clip's own names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lexiseg.weights.fcclip import CLIP, IGNORED, SYSTEM_RULES, convert_official
from lexiseg.weights.rules import Conversion, ConversionError, Ignored, Rule

TEXT = "text."
"""Before the names of the text tower in open_clip's models of a later form; the earlier ones have nothing there."""


EVA_RULES = (
    Rule(CLIP + "visual.trunk.{*}", "embedder.trunk.trunk.{*}"),
    Rule(CLIP + "logit_scale", "scorer.logit_scale"),
)
"""An EVA-CLIP inside the embedder; timm's names stay."""

VISION_TRANSFORMER_RULES = (Rule(CLIP + "visual.{*}", "embedder.tower.{*}"),)
"""One of OpenAI's transformers inside the embedder."""

VISION_TRANSFORMER_IGNORED = (
    *IGNORED,
    Ignored(CLIP + "logit_scale", "MAFT scores with a constant factor of 100"),
)


def convert_open_clip(
    source: Mapping[str, Tensor],
    system: Mapping[str, tuple[int, ...]],
    text: Mapping[str, tuple[int, ...]],
    rules: Sequence[Rule] = SYSTEM_RULES,
    ignored: Sequence[Ignored] = IGNORED,
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """Fills the state dicts (name -> shape) of a system without a trained generator and of its text encoder.

    As `fcclip.convert_official`. rules, ignored: above for transformers; `system` is without what no CLIP has. Raises
    `ConversionError` with open_clip's own names.
    """
    named = {CLIP + name.removeprefix(TEXT): value for name, value in source.items()}
    try:
        return convert_official(named, system, text, rules, ignored)
    except ConversionError as error:
        raise ConversionError(str(error).replace(CLIP, "")) from error

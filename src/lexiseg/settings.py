"""Settings that files carry beside weights, checked field by field when they are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lexiseg.types import SigmoidAt

MAX_SETTINGS_BYTES = 4 * 2**20
"""Larger ones are no settings."""


class Section(BaseModel):
    """Part of the settings: no unknown fields, no numbers given as strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class CanvasSettings(Section):
    """How photos are brought to size; see `images.Canvas`."""

    short_edge: Annotated[int, Field(ge=32, le=16384)] = 800
    long_edge: Annotated[int, Field(ge=32, le=65536)] = 1333
    multiple: Annotated[int, Field(ge=1, le=1024)] = 32
    second_short_edge: Annotated[int, Field(ge=32, le=16384)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> CanvasSettings:
        if self.long_edge < self.short_edge:
            raise ValueError("long_edge is below short_edge")
        return self


class OutputSettings(Section):
    """How masks and scores become results; see `postprocess`."""

    object_mask_threshold: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Score a mask needs to take part in a panoptic result."""
    overlap_threshold: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of itself a mask must keep in a panoptic result."""
    top_instances: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Most instances of one picture."""
    least_cover: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Mask probability a pixel needs from some mask to have a class in a semantic result."""
    sigmoid_at: SigmoidAt | None = None
    """Where mask logits become probabilities; None is the usual place of each kind of result."""
    paint_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """Semantic results are painted: by hard masks, on where their probability is above this, the best ones of every
    word. None is the vote of all masks."""
    granularity: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Of painted results: below one, masks that score more than this share of a word's best paint too."""


def in_one_line(error: ValidationError, root: str = "") -> str:
    """What pydantic found wrong, for one line of a message. root: where the fields are."""
    parts = []
    for problem in error.errors()[:5]:
        field = ".".join(str(place) for place in (root, *problem["loc"]) if place != "")
        said = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{field}: {said}" if field else said)
    return "; ".join(parts)

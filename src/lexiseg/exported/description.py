"""What an exported file says about itself: JSON in its metadata, checked field by field when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from lexiseg.settings import MAX_SETTINGS_BYTES, CanvasSettings, OutputSettings, Section, in_one_line
from lexiseg.vocabulary import MAX_CHARACTERS, MAX_PHRASES, Vocabulary, VocabularyClass, template_set

KEY = "lexiseg"
"""Of the metadata of a file that segments."""
TEXT_KEY = "lexiseg_text"
"""Of the metadata of a file that encodes words."""

MAX_SIDE = 16384

Precision = Literal["float32", "float16", "int8"]
"""float16: weights are stored in half precision, and computed with in float32. int8: see `lexiseg.export.precision`."""

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Phrase = Annotated[str, Field(max_length=MAX_CHARACTERS)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ExportedFileError(ValueError):
    """A file that cannot be run as an exported model. The message names it, says why and what to do."""


class View(Section):
    """What the file wants beside the canvas: the picture at the size of a second tower."""

    short_edge: Side
    multiple: Annotated[int, Field(ge=1, le=1024)]
    stride: Annotated[int, Field(ge=1, le=256)]
    """Of the grid of that tower, on which it weighs the masks."""
    size_hw: tuple[Side, Side] | None
    """Of the padded view; None for any."""


class TextFile(Section):
    """A file that encodes words, beside this one."""

    file: Annotated[str, Field(pattern=r"^\w[\w .+-]*\.onnx$")]
    sha256: Hash


class Entry(Section):
    """A class of a vocabulary that is in the file."""

    phrases: Annotated[list[Phrase], Field(min_length=1, max_length=MAX_PHRASES)]
    is_thing: bool = True
    color: tuple[int, int, int] | None = None


class Check(Section):
    """How the file agreed with PyTorch when it was made."""

    photos: Annotated[int, Field(ge=1)]
    pixels: Annotated[int, Field(ge=1)]
    same_labels: Annotated[float, Field(ge=0, le=1)]
    """Share of the pixels with the same class."""
    same_segments: Annotated[float, Field(ge=0, le=1)]
    """Share of the pixels whose panoptic segment is of the same class."""


class Description(Section):
    """Of a file that segments."""

    format: Literal[1]
    lexiseg: Annotated[str, Field(max_length=50)]
    """The version that wrote it."""
    model: Annotated[str, Field(min_length=1, max_length=200)]
    precision: Precision
    size_hw: tuple[Side, Side] | None
    """Of the canvas; None for any."""
    canvas: CanvasSettings
    mask_stride: Annotated[int, Field(ge=1, le=256)]
    view: View | None
    outputs: OutputSettings
    told_from_void: bool
    classes: Annotated[list[Entry], Field(min_length=1, max_length=MAX_PHRASES)] | None
    """None where the words are an input."""
    background: bool = False
    """Whether the last of `classes` stands for anything else."""
    templates: list[str]
    mix_templates: bool
    query_templates: list[str] | None
    training_phrases: Annotated[list[str], Field(max_length=MAX_PHRASES)]
    text: TextFile | None
    query_text: TextFile | None
    card: dict[str, JsonValue]
    check: Check | None = None

    @field_validator("templates", "query_templates")
    @classmethod
    def _usable_templates(cls, templates: list[str] | None) -> list[str] | None:
        if templates is not None:
            template_set(templates)
        return templates

    @model_validator(mode="after")
    def _encodable(self) -> Description:
        if self.classes is None and self.text is None:
            raise ValueError("has neither words nor a file that encodes them")
        return self

    @property
    def view_hw(self) -> tuple[int, int] | None:
        """The size of the padded view; None for any, and where there is none."""
        return None if self.view is None else self.view.size_hw

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words that are in the file."""
        if self.classes is None:
            return None
        return Vocabulary(
            tuple(VocabularyClass(tuple(entry.phrases), entry.is_thing, entry.color) for entry in self.classes),
            self.background,
        )


class TextDescription(Section):
    """Of a file that encodes words."""

    format: Literal[1]
    lexiseg: Annotated[str, Field(max_length=50)]
    precision: Precision
    context_length: Annotated[int, Field(ge=3, le=4096)]
    embed_dim: Annotated[int, Field(ge=1, le=65536)]


Kind = TypeVar("Kind", Description, TextDescription)


def read_description(metadata: Mapping[str, str], key: str, kind: type[Kind], path: Path) -> Kind:
    """The description in the metadata of the file at `path`."""
    text = metadata.get(key)
    if text is None:
        other = "encodes words, and belongs to another one" if TEXT_KEY in metadata else "was not made by this package"
        raise ExportedFileError(
            f"{path}: this file {other}; make one with: lexiseg export --model NAME --out FILE.onnx"
        )
    if len(text) > MAX_SETTINGS_BYTES:
        raise ExportedFileError(
            f"{path}: its description is larger than {MAX_SETTINGS_BYTES // 2**20} MiB; export it again"
        )
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ExportedFileError(f"{path}: its description: {in_one_line(error)}") from error


def entries_of(vocabulary: Vocabulary) -> list[Entry]:
    """The classes as a description has them."""
    return [Entry(phrases=list(e.phrases), is_thing=e.is_thing, color=e.color) for e in vocabulary.classes]

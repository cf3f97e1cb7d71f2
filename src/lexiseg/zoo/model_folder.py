"""A model on disk: a folder with its settings, its weights and its text tower.

    lexiseg.json         settings, checked field by field when read
    model.safetensors    the state dict of the `System`: encoder.* generator.* embedder.* scorer.*
    text.safetensors     the state dict of the text encoder, read only when a phrase is not in the cache
    query.safetensors    the same for the generator, where that reads words by a CLIP of its own

Reading one runs no code from it and fetches nothing: builders are named in a fixed table, and their arguments are
plain values.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator, validate_call
from torch import Tensor, nn

from lexiseg.clip.text import TextEncoder
from lexiseg.images import Canvas
from lexiseg.settings import MAX_SETTINGS_BYTES, CanvasSettings, OutputSettings, Section, in_one_line
from lexiseg.system import System
from lexiseg.text_bank import encode_vocabulary, text_bank
from lexiseg.types import TextBank
from lexiseg.vocabulary import MAX_PHRASES, Vocabulary, template_set
from lexiseg.weights.files import MAX_BYTES, CheckpointError, read_safetensors, replacing, save_safetensors, sha256_of
from lexiseg.weights.rules import ConversionError, Rule, convert, shapes_of
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.maft import freeseg, maft, maft_given
from lexiseg.zoo.maftplus import maftplus
from lexiseg.zoo.mask_adapter import mask_adapter_fcclip, mask_adapter_maftplus
from lexiseg.zoo.maskclip_pp import maskclip_pp, maskclip_pp_given, maskclip_pp_mask2former
from lexiseg.zoo.ovseg import ovseg, ovseg_given

SETTINGS_FILE = "lexiseg.json"
WEIGHTS_FILE = "model.safetensors"
TEXT_FILE = "text.safetensors"
QUERY_FILE = "query.safetensors"

PLAIN_NAME = r"\w[\w.-]*\.safetensors"
BESIDE_NAME = rf"(\.\./\w[\w.-]*/)?{PLAIN_NAME}"

MAX_NUMBER = 1_000_000
"""No layer of any model here is this wide, and no vocabulary of a tokenizer this large."""
MAX_LAYERS = 1000
"""Deepest part of a model: every layer costs time to build, before any file is compared with it."""
MAX_DEPTH = 4
"""Nesting of a tower's configuration."""


class ModelFolderError(ValueError):
    """A folder that is not a model. The message names the file, the field and what to do."""


@dataclass(frozen=True)
class Builder:
    """How a kind of model is made. Both functions build on the meta device unless told otherwise."""

    system: Callable[..., System]
    text_encoder: Callable[..., TextEncoder]
    """Of the argument `tower`; of `generator_tower` where the generator reads words by a CLIP of its own."""


BUILDERS: dict[str, Builder] = {
    "fcclip": Builder(fcclip, text_encoder),
    "maftplus": Builder(maftplus, text_encoder),
    "mask_adapter_fcclip": Builder(mask_adapter_fcclip, text_encoder),
    "mask_adapter_maftplus": Builder(mask_adapter_maftplus, text_encoder),
    "maskclip_pp": Builder(maskclip_pp, text_encoder),
    "maskclip_pp_mask2former": Builder(maskclip_pp_mask2former, text_encoder),
    "maskclip_pp_given": Builder(maskclip_pp_given, text_encoder),
    "ovseg": Builder(ovseg, text_encoder),
    "ovseg_given": Builder(ovseg_given, text_encoder),
    "maft": Builder(maft, text_encoder),
    "freeseg": Builder(freeseg, text_encoder),
    "maft_given": Builder(maft_given, text_encoder),
    "clustered": Builder(clustered, text_encoder),
}
"""Every builder a folder may name."""


class FileFacts(Section):
    """What a weights file of the folder must be."""

    bytes: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class QuerySettings(Section):
    """How words are encoded for a generator with a CLIP of its own, the argument `generator_tower`."""

    templates: str | list[str]
    text: str = QUERY_FILE
    """May be the file of the other words' tower, where both are the same."""


class Settings(Section):
    """lexiseg.json."""

    format: Literal[1]
    builder: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    templates: str | list[str]
    mix_templates: bool = True
    """Whether the scorer reads the mean of the templates of a phrase, or each for itself."""
    query: QuerySettings | None = None
    canvas: CanvasSettings = CanvasSettings()
    outputs: OutputSettings = OutputSettings()
    training_phrases: Annotated[list[str], Field(default_factory=list, max_length=MAX_PHRASES)]
    own_classes: Annotated[list[str], Field(default_factory=list, max_length=MAX_PHRASES)]
    """Of a generator trained on a fixed list: its classes in the comma format."""
    text: str = TEXT_FILE
    files: dict[str, FileFacts] = Field(default_factory=dict)
    card: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("builder")
    @classmethod
    def _known_builder(cls, name: str) -> str:
        if name not in BUILDERS:
            raise ValueError(
                f"{name!r} is unknown to this version, which knows {', '.join(BUILDERS)}; a newer lexiseg may know it"
            )
        return name

    @field_validator("arguments")
    @classmethod
    def _plain_arguments(cls, arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if "device" in arguments:
            raise ValueError("'device' is chosen by the user, not by the model")
        check_plain(arguments, "arguments", MAX_DEPTH)
        return arguments

    @field_validator("templates")
    @classmethod
    def _usable_templates(cls, templates: str | list[str]) -> str | list[str]:
        template_set(templates)
        return templates

    @field_validator("query")
    @classmethod
    def _usable_query(cls, query: QuerySettings | None) -> QuerySettings | None:
        if query is not None:
            template_set(query.templates)
        return query

    @field_validator("own_classes")
    @classmethod
    def _readable_classes(cls, own_classes: list[str]) -> list[str]:
        if own_classes:
            Vocabulary.from_comma_format(own_classes)
        return own_classes


@dataclass(frozen=True)
class GeneratorText:
    """How words are encoded for a generator whose CLIP is not the one that reads the regions."""

    text_encoder: Callable[[], TextEncoder]
    fingerprint: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A system with everything it needs to be used, in evaluation mode."""

    name: str
    system: System
    text_encoder: Callable[[], TextEncoder]
    """Builds and loads the text tower at its first call, on the device of the system, and keeps it."""
    fingerprint: str
    """Stands for all that decides about the encoding of a prompt: weights and configuration of the text tower."""
    templates: tuple[str, ...]
    canvas: Canvas
    outputs: OutputSettings
    training_phrases: tuple[str, ...]
    card: Mapping[str, Any]
    query: GeneratorText | None = None
    """None where generator and scorer read the same rows."""
    mix_templates: bool = True
    """Whether the scorer reads the mean of the templates of a phrase, or each for itself."""
    own_classes: Vocabulary | None = None
    """What the generator was trained to tell, where that is a fixed list."""

    def text_bank(self, vocabulary: Vocabulary, cache: Path | None = None) -> TextBank:
        """The vocabulary as this model reads it, on the CPU. cache: see `text_bank.cache_folder`."""
        bank = text_bank(
            vocabulary,
            self.templates,
            self.text_encoder,
            self.training_phrases,
            fingerprint=self.fingerprint,
            cache=cache,
            mix_templates=self.mix_templates,
        )
        if self.query is not None:
            own = self.query
            rows = encode_vocabulary(
                vocabulary, own.templates, own.text_encoder, fingerprint=own.fingerprint, cache=cache
            )
            bank = replace(bank, query=rows)
        if self.own_classes is not None:
            bank = replace(bank, own_class=torch.tensor(vocabulary.places_of(self.own_classes)))
        return bank


Locate = Callable[[str], Path]
"""File name of a model folder -> where it lies. May fetch it."""


def load_folder(
    folder: str | Path,
    device: str | torch.device = "cpu",
    *,
    name: str | None = None,
    siblings: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Model:
    """The model in `folder`, checked, its weights in float32 on `device`.

    siblings: the text tower may lie in a folder beside this one, as among the embedded models.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder")
    return load_located(
        lambda file: folder / file, name or folder.resolve().name, device, siblings=siblings, max_bytes=max_bytes
    )


def load_located(
    locate: Locate,
    name: str,
    device: str | torch.device = "cpu",
    *,
    siblings: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Model:
    """The model whose files `locate` finds: a folder, or a repository of a hub. The text tower is located last."""
    path = locate(SETTINGS_FILE)
    settings = read_settings(path, siblings=siblings)
    system = _build(path, settings.builder, BUILDERS[settings.builder].system, settings.arguments)
    _fill(system, locate(WEIGHTS_FILE), settings.files.get(WEIGHTS_FILE), max_bytes)
    system.to(device).eval()

    def words_tower(argument: str, file: str) -> tuple[Callable[[], TextEncoder], str]:
        """What makes the text tower, and what stands for it."""

        @cache
        def encoder() -> TextEncoder:
            # Outlives the call that loaded the model: the tower is large, and most calls find their words cached.
            text = _build_text(path, settings, argument)
            _fill(text, locate(file), settings.files.get(file), max_bytes)
            return text.to(device).eval()

        _build_text(path, settings, argument)  # on the meta device: a bad configuration is told now, not at a new word
        return encoder, _fingerprint(settings, locate, argument, file)

    encoder, fingerprint = words_tower("tower", settings.text)
    query = None
    if settings.query is not None:
        asked = words_tower("generator_tower", settings.query.text)
        query = GeneratorText(*asked, templates=template_set(settings.query.templates))
    return Model(
        name=name,
        system=system,
        text_encoder=encoder,
        fingerprint=fingerprint,
        templates=template_set(settings.templates),
        canvas=Canvas(**settings.canvas.model_dump()),
        outputs=settings.outputs,
        training_phrases=tuple(settings.training_phrases),
        card=settings.card,
        query=query,
        mix_templates=settings.mix_templates,
        own_classes=Vocabulary.from_comma_format(settings.own_classes) if settings.own_classes else None,
    )


def read_settings(path: Path, *, siblings: bool = False) -> Settings:
    """lexiseg.json, checked."""
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; a model folder has {SETTINGS_FILE}, {WEIGHTS_FILE} and {TEXT_FILE}")
    if path.stat().st_size > MAX_SETTINGS_BYTES:
        raise ModelFolderError(f"{path}: larger than {MAX_SETTINGS_BYTES // 2**20} MiB; these are not settings")
    try:
        settings = Settings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {in_one_line(error)}") from error
    for file in (settings.text, *([] if settings.query is None else [settings.query.text])):
        if not re.fullmatch(BESIDE_NAME if siblings else PLAIN_NAME, file):
            raise ModelFolderError(f"{path}: text: {file!r} is not the name of a safetensors file in this folder")
    return settings


@dataclass(frozen=True)
class Query:
    """How a generator with a CLIP of its own reads words, to be saved."""

    templates: str | list[str]
    text: TextEncoder | Mapping[str, Tensor] | None = None
    """Its text tower; None where it is that of the scorer."""

    @property
    def settings(self) -> QuerySettings:
        return QuerySettings(templates=self.templates, text=TEXT_FILE if self.text is None else QUERY_FILE)


def save_model_folder(
    folder: str | Path,
    system: System | Mapping[str, Tensor],
    text: TextEncoder | Mapping[str, Tensor] | str,
    *,
    builder: str,
    arguments: Mapping[str, Any],
    templates: str | list[str],
    mix_templates: bool = True,
    query: Query | None = None,
    own_classes: list[str] | tuple[str, ...] = (),
    canvas: Canvas | None = None,
    outputs: OutputSettings | None = None,
    training_phrases: tuple[str, ...] | list[str] = (),
    card: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model folder that `load_folder` reads, and checks that it will fit before anything is written.

    system, text: modules or their state dicts; text may also be the file of a folder beside this one,
    "../other/text.safetensors", for embedded models that share a tower. query: how a generator with a CLIP of its own
    reads words. own_classes: of a generator trained on a fixed list, in the comma format. dtype: floating-point tensors
    are stored in it, float16 for half the size.
    """
    folder = Path(folder)
    path = folder / SETTINGS_FILE
    canvas = canvas or Canvas()
    try:
        settings = Settings(
            format=1,
            builder=builder,
            arguments=json.loads(json.dumps(dict(arguments))),
            templates=templates,
            mix_templates=mix_templates,
            query=None if query is None else query.settings,
            own_classes=list(own_classes),
            canvas=canvas_settings(canvas),
            outputs=outputs or OutputSettings(),
            training_phrases=list(training_phrases),
            text=text if isinstance(text, str) else TEXT_FILE,
            card=json.loads(json.dumps(dict(card or {}))),
        )
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {in_one_line(error)}") from error

    states = {WEIGHTS_FILE: _state_of(system)}
    _check_fit(_build(path, builder, BUILDERS[builder].system, settings.arguments), states[WEIGHTS_FILE], WEIGHTS_FILE)
    if not isinstance(text, str):
        states[TEXT_FILE] = _state_of(text)
        _check_fit(_build_text(path, settings, "tower"), states[TEXT_FILE], TEXT_FILE)
    elif not re.fullmatch(BESIDE_NAME, text) or not Path(os.path.normpath(folder / text)).is_file():
        raise ModelFolderError(f"{folder / text}: the text tower this folder refers to does not exist")
    if query is not None and query.text is not None:
        states[QUERY_FILE] = _state_of(query.text)
        _check_fit(_build_text(path, settings, "generator_tower"), states[QUERY_FILE], QUERY_FILE)

    folder.mkdir(parents=True, exist_ok=True)
    # Without its settings a folder is no model: while files are being replaced it is not taken for one.
    path.unlink(missing_ok=True)
    for file, state in states.items():
        save_safetensors(_cast(state, dtype), folder / file)
    files = {file: _facts(folder / file) for file in dict.fromkeys((*states, settings.text))}
    with replacing(path) as temporary:
        content = settings.model_copy(update={"files": files}).model_dump(mode="json")
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def canvas_settings(canvas: Canvas) -> CanvasSettings:
    """As files have them: how large photos become, not what a canvas is held to on the way."""
    return CanvasSettings(**{name: getattr(canvas, name) for name in CanvasSettings.model_fields})


def _state_of(module: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return module.state_dict() if isinstance(module, nn.Module) else module


def _facts(path: Path) -> FileFacts:
    return FileFacts(bytes=path.stat().st_size, sha256=sha256_of(path))


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    if dtype is None:
        return dict(state)
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, tensor in cast.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelFolderError(f"{name}: not finite in {dtype}; store it in another precision")
    return cast


def check_plain(value: JsonValue, where: str, depth: int) -> None:
    """Refuses what no builder needs: addresses among the names, absurd sizes, deep nesting."""
    if depth < 0:
        raise ValueError(f"{where}: nested too deeply")
    if isinstance(value, dict):
        for key, item in value.items():
            check_plain(item, f"{where}.{key}", depth - 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_plain(item, f"{where}.{index}", depth - 1)
    elif isinstance(value, str):
        # timm and open_clip also take "hf-hub:...", "local-dir:..." and paths for names, and would follow them.
        if not re.fullmatch(r"[\w.-]{0,100}", value):
            raise ValueError(f"{where}: {value[:100]!r} is not the name of a part")
    elif isinstance(value, (int, float)) and not abs(value) <= (MAX_LAYERS if "layers" in where else MAX_NUMBER):
        raise ValueError(f"{where}: {value} is beyond any model's size")


def _build(path: Path, builder: str, function: Callable[..., System], arguments: Mapping[str, Any]) -> System:
    try:
        checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True, strict=True))(function)
        return checked(**arguments)
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {in_one_line(error, 'arguments')}") from error
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        known = ", ".join(name for name in inspect.signature(function).parameters if name != "device")
        raise ModelFolderError(
            f"{path}: arguments: builder {builder!r} ({known}) cannot be called so: {error}"
        ) from error


def _build_text(path: Path, settings: Settings, argument: str) -> TextEncoder:
    """The text tower of the CLIP that an argument of the builder names."""
    if argument not in settings.arguments:
        raise ModelFolderError(f"{path}: arguments.{argument} is missing: a text tower is built from it")
    try:
        return BUILDERS[settings.builder].text_encoder(settings.arguments[argument])
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise ModelFolderError(f"{path}: arguments.{argument}: no text tower can be built from it: {error}") from error


def _fill(module: nn.Module, path: Path, facts: FileFacts | None, max_bytes: int) -> None:
    """Puts a weights file into a module on the meta device, strictly, without a second copy."""
    if facts is not None and path.is_file():
        found = _facts(path)
        if found != facts:
            raise ModelFolderError(
                f"{path}: {found.bytes} bytes with hash {found.sha256[:12]}..., but {SETTINGS_FILE} says {facts.bytes} "
                f"bytes with hash {facts.sha256[:12]}...: damaged or exchanged. Fetch or save the model again"
            )
    try:
        state = read_safetensors(path, max_bytes)
    except CheckpointError as error:
        raise ModelFolderError(str(error)) from error
    put(state, module, str(path))


def put(state: Mapping[str, Tensor], module: nn.Module, where: str) -> None:
    """Puts a complete state dict into a module on the meta device, in float32. where: the file, for messages."""
    _check_fit(module, state, where)
    # Half precision is for the disk: a CPU computes it slower, and less exactly.
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    module.load_state_dict(state, strict=True, assign=True)
    unfilled = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if unfilled:
        raise ModelFolderError(f"{where}: has no values for {', '.join(unfilled[:5])}")


def _check_fit(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        convert(state, shapes_of(module.state_dict()), [Rule("{*}", "{*}")])
    except ConversionError as error:
        raise ModelFolderError(f"{where}: {error}") from error


def _fingerprint(settings: Settings, locate: Locate, argument: str, file: str) -> str:
    facts = settings.files.get(file)
    weights = facts.sha256 if facts is not None else sha256_of(locate(file))
    # The tower as a whole: the number of heads, for one, is not to be seen in any shape.
    maker = BUILDERS[settings.builder].text_encoder.__qualname__  # several kinds of model may share a tower
    key = json.dumps([weights, maker, settings.arguments.get(argument)], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()

"""A CLIP as open_clip keeps it on the hub: a classifier of masks with nothing trained for it.

    open_clip_config.json       its configuration, and how it wants its pictures
    open_clip_model.safetensors its weights; older names are known

Reading one runs no code from it: pickles are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from lexiseg.clip.open_clip import clip_config, is_transformer, is_vision_transformer
from lexiseg.clip.text import TextEncoder
from lexiseg.images import Canvas
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD
from lexiseg.vocabulary import template_set
from lexiseg.weights.files import MAX_BYTES, CheckpointError, read_safetensors, sha256_of
from lexiseg.weights.hub import MissingFileError, UnreachableError
from lexiseg.weights.open_clip import (
    EVA_RULES,
    VISION_TRANSFORMER_IGNORED,
    VISION_TRANSFORMER_RULES,
    convert_open_clip,
)
from lexiseg.weights.rules import ConversionError, shapes_of
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.maft import FIRST_BLOCK
from lexiseg.zoo.model_folder import (
    BUILDERS,
    MAX_DEPTH,
    MAX_SETTINGS_BYTES,
    Locate,
    Model,
    ModelFolderError,
    OutputSettings,
    check_plain,
    in_one_line,
    put,
    save_model_folder,
)

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLE_FILE = "open_clip_pytorch_model.bin"
TEMPLATES = "fcclip14"
MASK_SCALE = "mask_logit_scale"
"""Last part of the names of what mask tokens have and no CLIP."""


class PreprocessSettings(BaseModel):
    """What is read of preprocess_cfg; how pictures are resized is the canvas's affair."""

    model_config = ConfigDict(strict=True)

    mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    std: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None


class OpenClipSettings(BaseModel):
    """What is read of open_clip_config.json."""

    model_config = ConfigDict(strict=True)

    model_cfg: dict[str, JsonValue]
    preprocess_cfg: PreprocessSettings = PreprocessSettings()


@dataclass(frozen=True)
class OpenClip:
    """The files of a CLIP, read: what a model folder is made of."""

    tower: dict[str, Any]
    """Its configuration."""
    builder: str
    """"clustered"; transformers have no map to cluster and read masks that are given: "maskclip_pp_given" for an
    EVA-CLIP, "maft_given" for one of OpenAI's kind."""
    arguments: dict[str, Any]
    """Of the builder."""
    system: dict[str, Tensor]
    text: dict[str, Tensor]
    sha256: str
    """Of the weights."""


def read_open_clip(locate: Locate, max_bytes: int = MAX_BYTES) -> OpenClip:
    """The CLIP whose files `locate` finds, every tensor accounted for."""
    path = locate(CONFIG_FILE)
    tower = _read_tower(path)
    builder = "clustered"
    arguments: dict[str, Any] = {"tower": tower}
    try:
        if is_transformer(tower):
            size = tower["vision_cfg"].get("image_size", 224)
            builder, arguments = (
                "maskclip_pp_given",
                {"tower": tower, "short_edge": size, "similarity": "template-mean"},
            )
        elif is_vision_transformer(tower):
            builder, arguments = "maft_given", {"tower": tower, "first_block": _first_block(tower)}
        modules = (BUILDERS[builder].system(**arguments), text_encoder(tower))
        system_shapes, text_shapes = (shapes_of(module.state_dict()) for module in modules)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise ModelFolderError(f"{path}: model_cfg: no classifier of masks can be built from it: {error}") from error
    weights = _weights(locate, path)
    # No CLIP has them; this is how the released classifiers began.
    scales = {
        name: torch.full(system_shapes.pop(name), -5.0) for name in list(system_shapes) if name.endswith(MASK_SCALE)
    }
    names: dict[str, Any] = {}
    if builder == "maskclip_pp_given":
        names = {"rules": EVA_RULES, "ignored": ()}
    elif builder == "maft_given":
        names = {"rules": VISION_TRANSFORMER_RULES, "ignored": VISION_TRANSFORMER_IGNORED}
    try:
        account, system, text = convert_open_clip(
            read_safetensors(weights, max_bytes), system_shapes, text_shapes, **names
        )
    except (CheckpointError, ConversionError) as error:
        raise ModelFolderError(str(error) if str(weights) in str(error) else f"{weights}: {error}") from error
    system |= {name: torch.zeros((), dtype=torch.int64) for name in account.fresh}  # counters of batch norm
    return OpenClip(tower, builder, arguments, {**system, **scales}, text, sha256_of(weights))


def load_open_clip(locate: Locate, name: str, device: str | torch.device = "cpu", max_bytes: int = MAX_BYTES) -> Model:
    """The CLIP with mask pooling as a model; what it finds by itself are the clusters of its own map.

    A transformer finds nothing by itself: it reads masks, an EVA-CLIP by `regions.mask_tokens`, one of OpenAI's kind by
    `regions.mask_bias`, as MAFT does before it is tuned.
    """
    return model_of(read_open_clip(locate, max_bytes), name, device)


def model_of(found: OpenClip, name: str, device: str | torch.device = "cpu") -> Model:
    """The model of a CLIP whose files have been read."""
    system = BUILDERS[found.builder].system(**found.arguments)
    put(found.system, system, name)

    @cache
    def encoder() -> TextEncoder:
        text = text_encoder(found.tower)
        put(found.text, text, name)
        return text.to(device).eval()

    key = json.dumps([found.sha256, "open_clip", found.tower], sort_keys=True)
    return Model(
        name=name,
        system=system.to(device).eval(),
        text_encoder=encoder,
        fingerprint=hashlib.sha256(key.encode()).hexdigest(),
        templates=template_set(TEMPLATES),
        canvas=Canvas(),
        outputs=OutputSettings(),
        training_phrases=(),
        card={"title": f"{name} with mask pooling"},
        mix_templates=found.builder != "maskclip_pp_given",
    )


def save_open_clip(locate: Locate, name: str, folder: Path, max_bytes: int = MAX_BYTES) -> Path:
    """Writes the model of `load_open_clip` as a model folder."""
    found = read_open_clip(locate, max_bytes)
    return save_model_folder(
        folder,
        found.system,
        found.text,
        builder=found.builder,
        arguments=found.arguments,
        templates=TEMPLATES,
        mix_templates=found.builder != "maskclip_pp_given",
        card={"title": f"{name} with mask pooling", "source_sha256": found.sha256},
    )


def _first_block(tower: dict[str, Any]) -> int:
    """MAFT's, for towers of MAFT's depths; two thirds of a smaller one."""
    return min(FIRST_BLOCK, 2 * clip_config(tower)["vision_cfg"]["layers"] // 3)


def _read_tower(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFolderError(f"{path}: missing; a CLIP of open_clip has {CONFIG_FILE} and {WEIGHTS_FILES[0]}")
    if path.stat().st_size > MAX_SETTINGS_BYTES:
        raise ModelFolderError(f"{path}: larger than {MAX_SETTINGS_BYTES // 2**20} MiB; this is no configuration")
    try:
        settings = OpenClipSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {in_one_line(error)}") from error
    try:
        check_plain(settings.model_cfg, "model_cfg", MAX_DEPTH)
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from error
    for said, usual in ((settings.preprocess_cfg.mean, CLIP_MEAN), (settings.preprocess_cfg.std, CLIP_STD)):
        if said is not None and not all(
            math.isclose(255 * a, b, abs_tol=0.01) for a, b in zip(said, usual, strict=True)
        ):
            raise ModelFolderError(
                f"{path}: preprocess_cfg: this CLIP wants its pictures normalised by {said}; only CLIP's own "
                "normalisation is built"
            )
    return settings.model_cfg


def _weights(locate: Locate, config: Path) -> Path:
    unreachable = None
    for name in WEIGHTS_FILES:
        try:
            path = locate(name)
        except MissingFileError:
            continue
        except UnreachableError as error:
            unreachable = unreachable or error
            continue
        if path.is_file():
            return path
    if unreachable is not None:
        raise unreachable
    pickle = " (a pickle could run code when read)" if (config.parent / PICKLE_FILE).is_file() else ""
    raise ModelFolderError(f"{config.parent}: has no {WEIGHTS_FILES[0]}; only safetensors are read{pickle}")

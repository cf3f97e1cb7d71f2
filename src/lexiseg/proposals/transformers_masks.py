"""Other people's mask generators: a Mask2Former, EoMT, SAM, SAM 2 or SAM 3 of transformers, from a local folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from lexiseg.proposals.transformers_folder import (
    CONFIG_FILE,
    TransformersFolderError,
    load_model,
    pixel_scale,
    read_config,
    read_preprocessor,
)
from lexiseg.proposals.transformers_generator import TransformersGenerator
from lexiseg.proposals.transformers_points import PointGridGenerator, PointSettings
from lexiseg.proposals.transformers_universal import UniversalGenerator
from lexiseg.proposals.transformers_view import HALVES, IMAGENET, Look, PixelScale, short_edge_at, square

MAX_EDGE = 8192


@dataclass(frozen=True)
class UniversalSettings:
    """What there is to choose of a closed-set segmenter."""

    own_classes: bool = False
    """The proposals come with class logits, of the model's own classes."""

    def __post_init__(self) -> None:
        if not isinstance(self.own_classes, bool):
            raise ValueError(f"own_classes is {self.own_classes!r}; give true or false")


@dataclass(frozen=True)
class EdgeSettings(UniversalSettings):
    """The same of one that takes any size; None: as the folder says, else 800 and 1333."""

    short_edge: int | None = None
    long_edge: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("short_edge", "long_edge"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value <= MAX_EDGE):
                raise ValueError(f"{name} is {value!r}; give a whole number in 1..{MAX_EDGE}")


@dataclass(frozen=True)
class Kind:
    """How folders with one `model_type` become a generator."""

    model_class: str
    """The public class of transformers."""
    settings: type[Any]
    build: Callable[[Any, PixelScale, Mapping[str, Any], Any], TransformersGenerator]
    """(model, normalisation, settings of the folder's image processor, settings of ours) -> generator."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Where the family's usual settings differ from those of the settings class."""
    scale: PixelScale = IMAGENET
    """The family's normalisation, for folders that do not say."""


def load_transformers_generator(folder: str | Path, **settings: Any) -> TransformersGenerator:
    """The generator in a local folder of the hub's layout: config.json, model.safetensors, preprocessor_config.json.

    settings: those of `PointSettings` for SAM, SAM 2 and SAM 3, of `EdgeSettings` for Mask2Former, of
    `UniversalSettings` for EoMT. What is not given is the family's usual, or the folder's.
    The generator is frozen and stays in evaluation mode. Raises TransformersFolderError for a folder that cannot be
    used, ValueError for a wrong setting, ImportError where transformers is not installed.
    """
    folder = Path(folder)
    config = read_config(folder)
    model_type = config.get("model_type")
    kind = KINDS.get(model_type) if isinstance(model_type, str) else None
    if kind is None:
        note = " ('sam3' alone is its detector, which needs words: take the folder with its tracker)"
        raise TransformersFolderError(
            folder,
            f"{CONFIG_FILE} says model_type {model_type!r}; known are {', '.join(KINDS)}"
            f"{note if model_type == 'sam3' else ''}",
        )
    known = [item.name for item in fields(kind.settings)]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ValueError(f"{model_type} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    chosen = kind.settings(**{**kind.defaults, **settings})
    preprocessor = read_preprocessor(folder)
    scale = pixel_scale(folder, preprocessor, kind.scale)
    _check_backbone(folder, config)
    model = load_model(folder, kind.model_class)
    try:
        return kind.build(model, scale, preprocessor, chosen)
    except ValueError as error:
        raise TransformersFolderError(folder, f"its settings cannot be used: {error}") from error


def _mask2former(
    model: Any, scale: PixelScale, preprocessor: Mapping[str, Any], settings: EdgeSettings
) -> UniversalGenerator:
    """The short edge at a size, as in the paper. Folders that name a fixed height and width would have the picture
    stretched to them, which is not how these models were trained; the paper's 800 and 1333 stand for them."""
    size = preprocessor.get("size")
    named = size if isinstance(size, dict) else {"shortest_edge": size, "longest_edge": preprocessor.get("max_size")}
    folder_says = EdgeSettings(short_edge=named.get("shortest_edge"), long_edge=named.get("longest_edge"))
    divisor = preprocessor.get("size_divisor")
    sizes = partial(
        short_edge_at,
        short_edge=settings.short_edge or folder_says.short_edge or 800,
        long_edge=settings.long_edge or folder_says.long_edge or 1333,
        multiple=divisor if isinstance(divisor, int) and 1 <= divisor <= MAX_EDGE else 32,
    )
    return UniversalGenerator(model, Look(sizes, scale), _class_names(model), own_classes=settings.own_classes)


def _eomt(
    model: Any, scale: PixelScale, preprocessor: Mapping[str, Any], settings: UniversalSettings
) -> UniversalGenerator:
    """The whole picture in the one square the model knows, as its panoptic models see it. Its semantic models were
    scored on windows along the long side; a window would cut its masks, so they see the whole picture too."""
    look = Look(partial(square, side=_side(model.config.image_size)), scale, black_padding=True)
    return UniversalGenerator(model, look, _class_names(model), own_classes=settings.own_classes)


def _points(
    model: Any, scale: PixelScale, preprocessor: Mapping[str, Any], settings: PointSettings
) -> PointGridGenerator:
    side = _side(model.config.prompt_encoder_config.image_size)
    return PointGridGenerator(model, Look(partial(square, side=side, stretch=settings.stretch), scale), settings)


def _side(image_size: Any) -> int:
    """Of the square a model sees; it may be written once or for both sides."""
    sides = set(image_size) if isinstance(image_size, list | tuple) else {image_size}
    side = sides.pop()
    if sides or not isinstance(side, int) or not 1 <= side <= MAX_EDGE:
        raise ValueError(f"image_size is {image_size}; only squares of up to {MAX_EDGE} pixels are known")
    return side


def _class_names(model: Any) -> tuple[str, ...]:
    """In the order of the class logits."""
    names = model.config.id2label
    return tuple(str(names[index]) for index in range(len(names)))


def _check_backbone(folder: Path, config: Mapping[str, Any]) -> None:
    """A trunk may be named by a place on the hub; only its settings, written out, keep a folder self-contained."""
    inner = config.get("backbone_config")
    trunk = inner.get("backbone") if isinstance(inner, dict) else None
    place = trunk if isinstance(trunk, str) and (":" in trunk or "/" in trunk) else None
    if config.get("backbone") is not None and inner is None:
        place = config["backbone"]
    if place is not None:
        raise TransformersFolderError(
            folder,
            f"{CONFIG_FILE} takes its backbone from {place!r}, outside the folder; save the model again with"
            " save_pretrained of a current transformers",
        )


_SAM2_DEFAULTS = {"min_quality": 0.8}
"""SAM 2's own automatic mask generator (arXiv 2408.00714, its released code); SAM 3 has none, and answers alike."""

KINDS: dict[str, Kind] = {
    "mask2former": Kind("Mask2FormerForUniversalSegmentation", EdgeSettings, _mask2former),
    "eomt": Kind("EomtForUniversalSegmentation", UniversalSettings, _eomt),
    "eomt_dinov3": Kind("EomtDinov3ForUniversalSegmentation", UniversalSettings, _eomt),
    "sam": Kind("SamModel", PointSettings, _points),
    "sam2": Kind("Sam2Model", PointSettings, _points, _SAM2_DEFAULTS),
    "sam2_video": Kind("Sam2Model", PointSettings, _points, _SAM2_DEFAULTS),
    "sam3_tracker": Kind("Sam3TrackerModel", PointSettings, _points, _SAM2_DEFAULTS, HALVES),
    "sam3_video": Kind("Sam3TrackerModel", PointSettings, _points, _SAM2_DEFAULTS, HALVES),
}
"""By the `model_type` in config.json. The video folders hold the same model with parts for films, which stay unread."""

"""The mask generator of one model before the region classifier of another.

A composed model on disk is a folder whose lexiseg.json names the folders of its two parts:

    lexiseg.json   {"format": 1, "composed": {"proposals": {...}, "regions": {...}}, "canvas": {...}, ...}
    proposals/     a model folder, or a model of transformers in the hub's layout; none where masks are given
    regions/       a model folder

No part is itself composed, their folders lie directly inside, and reading one fetches nothing and runs no code of it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from torch import nn

from lexiseg.images import Canvas
from lexiseg.proposals.closed_set import ClosedSet
from lexiseg.proposals.clusters import ClusterProposals
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.proposals.transformers_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    PREPROCESSOR_FILE,
    PROCESSOR_FILE,
    TransformersFolderError,
    read_config,
)
from lexiseg.proposals.transformers_folder import WEIGHTS_FILE as TRANSFORMERS_WEIGHTS_FILE
from lexiseg.proposals.transformers_masks import KINDS, UniversalSettings, load_transformers_generator
from lexiseg.proposals.transformers_universal import UniversalGenerator
from lexiseg.regions.attention_pool import AttentionPool
from lexiseg.regions.grown import GrownUntilSeen
from lexiseg.regions.mask_adapter import MaskAdapterPool
from lexiseg.scoring.fusion import GeometricEnsemble, RegionOnly
from lexiseg.system import System
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import replacing
from lexiseg.weights.hub import MissingFileError, UnreachableError
from lexiseg.zoo.model_folder import (
    MAX_SETTINGS_BYTES,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    CanvasSettings,
    GeneratorText,
    Locate,
    Model,
    ModelFolderError,
    OutputSettings,
    Section,
    canvas_settings,
    in_one_line,
    load_located,
    read_settings,
)
from lexiseg.zoo.open_clip_folder import load_open_clip, save_open_clip

ALPHA, BETA = 0.4, 0.8
"""FC-CLIP's exponents, where exponents are asked for and neither part has any."""

OVERLAPPING = OutputSettings(overlap_threshold=0.5, least_cover=0.05)
"""Of generators whose masks may lie over each other and need not cover the photo: a mask that keeps half of itself
still shows where its thing is, and a pixel on the seam of two masks, where both are weak, still has a class."""

WORDLESS = (ClusterProposals, GivenMasks)
"""Generators of this package that read no words and know no classes."""

PROPOSALS, REGIONS = "proposals", "regions"
"""The folders of the parts."""

FolderName = Annotated[str, Field(pattern=r"^\w[\w-]{0,63}$")]
Exponent = Annotated[float, Field(ge=0, le=1)]
GeneratorSettings = Mapping[str, bool | int | float]
"""Of a generator of transformers: see `load_transformers_generator`."""


class CompositionError(ValueError):
    """Two parts that cannot be joined. The message says why."""


class GivenPart(Section):
    """Masks come with the photos."""

    kind: Literal["given"]


class LexisegPart(Section):
    """A model folder of this package."""

    kind: Literal["lexiseg"]
    folder: FolderName


class TransformersPart(Section):
    """A model of transformers in the hub's layout."""

    kind: Literal["transformers"]
    folder: FolderName
    settings: dict[str, bool | int | float] = Field(default_factory=dict, max_length=50)


class Parts(Section):
    """Which generator stands before which classifier; see `Choices` for the rest."""

    proposals: Annotated[GivenPart | LexisegPart | TransformersPart, Field(discriminator="kind")]
    regions: LexisegPart
    alpha: Exponent | None = None
    beta: Exponent | None = None


class ComposedSettings(Section):
    """lexiseg.json of a composed model."""

    format: Literal[1]
    composed: Parts
    canvas: CanvasSettings
    outputs: OutputSettings
    card: dict[str, JsonValue] = Field(default_factory=dict)


Kind = Literal["given", "lexiseg", "transformers", "open_clip"]


@dataclass(frozen=True)
class Source:
    """Where the files of a part are."""

    kind: Kind
    name: str
    locate: Locate
    siblings: bool = False
    """Its text tower may lie in a folder beside it, as among the embedded models."""
    folder: Path | None = None
    """The folder they lie in; None for those of a hub."""


GIVEN = Source("given", "given", Path)
"""It has no files."""


@dataclass(frozen=True)
class Choices:
    """What may be chosen about a composition; None is what follows from its parts."""

    alpha: float | None = None
    """Weight of the region classifier's verdict, against the generator's, for classes the generator was trained on."""
    beta: float | None = None
    """The same for all other classes."""
    canvas: Canvas | None = None
    """None is the classifier's."""
    outputs: OutputSettings | None = None
    settings: GeneratorSettings | None = None
    granularity: float | None = None
    """Of a classifier that paints (OVSeg on given masks or SAM's): 1 for each word's best mask alone, below it also
    those that score more than this share of the best."""


@dataclass(frozen=True)
class Generator:
    """A mask generator, taken out of its model."""

    module: nn.Module
    knows: Literal["words", "its own classes", "nothing"]
    """What its class logits are about, beside void. Of its own classes, those that share a word with the vocabulary
    can be told from the others; the least that such a generator gives is the probability of void."""
    outputs: OutputSettings | None = None
    """None is the classifier's."""
    backbone: nn.Module | None = None
    """The encoder of its model, whose features it reads."""
    fuse: Any = None
    """The fusion of its model."""
    text: GeneratorText | None = None
    """How its words are encoded; None where it reads none."""
    training_phrases: tuple[str, ...] = ()
    own_classes: Vocabulary | None = None
    multiple: int = 1
    """What the sides of its canvas are multiples of."""
    card: Mapping[str, Any] | None = None


def compose(
    proposals: Source, regions: Source, choices: Choices, device: str | torch.device = "cpu", name: str | None = None
) -> Model:
    """The two parts, loaded and joined. Raises CompositionError with the reason where they cannot be."""
    if choices.settings and proposals.kind != "transformers":
        raise CompositionError(f"{proposals.name} has no settings to choose; only generators of transformers have")
    generator = _generator(proposals, choices.settings, device)
    return join(generator, _classifier(regions, device), choices, name or f"{proposals.name}+{regions.name}")


def join(generator: Generator, classifier: Model, choices: Choices, name: str) -> Model:
    """A model that proposes masks with the one and reads them with the other. No weight is copied."""
    system = classifier.system
    module, backbone = generator.module, generator.backbone
    if backbone is not None and not (system.encoder is not None and same_module(backbone, system.encoder)):
        module = OwnBackbone(backbone, module)
    embedder = system.embedder
    fuse = _fusion(generator, classifier, choices)
    # Nobody else judges those masks. An adapter sees even the smallest, and MAFT has its own verdict on them.
    nobody_else = generator.knows != "words" or (isinstance(fuse, RegionOnly) and fuse.only_valid)
    if nobody_else and not isinstance(embedder, MaskAdapterPool):
        embedder = GrownUntilSeen(embedder)
    canvas = choices.canvas or classifier.canvas
    text = generator.text
    same_words = text is None or (text.fingerprint, text.templates) == (classifier.fingerprint, classifier.templates)
    return replace(
        classifier,
        name=name,
        system=System(system.encoder, module, embedder, system.scorer, fuse).eval(),
        canvas=replace(canvas, multiple=math.lcm(canvas.multiple, generator.multiple)),
        outputs=_outputs(generator, classifier, choices),
        training_phrases=generator.training_phrases,
        card={"proposals": dict(generator.card or {}), "regions": dict(classifier.card)},
        query=None if same_words else text,
        own_classes=generator.own_classes,
    )


def _outputs(generator: Generator, classifier: Model, choices: Choices) -> OutputSettings:
    paints = classifier.outputs.paint_threshold is not None  # its own way with masks that overlap
    found = choices.outputs or (None if paints else generator.outputs) or classifier.outputs
    if choices.granularity is None:
        return found
    if found.paint_threshold is None:
        raise CompositionError(f"{classifier.name} has no granularity to choose: all masks vote; only OVSeg's paint")
    if not 0 <= choices.granularity <= 1:
        raise CompositionError(f"granularity is in 0..1, not {choices.granularity}")
    return found.model_copy(update={"granularity": choices.granularity})


def same_module(first: nn.Module, second: nn.Module) -> bool:
    """Whether two modules compute the same: the same layers with the same weights."""
    if first is second:
        return True
    if type(first) is not type(second) or str(first) != str(second) or _settings(first) != _settings(second):
        return False
    mine, others = first.state_dict(), second.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module was built with, as far as it keeps it."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}


def _fusion(generator: Generator, classifier: Model, choices: Choices) -> Any:
    """What the two parts say about each mask, put together."""
    given = [value for value in (choices.alpha, choices.beta) if value is not None]
    if not all(0 <= value <= 1 for value in given):
        raise CompositionError(f"alpha and beta are weights in 0..1, not {', '.join(map(str, given))}")
    if generator.knows == "nothing":
        if given:
            raise CompositionError(
                "alpha and beta weigh two verdicts on the words, but this generator knows no classes"
            )
        return RegionOnly()
    own = classifier.system.fuse
    # A classifier that was never beside such a generator has no say in this.
    alone = isinstance(own, RegionOnly) and not isinstance(generator.fuse, RegionOnly)
    if alone or generator.knows == "its own classes":
        own = generator.fuse
    if not given and not isinstance(own, GeometricEnsemble):
        return own
    usual = own if isinstance(own, GeometricEnsemble) else GeometricEnsemble(ALPHA, BETA)
    return GeometricEnsemble(
        usual.alpha if choices.alpha is None else choices.alpha,
        usual.beta if choices.beta is None else choices.beta,
        only_valid=isinstance(classifier.system.embedder, AttentionPool),
        floor=usual.floor,
    )


# ---------------------------------------------------------------------------------------------------------- the parts


def _generator(source: Source, settings: GeneratorSettings | None, device: str | torch.device) -> Generator:
    if source.kind == "given":
        return Generator(GivenMasks(), "nothing", card={"title": "masks given with the photos"})
    if source.kind == "open_clip":
        raise CompositionError(f"{source.name} is a CLIP, which draws no masks; take it for the regions")
    if source.kind == "transformers":
        return _transformers_generator(source, settings or {}, device)
    model = _load_part(source, device)
    system = model.system
    if isinstance(system.generator, WORDLESS):
        return Generator(
            system.generator,
            "nothing",
            outputs=model.outputs,
            backbone=system.encoder,
            multiple=model.canvas.multiple,
            card=model.card,
        )
    words = model.query or GeneratorText(model.text_encoder, model.fingerprint, model.templates)
    return Generator(
        system.generator,
        "words" if model.own_classes is None else "its own classes",
        backbone=system.encoder,
        fuse=system.fuse,
        text=words if model.own_classes is None else None,
        training_phrases=model.training_phrases,
        own_classes=model.own_classes,
        multiple=model.canvas.multiple,
        card=model.card,
    )


def _transformers_generator(source: Source, settings: GeneratorSettings, device: str | torch.device) -> Generator:
    """A generator that has classes of its own tells them, unless its settings say otherwise."""
    folder = _transformers_folder(source)
    card = {"title": source.name}
    try:
        module = load_transformers_generator(folder, **_effective(folder, settings)).to(device)
        if not isinstance(module, UniversalGenerator) or not module.own_classes:
            return Generator(module, "nothing", outputs=OVERLAPPING, card=card)
        classes = Vocabulary.from_comma_format(module.class_names)
    except ImportError as error:  # the extra is not installed
        raise CompositionError(str(error)) from error
    except ValueError as error:
        where = "" if isinstance(error, TransformersFolderError) else f"{source.name}: "
        raise CompositionError(f"{where}{error}") from error
    return Generator(
        ClosedSet(module),
        "its own classes",
        # It knows nothing about other classes: the classifier's verdict alone, with the generator's on void.
        fuse=GeometricEnsemble(1.0, 1.0),
        training_phrases=classes.phrases,
        own_classes=classes,
        card=card,
    )


def _effective(folder: Path, settings: GeneratorSettings) -> dict[str, bool | int | float]:
    """The settings with ours for what they leave out. Raises ValueError where one is of the wrong type or size."""
    kind = KINDS.get(str(read_config(folder).get("model_type")))
    if kind is None:  # told when it is loaded
        return dict(settings)
    try:
        # As JSON: there a dictionary may stand for the data class, and a whole number for another, but no text for one.
        TypeAdapter(kind.settings).validate_json(json.dumps(dict(settings)), strict=True)
    except ValidationError as error:
        raise ValueError(in_one_line(error, "settings")) from error
    return {"own_classes": True, **settings} if issubclass(kind.settings, UniversalSettings) else dict(settings)


def _transformers_folder(source: Source) -> Path:
    """The folder with the files of a model, all of them there."""
    folder = source.locate(CONFIG_FILE).parent
    try:
        paths = [source.locate(TRANSFORMERS_WEIGHTS_FILE)]
    except MissingFileError as error:
        raise CompositionError(
            f"{source.name}: the repository has no {TRANSFORMERS_WEIGHTS_FILE}; pickles are refused, and weights in "
            "several files are only read from a folder here"
        ) from error
    for name in (PREPROCESSOR_FILE, PROCESSOR_FILE):  # few models have both, and some have none
        with suppress(MissingFileError, UnreachableError):
            paths.append(source.locate(name))
    if any(path.parent != folder for path in paths):
        raise CompositionError(f"{source.name}: the repository changed while it was fetched; run the command again")
    return folder


def _classifier(source: Source, device: str | torch.device) -> Model:
    if source.kind == "open_clip":
        return load_open_clip(source.locate, source.name, device)
    if source.kind != "lexiseg":
        raise CompositionError(f"{source.name} draws masks and reads no regions; name a model that does, or a CLIP")
    return _load_part(source, device)


def _load_part(source: Source, device: str | torch.device) -> Model:
    path = source.locate(SETTINGS_FILE)
    if is_composed(path):
        raise CompositionError(f"{source.name} is itself composed; name the parts of it that you want")
    return load_located(source.locate, source.name, device, siblings=source.siblings)


# -------------------------------------------------------------------------------------------------------- the folder


def is_composed(path: Path) -> bool:
    """Whether a lexiseg.json is that of a composed model. One that cannot be read is not."""
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            return False
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "composed" in content


def load_composed(locate: Locate, name: str, device: str | torch.device = "cpu") -> Model:
    """The composed model whose files `locate` finds: a folder, or a repository of a hub."""
    path = locate(SETTINGS_FILE)
    try:
        settings = ComposedSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelFolderError(f"{path}: {in_one_line(error)}") from error
    parts = settings.composed

    def part(kind: Literal["lexiseg", "transformers"], folder: str) -> Source:
        return Source(kind, f"{name}/{folder}", lambda file: locate(f"{folder}/{file}"))

    drawn = parts.proposals
    choices = Choices(
        parts.alpha,
        parts.beta,
        Canvas(**settings.canvas.model_dump()),
        settings.outputs,
        drawn.settings if isinstance(drawn, TransformersPart) else None,
    )
    proposals = GIVEN if isinstance(drawn, GivenPart) else part(drawn.kind, drawn.folder)
    try:
        model = compose(proposals, part("lexiseg", parts.regions.folder), choices, device, name)
    except (CompositionError, TransformersFolderError) as error:
        raise ModelFolderError(f"{path}: {error}") from error
    return replace(model, card=settings.card)


def save_composed(folder: str | Path, proposals: Source, regions: Source, choices: Choices) -> Path:
    """Writes a folder that `load_composed` reads, after the two parts have been joined once: it will work.

    The files of the parts are copied into it.
    """
    folder = Path(folder)
    for source, inside in ((proposals, folder / PROPOSALS), (regions, folder / REGIONS)):
        if source.folder is not None and source.folder.resolve() == inside.resolve():
            raise CompositionError(f"{inside}: this is the part itself; write the composed model into another folder")
    model = compose(proposals, regions, choices)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS_FILE
    if is_composed(path):
        for part in (PROPOSALS, REGIONS):
            shutil.rmtree(folder / part, ignore_errors=True)
    # Without its settings a folder is no model: while files are being replaced it is not taken for one.
    path.unlink(missing_ok=True)
    drawn: GivenPart | LexisegPart | TransformersPart
    if proposals.kind == "given":
        drawn = GivenPart(kind="given")
    elif proposals.kind == "transformers":
        _copy_transformers(proposals, folder / PROPOSALS)
        effective = _effective(folder / PROPOSALS, choices.settings or {})
        drawn = TransformersPart(kind="transformers", folder=PROPOSALS, settings=effective)
    else:
        _copy_model(proposals, folder / PROPOSALS)
        drawn = LexisegPart(kind="lexiseg", folder=PROPOSALS)
    if regions.kind == "open_clip":
        save_open_clip(regions.locate, regions.name, folder / REGIONS)
    else:
        _copy_model(regions, folder / REGIONS)
    composed = ComposedSettings(
        format=1,
        composed=Parts(
            proposals=drawn,
            regions=LexisegPart(kind="lexiseg", folder=REGIONS),
            alpha=choices.alpha,
            beta=choices.beta,
        ),
        canvas=canvas_settings(model.canvas),
        outputs=model.outputs,
        card=json.loads(json.dumps(dict(model.card))),
    )
    with replacing(path) as temporary:
        content = composed.model_dump(mode="json")
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return folder


def _copy_model(source: Source, folder: Path) -> None:
    """A model folder, with its text tower inside even where it lay beside."""
    path = source.locate(SETTINGS_FILE)
    settings = read_settings(path, siblings=source.siblings)
    folder.mkdir(exist_ok=True)
    texts = [settings.text, *([] if settings.query is None else [settings.query.text])]
    inside = {WEIGHTS_FILE: WEIGHTS_FILE, **{name: name.rpartition("/")[2] for name in texts}}
    for name, copy in inside.items():
        shutil.copyfile(source.locate(name), folder / copy)
    query = settings.query and settings.query.model_copy(update={"text": inside[settings.query.text]})
    facts = {inside[name]: value for name, value in settings.files.items() if name in inside}
    update = {"text": inside[settings.text], "query": query, "files": facts}
    content = settings.model_copy(update=update).model_dump(mode="json")
    (folder / SETTINGS_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_transformers(source: Source, folder: Path) -> None:
    origin = _transformers_folder(source)
    folder.mkdir(exist_ok=True)
    names = [CONFIG_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE, TRANSFORMERS_WEIGHTS_FILE]
    if not (origin / TRANSFORMERS_WEIGHTS_FILE).is_file():  # in several files, and a list of them
        names += [INDEX_FILE, *(path.name for path in origin.glob("*.safetensors"))]
    for name in names:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, folder / name)

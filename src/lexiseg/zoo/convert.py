"""Official checkpoints into model folders, every tensor accounted for: what `lexiseg convert` does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.images import Canvas
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.proposals.freeseg import freeseg_generator
from lexiseg.proposals.maskformer import maskformer_generator
from lexiseg.vocabulary import Vocabulary, VocabularyError
from lexiseg.weights import fcclip as fcclip_layout
from lexiseg.weights import maft as maft_layout
from lexiseg.weights import maftplus as maftplus_layout
from lexiseg.weights import mask_adapter as adapter_layout
from lexiseg.weights import maskclip_pp as classifier_layout
from lexiseg.weights import ovseg as ovseg_layout
from lexiseg.weights.files import read_checkpoint, sha256_of
from lexiseg.weights.rules import Conversion, ConversionError, Ignored, Rule, shapes_of
from lexiseg.zoo.assembly import Assembled, assemble
from lexiseg.zoo.catalogue import (
    FCCLIP_PAPER,
    MAFT_PAPER,
    MAFTPLUS_PAPER,
    MASK_ADAPTER_PAPER,
    MASKCLIP_PP_PAPER,
    OVSEG_PAPER,
    ZOO,
    Entry,
    OfficialFile,
)
from lexiseg.zoo.coco_words import COCO_CLASSES, COCO_PHRASES, COCO_STUFF_PHRASES
from lexiseg.zoo.loading import converted_folder
from lexiseg.zoo.maft import CANVAS as MAFT_CANVAS
from lexiseg.zoo.maftplus import OBJECT_MASK_THRESHOLD, OVERLAP_THRESHOLD
from lexiseg.zoo.mask_adapter import CANVAS, FCCLIP_OVERLAP_THRESHOLD, MAFTPLUS_OVERLAP_THRESHOLD
from lexiseg.zoo.model_folder import BUILDERS, OutputSettings, Query, save_model_folder
from lexiseg.zoo.ovseg import (
    GIVEN_CANVAS,
    GRANULARITY,
    LARGE_CANVAS,
    SMALL_CANVAS,
    SMALL_THRESHOLD,
    USER_WORDS_THRESHOLD,
)


@dataclass(frozen=True)
class CheckpointLayout:
    """One kind of official checkpoint, and the model it becomes."""

    title: str
    paper: str
    builder: str
    recognises: Callable[[Mapping[str, Tensor]], bool]
    """Whether the names are those of this kind; several layouts may share them."""
    told: Callable[[Mapping[str, Tensor]], bool] = lambda source: True
    """Whether a file with these names is this one of them."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the builder, beside the tower and what the shapes say."""
    rules: Sequence[Rule] = fcclip_layout.SYSTEM_RULES
    ignored: Sequence[Ignored] = fcclip_layout.IGNORED
    outputs: OutputSettings = field(default_factory=OutputSettings)
    training_phrases: tuple[str, ...] = COCO_PHRASES
    canvas: Canvas = field(default_factory=Canvas)
    embedder_sizes: Callable[[Mapping[str, Tensor]], dict[str, int]] = lambda source: {}
    """Arguments of the builder that the shapes of the embedder ask for."""
    describe: Callable[[Mapping[str, Tensor]], dict[str, Any]] | None = None
    """All that names and shapes tell, the tower included, as arguments of the builder; None where the generator and the
    tower are of FC-CLIP's kinds."""
    clip: str = fcclip_layout.CLIP
    """How the names of the text tower begin."""
    templates: str | list[str] = "fcclip14"


def _maftplus(title: str, norm_order: str, training_phrases: tuple[str, ...]) -> CheckpointLayout:
    return CheckpointLayout(
        title=title,
        paper=MAFTPLUS_PAPER,
        builder="maftplus",
        recognises=maftplus_layout.is_official,
        told=lambda source: maftplus_layout.norm_order(source) == norm_order,
        arguments={"norm_order": norm_order},
        rules=maftplus_layout.SYSTEM_RULES,
        ignored=maftplus_layout.IGNORED,
        outputs=OutputSettings(object_mask_threshold=OBJECT_MASK_THRESHOLD, overlap_threshold=OVERLAP_THRESHOLD),
        training_phrases=training_phrases,
    )


def _adapter_sizes(source: Mapping[str, Tensor]) -> dict[str, int]:
    found = adapter_layout.describe_adapter(source)
    told = {"adapter_width": found.width, "adapter_mask_width": found.mask_width, "adapter_maps": found.num_maps}
    defaults = inspect.signature(BUILDERS["mask_adapter_fcclip"].system).parameters
    return {name: value for name, value in told.items() if value != defaults[name].default}


def _mask_adapter_on_maftplus(joint_width: int, arguments: Mapping[str, Any]) -> CheckpointLayout:
    return CheckpointLayout(
        title="Mask-Adapter on MAFT+",
        paper=MASK_ADAPTER_PAPER,
        builder="mask_adapter_maftplus",
        recognises=adapter_layout.is_on_maftplus,
        told=lambda source: adapter_layout.describe_adapter(source).joint_width == joint_width,
        arguments=arguments,
        rules=adapter_layout.SYSTEM_RULES,
        ignored=adapter_layout.IGNORED,
        outputs=OutputSettings(overlap_threshold=MAFTPLUS_OVERLAP_THRESHOLD),
        training_phrases=COCO_STUFF_PHRASES,
        canvas=CANVAS,
        embedder_sizes=_adapter_sizes,
    )


def _ovseg(large: bool, **words: Any) -> CheckpointLayout:
    threshold = {} if large else {"threshold": SMALL_THRESHOLD}
    return CheckpointLayout(
        title="OVSeg",
        paper=OVSEG_PAPER,
        builder="ovseg",
        recognises=ovseg_layout.is_official,
        told=lambda source: not words and ovseg_layout.has_swin(source) == large,
        arguments={**threshold, **words},
        rules=ovseg_layout.SYSTEM_RULES,
        ignored=ovseg_layout.IGNORED,
        outputs=OutputSettings(paint_threshold=USER_WORDS_THRESHOLD if words else None),
        training_phrases=COCO_STUFF_PHRASES,
        canvas=LARGE_CANVAS if large else SMALL_CANVAS,
        describe=_ovseg_sizes,
        clip=ovseg_layout.CLIP,
    )


def _unusual(told: Mapping[str, Any], *builders: Callable[..., Any]) -> dict[str, Any]:
    """Of what a file tells, the arguments that differ from the defaults of the builders."""
    usual = {
        name: value.default for builder in builders for name, value in inspect.signature(builder).parameters.items()
    }
    return {name: value for name, value in told.items() if value != usual[name]}


def _ovseg_sizes(source: Mapping[str, Tensor]) -> dict[str, Any]:
    return _unusual(ovseg_layout.describe(source), BUILDERS["ovseg"].system, maskformer_generator)


def _ovseg_clip_sizes(source: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value for name, value in ovseg_layout.describe_clip(source).items() if value}


def _maft_sizes(source: Mapping[str, Tensor]) -> dict[str, Any]:
    told = maft_layout.describe(source)
    heads = inspect.signature(freeseg_generator).parameters["heads"].default
    told["points"] = told.pop("heads_times_points") // heads
    return _unusual(told, BUILDERS["maft"].system, freeseg_generator)


def _maft(tuned: bool) -> CheckpointLayout:
    return CheckpointLayout(
        title="MAFT" if tuned else "FreeSeg",
        paper=MAFT_PAPER,
        builder="maft" if tuned else "freeseg",
        recognises=maft_layout.is_official,
        told=lambda source: maft_layout.is_tuned(source) == tuned,
        rules=maft_layout.MAFT_RULES if tuned else maft_layout.FREESEG_RULES,
        ignored=maft_layout.MAFT_IGNORED if tuned else maft_layout.FREESEG_IGNORED,
        training_phrases=COCO_STUFF_PHRASES,
        canvas=MAFT_CANVAS,
        describe=_maft_sizes,
        clip=maft_layout.CLIP,
    )


CLASSIFIERS: dict[str, bool | None] = {
    "maskclip-pp": None,
    "maskclip-pp-coco-panoptic": False,
    "maskclip-pp-coco-stuff": True,
}
"""Name -> whether a classifier of masks was trained on COCO-Stuff, or None to tell it by the files it stands with."""

LAYOUTS: dict[str, CheckpointLayout] = {
    "mask-adapter-fcclip": CheckpointLayout(
        title="Mask-Adapter on FC-CLIP",
        paper=MASK_ADAPTER_PAPER,
        builder="mask_adapter_fcclip",
        recognises=adapter_layout.is_on_fcclip,
        rules=adapter_layout.SYSTEM_RULES,
        ignored=adapter_layout.IGNORED,
        outputs=OutputSettings(overlap_threshold=FCCLIP_OVERLAP_THRESHOLD),
        canvas=CANVAS,
        embedder_sizes=_adapter_sizes,
    ),
    # Exponents, threshold and form of the transfer are in no file; the base and the large model were scored so.
    "mask-adapter-maftplus-base": _mask_adapter_on_maftplus(640, {}),
    "mask-adapter-maftplus-large": _mask_adapter_on_maftplus(
        768, {"alpha": 0.8, "mask_threshold": 0.4, "norm_order": "before_sum"}
    ),
    "maftplus-semantic": _maftplus("MAFT+", "after_sum", COCO_STUFF_PHRASES),
    "maftplus-panoptic": _maftplus("MAFT+, panoptic", "before_sum", COCO_PHRASES),
    "ovseg-small": _ovseg(large=False),
    "ovseg-large": _ovseg(large=True),
    # The same file, scored as with a user's own words.
    "ovseg-large-words": _ovseg(large=True, verdict="clip", threshold=USER_WORDS_THRESHOLD),
    "ovseg-clip": CheckpointLayout(
        title="CLIP on masked crops, as in OVSeg",
        paper=OVSEG_PAPER,
        builder="ovseg_given",
        recognises=ovseg_layout.is_clip,
        rules=ovseg_layout.CLIP_RULES,
        ignored=ovseg_layout.CLIP_IGNORED,
        # As in the demonstration with SAM.
        outputs=OutputSettings(paint_threshold=SMALL_THRESHOLD, granularity=GRANULARITY),
        training_phrases=COCO_STUFF_PHRASES,
        canvas=GIVEN_CANVAS,
        describe=_ovseg_clip_sizes,
        clip="",
        templates=["a photo of {}"],
    ),
    "maft": _maft(tuned=True),
    # A file of MAFT holds the FreeSeg that it started from, too.
    "freeseg": _maft(tuned=False),
    # Last: the others have its names, and more.
    "fcclip": CheckpointLayout("FC-CLIP", FCCLIP_PAPER, "fcclip", fcclip_layout.is_official),
}
"""Name -> layout, in the order in which files are compared with them."""


def _named(reasons: Mapping[str, str], reason: str) -> str:
    """The tensors left out for a reason, or how many there are."""
    names = [name for name, given in reasons.items() if given == reason]
    return names[0] if len(names) == 1 else f"{len(names)} tensors, from {names[0]} on"


@dataclass(frozen=True)
class Report:
    """What became of every tensor of the file."""

    layout: str
    name: str | None
    """The model of the zoo it is; None for a tower that no published model has."""
    tower: str
    folder: Path
    system_tensors: int
    text_tensors: int
    ignored: dict[str, str]
    """Source name -> reason."""
    fresh: dict[str, str]
    """Target name -> reason."""
    parameters: int

    def summary(self) -> str:
        """A few lines for a person."""
        read = self.system_tensors + self.text_tensors - len(self.fresh) + len(self.ignored)
        lines = [
            f"{self.layout} checkpoint with the tower {self.tower}"
            + (f": this is {self.name}" if self.name else ": not a published model"),
            f"{read} tensors in the file: {self.system_tensors - len(self.fresh)} for the model, "
            f"{self.text_tensors} for the text tower, {len(self.ignored)} not needed",
            *(
                f"  not needed: {_named(self.ignored, reason)} ({reason})"
                for reason in dict.fromkeys(self.ignored.values())
            ),
        ]
        if self.fresh:
            lines.append(f"{len(self.fresh)} not in the file and not needed: {next(iter(self.fresh.values()))}")
        lines.append(f"{self.parameters / 1e6:.1f} M parameters written to {self.folder}")
        return "\n".join(lines)


def convert(
    file: str | Path,
    out: str | Path | None = None,
    layout: str = "auto",
    *,
    base: str | Path | None = None,
    generator: str | Path | None = None,
    clips: Sequence[str | Path] = (),
    tower: str | dict[str, Any] | None = None,
    training_phrases: Iterable[str] | None = None,
    **sizes_of_classifier: Any,
) -> Report:
    """Reads an official checkpoint and writes a model folder.

    base: for an adapter after its first training stage, the checkpoint of the model it was made for; the two are
    joined, which is what the second stage starts from. generator, clips: for a classifier of masks, the file of the
    generator it is to stand behind and those of the CLIPs that neither file holds; without a generator it names masks
    that are given. For OVSeg, what was trained afterwards, in order: a CLIP in the place of that in its file, prompts
    in the place of its prompts. out: None puts a published model where `load` finds it by its name. layout: a name of
    LAYOUTS or CLASSIFIERS, or "auto". tower, sizes_of_classifier (see `assemble`): only for checkpoints whose tower is
    none of the published ones. training_phrases: the words the model was trained with, where the user has the official
    list; otherwise ours for COCO (see `coco_words`).
    """
    file = Path(file)
    if layout not in ("auto", *LAYOUTS, *CLASSIFIERS):
        known = ", ".join((*LAYOUTS, *CLASSIFIERS))
        raise ConversionError(f"no layout is called {layout!r}: choose one of auto, {known}")
    first = read_checkpoint(file)
    if base is None and classifier_layout.is_official(first) and layout in ("auto", *CLASSIFIERS):
        files = [file, *([] if generator is None else [Path(generator)]), *(Path(clip) for clip in clips)]
        sources = [first, *(read_checkpoint(path) for path in files[1:])]
        assembled = assemble(
            first,
            None if generator is None else sources[1],
            sources[1 if generator is None else 2 :],
            tower=tower,
            on_stuff=CLASSIFIERS.get(layout),
            **sizes_of_classifier,
        )
        return _save_assembled(assembled, files, out, training_phrases)
    if layout in CLASSIFIERS:
        raise ConversionError(f"{file}: not a MaskCLIP++ checkpoint: its names are others")
    exchanged = bool(clips) and (ovseg_layout.is_official(first) or ovseg_layout.is_clip(first))
    if generator is not None or sizes_of_classifier or (clips and not exchanged):
        raise ConversionError(f"{file}: not a classifier of masks; only those stand with a generator of another file")
    if exchanged:
        first = ovseg_layout.with_parts(first, [read_checkpoint(path) for path in clips])
    source = _with_base(file, first, None if base is None else Path(base))
    joined = ", ".join(Path(clip).name for clip in clips) or (None if base is None else Path(base).name)
    layout = recognise(file, source) if layout == "auto" else layout
    kind = LAYOUTS[layout]
    if not kind.recognises(source):
        raise ConversionError(f"{file}: not a checkpoint of {kind.title}: its names are others")
    arguments = _arguments(file, source, kind, tower)
    account, system, text = convert_state(source, arguments, layout)
    entry = None if base is not None or clips else published_entry(kind.builder, arguments)
    if out is None and entry is None:
        raise ConversionError(f"{file}: not a published model, so it has no name of its own; say where it goes")
    folder = Path(out) if out is not None else converted_folder(entry.name if entry else "")
    save_model_folder(
        folder,
        system,
        text,
        builder=kind.builder,
        arguments=arguments,
        templates=kind.templates,
        canvas=kind.canvas,
        outputs=kind.outputs,
        training_phrases=list(kind.training_phrases if training_phrases is None else training_phrases),
        card=card(entry, kind.title, kind.paper, file) | ({"joined_with": joined} if joined else {}),
    )
    return Report(
        layout=layout,
        name=entry.name if entry else None,
        tower=arguments["tower"] if isinstance(arguments["tower"], str) else "given",
        folder=folder,
        system_tensors=len(system),
        text_tensors=len(text),
        ignored=account.ignored,
        fresh=account.fresh,
        parameters=sum(tensor.numel() for tensor in (*system.values(), *text.values())),
    )


def _arguments(
    file: Path, source: Mapping[str, Tensor], kind: CheckpointLayout, tower: str | dict[str, Any] | None
) -> dict[str, Any]:
    """The arguments of the builder for a checkpoint. tower: given by the user. The file is for messages only."""
    if kind.describe is not None:
        told = kind.describe(source)
        return told | ({} if tower is None else {"tower": tower}) | dict(kind.arguments)
    found = fcclip_layout.describe(source)
    tower = tower or found.tower
    if tower is None:
        raise ConversionError(
            f"{file}: a {found.family} with {found.depths} blocks, {found.widths} channels and a joint width of "
            f"{found.embed_dim} is none of the published towers; give its open_clip name or configuration"
        )
    return {"tower": tower, **kind.arguments, **sizes(found, kind.builder), **kind.embedder_sizes(source)}


def _save_assembled(
    assembled: Assembled, files: Sequence[Path], out: str | Path | None, training_phrases: Iterable[str] | None
) -> Report:
    """A classifier with its generator as a model folder. files: all that were read, the classifier's first."""
    entry = published_entry(assembled.builder, assembled.arguments, panoptic=assembled.panoptic)
    if out is None and entry is None:
        raise ConversionError(
            f"{files[0]}: no published model is put together so, and it has no name of its own; say where it goes"
            + (" (or give a mask generator: --generator FILE)" if assembled.builder == "maskclip_pp_given" else "")
        )
    folder = Path(out) if out is not None else converted_folder(entry.name if entry else "")
    templates, query = assembled.templates, assembled.query_templates
    words = COCO_STUFF_PHRASES if assembled.seen_stuff else COCO_PHRASES
    told = card(entry, "MaskCLIP++", MASKCLIP_PP_PAPER, files[0])
    save_model_folder(
        folder,
        assembled.system,
        assembled.text,
        builder=assembled.builder,
        arguments=assembled.arguments,
        templates=templates,
        mix_templates=False,
        query=None if query is None else Query(query, assembled.query_text),
        own_classes=_own_classes(assembled),
        canvas=assembled.canvas,
        outputs=assembled.outputs,
        training_phrases=list(words if training_phrases is None else training_phrases),
        card=told | {"put_together_with": {path.name: sha256_of(path) for path in files[1:]}},
    )
    parts = assembled.accounts.items()
    states = (assembled.system, assembled.text, assembled.query_text or {})
    return Report(
        layout="maskclip-pp",
        name=entry.name if entry else None,
        tower=str(assembled.arguments["tower"]) if isinstance(assembled.arguments["tower"], str) else "given",
        folder=folder,
        system_tensors=len(assembled.system),
        text_tensors=len(assembled.text) + len(assembled.query_text or {}),
        ignored={f"{part}: {name}": reason for part, account in parts for name, reason in account.ignored.items()},
        fresh={name: reason for _, account in parts for name, reason in account.fresh.items()},
        parameters=sum(tensor.numel() for state in states for tensor in state.values()),
    )


def _own_classes(assembled: Assembled) -> tuple[str, ...]:
    """The classes of a generator trained on COCO panoptic; of another list only the probability of void is of use."""
    if assembled.builder != "maskclip_pp_mask2former" or "num_classes" in assembled.arguments:
        return ()
    return COCO_CLASSES


def _with_base(file: Path, source: dict[str, Tensor], base: Path | None) -> dict[str, Tensor]:
    """The tensors of a whole model: those of the file, or of both files joined."""
    if base is not None:
        return adapter_layout.join_stages(source, read_checkpoint(base))
    if adapter_layout.is_first_stage(source):
        raise ConversionError(
            f"{file}: an adapter after its first training stage, without a mask generator; give the checkpoint of the "
            "model it was made for as well (--base FILE)"
        )
    return source


def recognise(file: Path, source: Mapping[str, Tensor]) -> str:
    """The name of the layout of a checkpoint. The file is for messages only."""
    fitting = {name: layout for name, layout in LAYOUTS.items() if layout.recognises(source)}
    if not fitting:
        shown = ", ".join(list(source)[:3])
        raise ConversionError(
            f"{file}: not an FC-CLIP or MAFT+ checkpoint (its first tensors are {shown}); "
            "expected names begin with backbone.clip_model., sem_seg_head.pixel_decoder. and sem_seg_head.predictor."
        )
    first = next(iter(fitting.values()))
    alike = {name: layout for name, layout in fitting.items() if layout.recognises == first.recognises}
    for name, layout in alike.items():
        if layout.told(source):
            return name
    raise ConversionError(f"{file}: does not tell which it is; name the layout: {' or '.join(alike)}")


def convert_state(
    source: Mapping[str, Tensor], arguments: Mapping[str, Any], layout: str = "fcclip"
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """The account, and complete state dicts of the system that these arguments build and of its text encoder."""
    kind = LAYOUTS[layout]
    builder = BUILDERS[kind.builder]
    account, system, text = fcclip_layout.convert_official(
        source,
        shapes_of(builder.system(**arguments).state_dict()),
        shapes_of(builder.text_encoder(arguments["tower"]).state_dict()),
        kind.rules,
        kind.ignored,
        kind.clip,
    )
    # The only fresh tensors are counters of batch norm.
    system |= {name: torch.zeros((), dtype=torch.int64) for name in account.fresh}
    return account, system, text


def sizes(found: fcclip_layout.Layout, builder: str = "fcclip") -> dict[str, int]:
    """The arguments of a builder that a checkpoint needs beyond its defaults: sizes of the generator."""
    described = {name: value.default for name, value in inspect.signature(fcclip_generator).parameters.items()}
    own = {name: value.default for name, value in inspect.signature(BUILDERS[builder].system).parameters.items()}
    defaults = described | {name: value for name, value in own.items() if name in described}
    told = {
        **{name: getattr(found, name) for name in defaults if hasattr(found, name)},
        "points": found.heads_times_points // defaults["heads"],
    }
    return {name: value for name, value in told.items() if value != defaults[name]}


def published_entry(builder: str, arguments: Mapping[str, Any], panoptic: bool = False) -> Entry | None:
    """The model of the zoo that is built so; `panoptic` tells two apart that differ in the weights alone."""
    fitting = [
        entry
        for entry in ZOO.values()
        if isinstance(entry.source, OfficialFile) and entry.builder == builder and entry.arguments == arguments
    ]
    if len(fitting) > 1:
        fitting = [entry for entry in fitting if entry.name.endswith("-panoptic") == panoptic]
    return fitting[0] if fitting else None


def read_training_phrases(file: str | Path) -> list[str]:
    """The phrases of a class list in the official format (see `Vocabulary.from_class_list`)."""
    try:
        return list(Vocabulary.from_class_list(file).phrases)
    except VocabularyError as error:
        raise ConversionError(f"no class list: {error}") from None


def card(entry: Entry | None, title: str, paper: str, file: Path) -> dict[str, Any]:
    """What the model folder says about itself. title, paper: of models that are not published."""
    origin = {"converted_from": file.name, "source_sha256": sha256_of(file), "paper": paper}
    if entry is None:
        return {"title": title, **origin}
    return {
        "title": entry.title,
        **origin,
        "code_licence": entry.code_licence,
        "weights_licence": entry.weights_licence,
        "trained_on": entry.trained_on,
        "published": {benchmark: dict(numbers) for benchmark, numbers in entry.published.items()},
        "published_miou_rule": entry.miou_rule,
    }

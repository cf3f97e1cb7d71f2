"""MaskCLIP++ put together from its official files: the classifier, a generator of masks, and the words' tower."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lexiseg.clip.open_clip import build_text_encoder
from lexiseg.images import Canvas
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.proposals.mask2former import mask2former_generator
from lexiseg.system import System
from lexiseg.weights import fcclip as fcclip_layout
from lexiseg.weights import maftplus as maftplus_layout
from lexiseg.weights import mask2former as mask2former_layout
from lexiseg.weights import maskclip_pp as layout
from lexiseg.weights.rules import Conversion, ConversionError, convert, shapes_of
from lexiseg.zoo.mask2former import SWIN
from lexiseg.zoo.maskclip_pp import maskclip_pp, maskclip_pp_given, maskclip_pp_mask2former
from lexiseg.zoo.model_folder import OutputSettings

SHORT_EDGES = {
    "convnext_base_w_320": 512,
    "convnext_large_d_320": 640,
    "convnext_xxlarge": 640,
    "RN50x16": 512,
    "EVA02-B-16": 384,
    "EVA02-L-14-336": 392,
    "EVA01-g-14-plus": 336,
}
"""Tower -> the size at which the released classifier was scored. It is in no file."""

TEMPLATE_SETS = {None: "fcclip14", 1: "photo1", 14: "fcclip14"}
"""How many templates the similarity modelling weighs -> which; those that look at the picture were trained with 14."""

GENERATOR_SHORT_EDGE = 800
"""What the generators look at, whatever was done to the photo before; only Swin-T takes the photo as it then is."""


SYSTEMS: dict[str, Callable[..., System]] = {
    "maskclip_pp": maskclip_pp,
    "maskclip_pp_mask2former": maskclip_pp_mask2former,
    "maskclip_pp_given": maskclip_pp_given,
}
"""The builders this module fills."""


MAFTPLUS_QUERIES = 100
"""FC-CLIP's generators have 250."""


@dataclass(frozen=True)
class Assembled:
    """A whole model as plain tensors and settings."""

    builder: str
    arguments: dict[str, Any]
    system: dict[str, Tensor]
    text: dict[str, Tensor]
    query_text: dict[str, Tensor] | None
    """None for generators that read no words, or by the same tower."""
    query_templates: str | None
    """None for generators that read no words."""
    templates: str
    canvas: Canvas
    outputs: OutputSettings
    on_stuff: bool
    """The classifier was trained on COCO-Stuff, not on COCO panoptic."""
    seen_stuff: bool
    """The released settings count the words of COCO-Stuff as seen: those of the generator's training."""
    panoptic: bool
    """The generator is the panoptic form of MAFT+."""
    accounts: dict[str, Conversion] = field(default_factory=dict)
    """What became of the tensors of "classifier", "generator" and "words", the last where it is a file of its own."""


@dataclass(frozen=True)
class _Generator:
    """What the file of a generator says."""

    source: Mapping[str, Tensor]
    builder: str
    arguments: dict[str, Any]
    targets: dict[str, tuple[int, ...]]
    """Of the words' tower it reads, prefixed "query_text."; empty for those that read none."""
    panoptic: bool | None
    """MAFT+: trained on COCO panoptic; None for the others."""


def assemble(
    classifier: Mapping[str, Tensor],
    generator: Mapping[str, Tensor] | None = None,
    clips: Sequence[Mapping[str, Tensor]] = (),
    *,
    tower: str | Mapping[str, Any] | None = None,
    generator_tower: str | Mapping[str, Any] | None = None,
    short_edge: int | None = None,
    on_stuff: bool | None = None,
) -> Assembled:
    """Reads every file to the last tensor, or raises `ConversionError`.

    generator: None for a classifier of given masks alone. clips: files with the CLIP the classifier began with, for its
    words where the classifier's file has none, and with that of the generator where its file has none. tower,
    generator_tower, short_edge: only for models that are not published. on_stuff: which data the classifier was trained
    on; None: COCO-Stuff if it tuned its words or stands behind MAFT+, as the released ones. A file of MAFT+ that does
    not tell which form it is counts as a semantic one.
    """
    found = layout.describe(classifier)
    tower = tower or found.tower
    if tower is None:
        raise ConversionError(f"a {found.family} of this size is no published classifier; give its open_clip name")
    short_edge = short_edge or (SHORT_EDGES.get(tower) if isinstance(tower, str) else None)
    if short_edge is None:
        raise ConversionError(f"the size of the pictures that {tower} looks at is in no file; give it")
    if found.num_templates not in TEMPLATE_SETS:
        raise ConversionError(
            f"weighs {found.num_templates} templates; which they are is in no file, only 1 and 14 are known"
        )
    masks = _read_generator(generator, clips, generator_tower)
    stuff = (found.has_words or masks.panoptic is not None) if on_stuff is None else on_stuff
    arguments = {"tower": tower, **masks.arguments, "short_edge": short_edge, **_classifier_sizes(found)}
    if stuff and generator is not None:  # only those were released with an ensemble
        arguments["alpha"] = 0.9 if found.has_words else 0.6
    targets = shapes_of(SYSTEMS[masks.builder](**arguments).state_dict())
    of_generator = {name: shape for name, shape in targets.items() if name.startswith("generator.")} | masks.targets
    of_classifier = {name: shape for name, shape in targets.items() if name not in of_generator}
    of_words = {f"text.{name}": s for name, s in shapes_of(build_text_encoder(tower).state_dict()).items()}
    if "scorer.logit_scale" in of_classifier:
        of_words["scorer.logit_scale"] = of_classifier.pop("scorer.logit_scale")

    accounts = {"generator": _convert_generator(masks, of_generator)}
    filled = dict(accounts["generator"].tensors)
    if found.has_words:
        of_classifier |= of_words
    else:
        own_file = _words_of(found, of_words, clips)
        # MAFT+'s CLIP has been tuned: the classifier did not begin with it.
        source = own_file or _words_of(found, of_words, [masks.source] if masks.panoptic is None else [])
        if source is None:
            raise ConversionError(
                f"the classifier's file has no words' tower, and none of the other files has that of {tower}: give the "
                "CLIP it began with as open_clip or EVA-CLIP publish it"
            )
        words = _convert_words(source, of_words)
        filled |= words.tensors
        if own_file is not None:
            accounts["words"] = words
    rules = layout.rules_for(found)
    accounts["classifier"] = convert(classifier, of_classifier, rules, layout.IGNORED, fcclip_layout.FRESH)
    filled |= accounts["classifier"].tensors
    # The only fresh tensors are counters of batch norm.
    filled |= {name: torch.zeros((), dtype=torch.int64) for account in accounts.values() for name in account.fresh}
    text, query_text = _below("text.", filled), _below("query_text.", filled)
    shared = query_text.keys() == text.keys() and all(query_text[name] is tensor for name, tensor in text.items())
    return Assembled(
        builder=masks.builder,
        arguments=arguments,
        system={name: filled[name] for name in targets},
        text=text,
        query_text=None if shared or not query_text else query_text,
        query_templates="fcclip14" if query_text else None,
        templates=TEMPLATE_SETS[found.num_templates],
        canvas=_canvas(tower, masks, stuff),
        outputs=_outputs(masks, stuff),
        on_stuff=stuff,
        seen_stuff=stuff and masks.panoptic is False,
        panoptic=bool(masks.panoptic),
        accounts=accounts,
    )


def _classifier_sizes(found: layout.Classifier) -> dict[str, Any]:
    """Arguments of the builder that the file asks for, where they are not the usual ones."""
    usual = inspect.signature(maskclip_pp).parameters
    told = {name: getattr(found, name) for name in ("num_templates", "mix_width", "mask_blocks")}
    return {name: value for name, value in told.items() if value is not None and value != usual[name].default}


def _read_generator(
    source: Mapping[str, Tensor] | None, clips: Sequence[Mapping[str, Tensor]], tower: str | Mapping[str, Any] | None
) -> _Generator:
    if source is None:
        return _Generator({}, "maskclip_pp_given", {}, {}, None)
    if mask2former_layout.is_official(source):
        sizes = mask2former_layout.describe_swin(source)
        told = {"width": sizes.width, "depths": sizes.depths, "heads": sizes.heads, "window": sizes.window}
        swin: Any = next((name for name, known in SWIN.items() if known == told), None)
        swin = swin or {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}
        described = mask2former_layout.describe_decoders(source)
        described["num_classes"] = mask2former_layout.describe_classes(source)
        arguments = {"swin": swin, **_sizes(described, maskclip_pp_mask2former, mask2former_generator)}
        return _Generator(source, "maskclip_pp_mask2former", arguments, {}, None)
    if not fcclip_layout.is_official(source):
        source = _completed(source, clips)
    found = fcclip_layout.describe(source)
    tower = tower or found.tower
    if tower is None:
        raise ConversionError(f"the generator reads a {found.family} that is none of the published towers; name it")
    described = {name: value for name, value in vars(found).items() if isinstance(value, int)}
    arguments = {"generator_tower": tower, **_sizes(described, maskclip_pp, fcclip_generator)}
    text = {f"query_text.{name}": s for name, s in shapes_of(build_text_encoder(tower).state_dict()).items()}
    # What is left of a MAFT+ file without its own classifier still tells that its CLIP was tuned: its 100 queries.
    tuned = maftplus_layout.is_official(source) or found.num_queries == MAFTPLUS_QUERIES
    panoptic = maftplus_layout.norm_order(source) == "before_sum" if tuned else None
    return _Generator(source, "maskclip_pp", arguments, text, panoptic)


def _completed(source: Mapping[str, Tensor], clips: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """A generator whose file lacks the frozen CLIP, with the one of `clips` that open_clip publishes for it."""
    for clip in clips:
        if layout.clip_prefix(clip) == "" and layout.clip_family(clip) in ("convnext", "resnet"):
            joined = layout.with_clip(source, clip)
            if fcclip_layout.is_official(joined):
                return joined
    shown = ", ".join(list(source)[:3])
    raise ConversionError(
        f"the generator is no checkpoint of FC-CLIP, MAFT+ or Mask2Former (its first tensors are {shown}), and no file "
        "with its CLIP under open_clip's names was given"
    )


def _sizes(described: Mapping[str, int], builder: Callable[..., Any], head: Callable[..., Any]) -> dict[str, int]:
    """The arguments of a builder that a generator needs beyond its defaults."""
    defaults = {
        name: value.default
        for function in (head, builder)
        for name, value in inspect.signature(function).parameters.items()
        if value.default is not inspect.Parameter.empty
    }
    told = {name: value for name, value in described.items() if name in defaults}
    told["points"] = described["heads_times_points"] // defaults["heads"]
    return {name: value for name, value in told.items() if value != defaults[name]}


def _convert_generator(masks: _Generator, targets: Mapping[str, tuple[int, ...]]) -> Conversion:
    if masks.builder == "maskclip_pp_mask2former":
        rules = mask2former_layout.generator_rules("generator.generator.")
        return convert(masks.source, targets, rules, mask2former_layout.IGNORED)
    return convert(masks.source, targets, layout.GENERATOR_RULES, layout.GENERATOR_IGNORED, fcclip_layout.FRESH)


def _words_of(
    found: layout.Classifier, targets: Mapping[str, tuple[int, ...]], sources: Sequence[Mapping[str, Tensor]]
) -> Mapping[str, Tensor] | None:
    """The first file with a CLIP of the classifier's family whose words' tower has its sizes."""
    wanted = {name.removeprefix("text."): shape for name, shape in targets.items() if name.startswith("text.")}
    for source in sources:
        prefix = layout.clip_prefix(source)
        if prefix is not None and layout.clip_family(source) == found.family:
            sizes = {name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in source.items()}
            if all(sizes.get(name) == shape for name, shape in wanted.items()):
                return source
    return None


def _convert_words(source: Mapping[str, Tensor], targets: Mapping[str, tuple[int, ...]]) -> Conversion:
    prefix = layout.clip_prefix(source) or ""
    ignored = layout.words_ignored(prefix, with_scale="scorer.logit_scale" in targets)
    return convert(source, targets, layout.words_rules(prefix), ignored)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _canvas(tower: str | Mapping[str, Any], masks: _Generator, stuff: bool) -> Canvas:
    """As the released models were scored; which it is, is in no file."""
    if not stuff:
        second = None if masks.arguments.get("swin") == "swin_tiny" else GENERATOR_SHORT_EDGE
        return Canvas(800, 2560, 32, second)
    short_edge = 1024 if tower == "convnext_base_w_320" else 512
    return Canvas(short_edge, 2048, 32, GENERATOR_SHORT_EDGE)


def _outputs(masks: _Generator, stuff: bool) -> OutputSettings:
    """Thresholds of panoptic results. The semantic models have none; they get those of FC-CLIP."""
    if masks.builder == "maskclip_pp_mask2former":
        least, overlap = 0.8, 0.8
    else:
        least, overlap = (0.2, 0.7) if stuff and masks.panoptic else (0.0, 0.8)
    return OutputSettings(object_mask_threshold=least, overlap_threshold=overlap, sigmoid_at="grid")

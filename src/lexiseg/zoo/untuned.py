"""A classifier of masks at the start of its tuning: a MaskCLIP++ as it is, or one made of any CLIP in a model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lexiseg.clip.open_clip import clip_config
from lexiseg.clip.text import TextEncoder
from lexiseg.images import Canvas
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.scoring.template_mix import TemplateMean, TemplateMix
from lexiseg.zoo.assembly import SHORT_EDGES
from lexiseg.zoo.composition import is_composed
from lexiseg.zoo.loading import find
from lexiseg.zoo.maskclip_pp import Similarity, mask_classifier, maskclip_pp_given, similarity_model
from lexiseg.zoo.model_folder import SETTINGS_FILE, Model, ModelFolderError, OutputSettings, load_located, read_settings
from lexiseg.zoo.open_clip_folder import model_of, read_open_clip

MASK_CLASSIFIERS = ("maskclip_pp", "maskclip_pp_mask2former", "maskclip_pp_given")
"""Builders of models that hold such a classifier."""

CLIPS = ("fcclip", "maftplus", "mask_adapter_fcclip", "mask_adapter_maftplus", "clustered")
"""Builders of models whose trunk and projection are a CLIP's."""

LARGEST_FACTOR = 100.0
"""Of a cosine: the temperature that all released CLIPs have reached."""


@dataclass(frozen=True)
class Untuned:
    """A classifier, and all it takes to write it as a model folder with the builder "maskclip_pp_given"."""

    name: str
    embedder: nn.Module
    scorer: PseudoText | TemplateMix | TemplateMean
    text_encoder: Callable[[], TextEncoder]
    fingerprint: str
    """Stands for the words' tower."""
    templates: tuple[str, ...]
    canvas: Canvas
    outputs: OutputSettings
    arguments: dict[str, Any]
    training_phrases: tuple[str, ...]
    is_fresh: bool
    """Its similarity modelling is new and does nothing yet."""


def untuned(
    model: str | Path,
    similarity: Similarity | Literal["usual"] = "usual",
    *,
    short_edge: int | None = None,
    device: str | torch.device = "cpu",
    offline: bool | None = None,
) -> Untuned:
    """The classifier in `model`: a name of the zoo, a folder, a CLIP in open_clip's layout, organisation/name.

    similarity: "usual" keeps what a MaskCLIP++ has, and gives a CLIP what the released classifiers of its family have.
    Another one than a MaskCLIP++ has begins anew. A new one leaves CLIP's own verdicts as they are, see `begin_as_mean`
    and `begin_as_words`. short_edge: of the pictures it looks at, where no file tells; default: as the released ones of
    that tower, else the model's own. Nothing of a mask generator is kept.
    """
    source = find(model, "regions", offline)
    if source.kind == "open_clip":
        clip = read_open_clip(source.locate)
        _check_builder(source.name, clip.builder)
        found = model_of(clip, source.name, device)
        if clip.builder in CLIPS:
            return _of_clip(found, clip.tower, similarity, short_edge)
        wanted: Similarity = "template-mix" if similarity == "usual" else similarity
        edge = short_edge or _usual_short_edge(clip.tower, clip.arguments["short_edge"])
        return _of_classifier(found, clip.arguments, wanted, edge)
    path = source.locate(SETTINGS_FILE)
    if is_composed(path):
        raise ModelFolderError(f"{path}: a composed model; give the folder of the part that reads its regions")
    settings = read_settings(path, siblings=source.siblings)
    _check_builder(str(path), settings.builder)
    found = load_located(source.locate, source.name, device, siblings=source.siblings)
    if settings.builder in CLIPS:
        return _of_clip(found, cast(Any, settings.arguments["tower"]), similarity, short_edge)
    return _of_classifier(found, settings.arguments, similarity, short_edge)


def _check_builder(where: str, builder: str) -> None:
    if builder not in (*MASK_CLASSIFIERS, *CLIPS):
        raise ModelFolderError(
            f"{where}: its builder is {builder!r}; needed is a MaskCLIP++, or a CLIP as in FC-CLIP, MAFT+ or "
            "open_clip's layout (ConvNeXt, CLIP ResNet, EVA)"
        )


def _of_classifier(
    found: Model, arguments: Mapping[str, Any], similarity: Similarity | Literal["usual"], short_edge: int | None
) -> Untuned:
    """A MaskCLIP++, with another similarity modelling where that is wanted."""
    known = set(inspect.signature(maskclip_pp_given).parameters)
    kept = {name: value for name, value in arguments.items() if name in known}
    if short_edge is not None:
        kept["short_edge"] = short_edge
    embedder, scorer = found.system.embedder, found.system.scorer
    assert isinstance(scorer, (PseudoText, TemplateMix, TemplateMean))  # its builder says so
    if short_edge is not None:
        embedder, _ = _filled(kept, embedder.state_dict())
    if similarity == "usual" or similarity == kind_of(scorer):
        return _gathered(found, embedder, scorer, kept, is_fresh=False)
    kept["similarity"] = similarity
    fresh = _fresh(similarity, kept["tower"], len(found.templates), getattr(scorer, "logit_scale", None))
    embedder, _ = _filled(kept, embedder.state_dict())  # which may be asked for the whole picture now, or no more
    return _gathered(found, embedder, fresh, _with_templates(kept, found, fresh), is_fresh=True)


def _of_clip(
    found: Model,
    tower: str | Mapping[str, Any],
    similarity: Similarity | Literal["usual"],
    short_edge: int | None,
) -> Untuned:
    """Trunk and projection of a system whose encoder and embedder share a CLIP."""
    arguments: dict[str, Any] = {
        "tower": tower,
        "short_edge": short_edge or _usual_short_edge(tower, found.canvas.short_edge),
    }
    if similarity != "usual":
        arguments["similarity"] = similarity
    own = found.system.state_dict()
    state = {"trunk." + name.removeprefix("encoder."): x for name, x in own.items() if name.startswith("encoder.")}
    for part in ("projection.", "pool."):
        state |= {name.removeprefix("embedder."): x for name, x in own.items() if name.startswith("embedder." + part)}
    embedder, kind = _filled(arguments, state)
    scorer = _fresh(kind, tower, len(found.templates), own.get("scorer.logit_scale"))
    return _gathered(found, embedder, scorer, _with_templates(arguments, found, scorer), is_fresh=True)


def _filled(arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[nn.Module, Similarity]:
    """The embedder that the arguments build, with these tensors in it, and the similarity modelling they ask for."""
    embedder, scorer = mask_classifier(**arguments)
    state = dict(state)
    for name, tensor in embedder.state_dict().items():
        if name.endswith("mask_logit_scale"):  # no CLIP has any
            state.setdefault(name, torch.full(tensor.shape, -5.0))
    embedder.load_state_dict(state, assign=True)
    return embedder.requires_grad_(False), kind_of(scorer)


def _fresh(
    kind: Similarity, tower: str | Mapping[str, Any], num_templates: int, logit_scale: Tensor | None
) -> PseudoText | TemplateMix | TemplateMean:
    """A similarity modelling that does nothing yet."""
    scorer = similarity_model(kind, clip_config(tower)["embed_dim"], num_templates)
    factor = LARGEST_FACTOR if logit_scale is None else min(float(logit_scale.exp()), LARGEST_FACTOR)
    if isinstance(scorer, PseudoText):
        scorer.begin_as_words(factor)
        return scorer
    scorer.logit_scale.data.fill_(math.log(factor))
    if isinstance(scorer, TemplateMix):
        scorer.begin_as_mean()
    return scorer


def _with_templates(arguments: Mapping[str, Any], found: Model, scorer: nn.Module) -> dict[str, Any]:
    usual = inspect.signature(maskclip_pp_given).parameters["num_templates"].default
    others = {name: value for name, value in arguments.items() if name not in ("num_templates", "mix_width")}
    if isinstance(scorer, TemplateMix) and len(found.templates) != usual:
        others["num_templates"] = len(found.templates)
    return others


def _gathered(found: Model, embedder: nn.Module, scorer: Any, arguments: dict[str, Any], is_fresh: bool) -> Untuned:
    """Both on the device of the model: what is fresh was made on the CPU."""
    device = next(found.system.parameters()).device
    return Untuned(
        name=found.name,
        embedder=embedder.to(device),
        scorer=scorer.to(device),
        text_encoder=found.text_encoder,
        fingerprint=found.fingerprint,
        templates=found.templates,
        canvas=found.canvas,
        outputs=found.outputs,
        arguments=arguments,
        training_phrases=found.training_phrases,
        is_fresh=is_fresh,
    )


def kind_of(scorer: nn.Module) -> Similarity:
    """The name of a similarity modelling."""
    if isinstance(scorer, PseudoText):
        return "pseudo-text"
    return "template-mix" if isinstance(scorer, TemplateMix) else "template-mean"


def _usual_short_edge(tower: str | Mapping[str, Any], other: int) -> int:
    """At which the released classifiers of this tower look; `other` where it is none of theirs."""
    config = clip_config(tower)
    return next((edge for name, edge in SHORT_EDGES.items() if clip_config(name) == config), other)

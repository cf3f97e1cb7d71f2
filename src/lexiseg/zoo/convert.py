"""Official checkpoints into model folders, every tensor accounted for: what `lexiseg convert` does."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.vocabulary import MAX_FILE_BYTES, Vocabulary
from lexiseg.weights import fcclip as fcclip_layout
from lexiseg.weights.files import read_checkpoint, sha256_of
from lexiseg.weights.rules import Conversion, ConversionError, shapes_of
from lexiseg.zoo.catalogue import FCCLIP_PAPER, ZOO, Entry, OfficialFile
from lexiseg.zoo.coco_words import COCO_PHRASES
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.loading import converted_folder
from lexiseg.zoo.model_folder import save_model_folder

LAYOUTS = ("auto", "fcclip")


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
            *(f"  not needed: {name} ({reason})" for name, reason in self.ignored.items()),
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
    tower: str | dict[str, Any] | None = None,
    training_phrases: Iterable[str] | None = None,
) -> Report:
    """Reads an official checkpoint and writes a model folder.

    out: None puts a published model where `load` finds it by its name. tower: only for checkpoints whose tower is none
    of the published ones. training_phrases: the words the model was trained with, where the user has the official
    list; otherwise ours for COCO (see `coco_words`).
    """
    file = Path(file)
    if layout not in LAYOUTS:
        raise ConversionError(f"no layout is called {layout!r}: choose one of {', '.join(LAYOUTS)}")
    source = read_checkpoint(file)
    if not fcclip_layout.is_official(source):
        shown = ", ".join(list(source)[:3])
        raise ConversionError(
            f"{file}: not an FC-CLIP checkpoint (its first tensors are {shown}); "
            "expected names begin with backbone.clip_model., sem_seg_head.pixel_decoder. and sem_seg_head.predictor."
        )
    found = fcclip_layout.describe(source)
    tower = tower or found.tower
    if tower is None:
        raise ConversionError(
            f"{file}: a {found.family} with {found.depths} blocks, {found.widths} channels and a joint width of "
            f"{found.embed_dim} is none of the published towers; give its open_clip name or configuration"
        )
    arguments = {"tower": tower, **sizes(found)}
    account, system, text = convert_fcclip(source, arguments)
    entry = published_entry(tower) if sizes(found) == {} else None
    if out is None and entry is None:
        raise ConversionError(f"{file}: not a published model, so it has no name of its own; say where it goes")
    folder = Path(out) if out is not None else converted_folder(entry.name if entry else "")
    save_model_folder(
        folder,
        system,
        text,
        builder="fcclip",
        arguments=arguments,
        templates="fcclip14",
        training_phrases=list(COCO_PHRASES if training_phrases is None else training_phrases),
        card=card(entry, file),
    )
    return Report(
        layout="fcclip",
        name=entry.name if entry else None,
        tower=tower if isinstance(tower, str) else "given",
        folder=folder,
        system_tensors=len(system),
        text_tensors=len(text),
        ignored=account.ignored,
        fresh=account.fresh,
        parameters=sum(tensor.numel() for tensor in (*system.values(), *text.values())),
    )


def convert_fcclip(
    source: dict[str, Tensor], arguments: dict[str, Any]
) -> tuple[Conversion, dict[str, Tensor], dict[str, Tensor]]:
    """The account, and complete state dicts of system and text encoder for `fcclip(**arguments)`."""
    account, system, text = fcclip_layout.convert_official(
        source,
        shapes_of(fcclip(**arguments).state_dict()),
        shapes_of(text_encoder(arguments["tower"]).state_dict()),
    )
    # The only fresh tensors are counters of batch norm.
    system |= {name: torch.zeros((), dtype=torch.int64) for name in account.fresh}
    return account, system, text


def sizes(found: fcclip_layout.Layout) -> dict[str, int]:
    """The arguments of `fcclip_generator` that a checkpoint needs beyond its defaults."""
    defaults = {name: value.default for name, value in inspect.signature(fcclip_generator).parameters.items()}
    told = {
        **{name: getattr(found, name) for name in defaults if hasattr(found, name)},
        "points": found.heads_times_points // defaults["heads"],
    }
    return {name: value for name, value in told.items() if value != defaults[name]}


def published_entry(tower: str | dict[str, Any]) -> Entry | None:
    """The model of the zoo with this tower."""
    for entry in ZOO.values():
        if isinstance(entry.source, OfficialFile) and entry.source.tower == tower:
            return entry
    return None


def read_training_phrases(file: str | Path) -> list[str]:
    """The phrases of a class list in the official format: a class per line, its words separated by commas.

    A number and a colon before the words are dropped. The splitting rule is the vocabulary's own.
    """
    path = Path(file)
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise ConversionError(f"{path}: no class list: a text file with one class per line is needed")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not a text file in UTF-8") from error
    words = [line.partition(":")[2] if line.partition(":")[0].strip().isdigit() else line for line in lines if line]
    return list(Vocabulary.from_comma_format(words).phrases)


def card(entry: Entry | None, file: Path) -> dict[str, Any]:
    """What the model folder says about itself."""
    origin = {"converted_from": file.name, "source_sha256": sha256_of(file), "paper": FCCLIP_PAPER}
    if entry is None:
        return {"title": "FC-CLIP", **origin}
    return {
        "title": entry.title,
        **origin,
        "code_licence": entry.code_licence,
        "weights_licence": entry.weights_licence,
        "trained_on": entry.trained_on,
        "published": {benchmark: dict(numbers) for benchmark, numbers in entry.published.items()},
        "published_miou_rule": entry.miou_rule,
    }

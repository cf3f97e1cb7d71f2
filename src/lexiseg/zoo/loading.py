"""A model by its name in the zoo, by its folder, or by its hub repository."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lexiseg.proposals.transformers_folder import CONFIG_FILE as TRANSFORMERS_CONFIG_FILE
from lexiseg.proposals.transformers_folder import WEIGHTS_FILE as TRANSFORMERS_WEIGHTS_FILE
from lexiseg.weights.hub import MAX_BYTES, MissingFileError, UnreachableError, hub_file, is_cached
from lexiseg.zoo.catalogue import ZOO, Composed, Embedded, Entry, HubPart, HubRepository, OfficialFile
from lexiseg.zoo.composition import (
    GIVEN,
    Choices,
    CompositionError,
    Kind,
    Source,
    is_composed,
    load_composed,
    save_composed,
)
from lexiseg.zoo.composition import compose as compose_sources
from lexiseg.zoo.model_folder import (
    MAX_SETTINGS_BYTES,
    SETTINGS_FILE,
    Model,
    ModelFolderError,
    Settings,
    load_located,
    read_settings,
)
from lexiseg.zoo.open_clip_folder import CONFIG_FILE as OPEN_CLIP_CONFIG_FILE
from lexiseg.zoo.open_clip_folder import WEIGHTS_FILES as OPEN_CLIP_WEIGHTS_FILES

EMBEDDED = Path(__file__).parent / "embedded"

MODELS_VARIABLE = "LEXISEG_MODELS"
"""Environment variable with the folder of converted models."""


class UnknownModelError(ValueError):
    """Neither a name nor a folder nor a repository, or a model that is not there yet. The message says what to do."""


def converted_folder(name: str) -> Path:
    """Where `lexiseg convert` puts a model of the zoo, and where it is looked for."""
    chosen = os.environ.get(MODELS_VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / name
    base = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    return Path(base) / "lexiseg" / "models" / name


def load(model: str | Path, device: str | torch.device = "cpu", *, offline: bool | None = None) -> Model:
    """The model, checked and ready: a name of the zoo, a folder, or "organisation/name" on the hub.

    offline: nothing is fetched; None leaves it to HF_HUB_OFFLINE.
    """
    if isinstance(model, str) and model in ZOO and isinstance(ZOO[model].source, Composed):
        return _load_composed_entry(ZOO[model], device, offline)
    source = find(model, "model", offline)
    if is_composed(source.locate(SETTINGS_FILE)):
        return load_composed(source.locate, source.name, device)
    return load_located(source.locate, source.name, device, siblings=source.siblings)


def compose(
    proposals: str | Path,
    regions: str | Path,
    device: str | torch.device = "cpu",
    *,
    offline: bool | None = None,
    **choices: Any,
) -> Model:
    """Any generator of masks before any classifier of regions.

    proposals: "given", a model by its name, folder or repository, or a generator of transformers by the same. regions:
    a model, or a CLIP in open_clip's layout. choices: fields of `Choices`. Raises CompositionError with the reason
    where the two cannot be joined.
    """
    pair = find(proposals, "proposals", offline), find(regions, "regions", offline)
    return compose_sources(*pair, Choices(**choices), device)


def compose_folder(
    folder: str | Path,
    proposals: str | Path,
    regions: str | Path,
    *,
    offline: bool | None = None,
    **choices: Any,
) -> Path:
    """Writes what `compose` makes as a model folder, which `load` reads; the files of both parts are copied there."""
    pair = find(proposals, "proposals", offline), find(regions, "regions", offline)
    return save_composed(folder, *pair, Choices(**choices))


Role = Literal["model", "proposals", "regions"]
Foreign = Literal["transformers", "open_clip"]

FOREIGN: dict[Foreign, tuple[Role, str]] = {
    "transformers": ("proposals", TRANSFORMERS_CONFIG_FILE),
    "open_clip": ("regions", OPEN_CLIP_CONFIG_FILE),
}
"""What else than a model may take a part: which, and the file it is told by."""


def find(model: str | Path, role: Role = "model", offline: bool | None = None) -> Source:
    """Where the files of a model are, or of what else may take that part. Little is fetched, nothing is read."""
    name = str(model)
    if role != "model" and name == GIVEN.name:
        return GIVEN
    if isinstance(model, str) and name in ZOO:
        return _find_entry(name, offline)
    if Path(name).is_dir():
        return _find_folder(Path(name), role)
    if Path(name).is_file():
        raise ModelFolderError(
            f"{name}: a file; a model is a folder with {SETTINGS_FILE} in it. "
            "An official checkpoint becomes one with: lexiseg convert FILE"
        )
    if isinstance(model, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return _find_repository(name, "main", role, offline)
    close = difflib.get_close_matches(name, ZOO, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UnknownModelError(
        f"no model or folder is called {name!r}; {hint}"
        f"names are {', '.join(ZOO)}, a model folder, or organisation/name on the hub"
    )


def settings_of(model: str | Path) -> Settings:
    """How a model on this machine is built: a name of the zoo that needs nothing fetched, or a folder."""
    name = str(model)
    source = ZOO[name].source if isinstance(model, str) and name in ZOO else None
    if isinstance(source, Embedded):
        return read_settings(EMBEDDED / source.folder / SETTINGS_FILE, siblings=True)
    return read_settings((Path(name) if source is None else converted_folder(name)) / SETTINGS_FILE)


def is_available(name: str) -> bool:
    """Whether a model of the zoo can be loaded now without fetching anything."""
    source = ZOO[name].source
    if isinstance(source, Embedded):
        return (EMBEDDED / source.folder / SETTINGS_FILE).is_file()
    if isinstance(source, Composed):
        parts = (source.proposals, source.regions)
        return all(is_available(part) if isinstance(part, str) else _is_cached(part) for part in parts)
    return isinstance(source, OfficialFile) and (converted_folder(name) / SETTINGS_FILE).is_file()


def _is_cached(part: HubPart) -> bool:
    """Whether the settings and the weights of a part have been fetched before."""
    marker, weights = {
        "transformers": (TRANSFORMERS_CONFIG_FILE, (TRANSFORMERS_WEIGHTS_FILE,)),
        "open_clip": (OPEN_CLIP_CONFIG_FILE, OPEN_CLIP_WEIGHTS_FILES),
    }[part.kind]
    here = [name for name in (marker, *weights) if is_cached(part.repository, name, part.revision)]
    return marker in here and len(here) > 1


def _load_composed_entry(entry: Entry, device: str | torch.device, offline: bool | None) -> Model:
    source = entry.source
    assert isinstance(source, Composed)  # for the reader of types
    proposals, regions = (
        _find_entry(part, offline) if isinstance(part, str) else _hub_part(part, offline)
        for part in (source.proposals, source.regions)
    )
    model = compose_sources(proposals, regions, Choices(), device, entry.name)
    licences = {"code_licence": entry.code_licence, "weights_licence": entry.weights_licence}
    return replace(model, card={"title": entry.title, **licences, **model.card})


def _hub_part(part: HubPart, offline: bool | None) -> Source:
    return _repository(part.kind, part.repository, part.revision, offline)


def _find_entry(name: str, offline: bool | None) -> Source:
    source = ZOO[name].source
    if isinstance(source, Composed):
        raise CompositionError(f"{name} is itself composed; name the parts of it that you want")
    if isinstance(source, HubRepository):
        return _repository("lexiseg", source.repository, source.revision, offline)
    if isinstance(source, Embedded):
        folder = EMBEDDED / source.folder
        if not folder.is_dir():
            raise UnknownModelError(
                f"{name}: its weights are not in this installation: wheels carry street-tiny alone. Install from a "
                f"checkout, or make them: lexiseg train {name} --data DIR --out RUN, then load RUN/model"
            )
        return _local("lexiseg", folder, name, siblings=True)
    folder = converted_folder(name)
    if not (folder / SETTINGS_FILE).is_file():
        raise UnknownModelError(
            f"{name}: not here yet. Fetch {source.file} ({source.gigabytes:.1f} GB) from {source.page}, "
            f"then run: {source.command}"
        )
    return _local("lexiseg", folder, name)


def _find_folder(folder: Path, role: Role) -> Source:
    """Told by the files in it; where it may be two things, it is the one that is asked for."""
    name = folder.resolve().name
    kinds = [kind for kind, (_, marker) in FOREIGN.items() if (folder / marker).is_file()]
    if (folder / SETTINGS_FILE).is_file() or not kinds:
        return _local("lexiseg", folder, name)
    if role == "model":
        raise UnknownModelError(
            f"{folder}: no model by itself, but it can be a part of one: lexiseg compose --{FOREIGN[kinds[0]][0]} "
            f"{folder} ..."
        )
    return _local(next((kind for kind in kinds if FOREIGN[kind][0] == role), kinds[0]), folder, name)


def _local(kind: Kind, folder: Path, name: str, siblings: bool = False) -> Source:
    return Source(kind, name, lambda file: folder / file, siblings, folder)


def _find_repository(repository: str, revision: str, role: Role, offline: bool | None) -> Source:
    """Told by the files that are there. A model of this package needs no look: it is asked for its settings anyway."""
    own = _repository("lexiseg", repository, revision, offline)
    if role == "model":
        return own
    kind, marker = next((kind, marker) for kind, (part, marker) in FOREIGN.items() if part == role)
    try:
        own.locate(SETTINGS_FILE)
    except MissingFileError:
        return _repository(kind, repository, revision, offline)
    except UnreachableError:
        # No network, or it is not wanted: what is in the cache decides.
        foreign = _repository(kind, repository, revision, offline)
        foreign.locate(marker)
        return foreign
    return own


def _repository(kind: Kind, repository: str, revision: str, offline: bool | None) -> Source:
    def locate(file: str) -> Path:
        limit = MAX_SETTINGS_BYTES if file.endswith(".json") else MAX_BYTES
        return hub_file(repository, file, revision=revision, offline=offline, max_bytes=limit)

    return Source(kind, repository, locate)

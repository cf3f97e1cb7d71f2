"""A model by its name in the zoo, by its folder, or by its hub repository."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import torch

from lexiseg.weights.hub import MAX_BYTES, hub_file
from lexiseg.zoo.catalogue import ZOO, Embedded, HubRepository, OfficialFile
from lexiseg.zoo.model_folder import (
    MAX_SETTINGS_BYTES,
    SETTINGS_FILE,
    Model,
    ModelFolderError,
    Settings,
    load_folder,
    load_located,
    read_settings,
)

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
    name = str(model)
    if isinstance(model, str) and name in ZOO:
        return _load_entry(name, device, offline)
    if Path(name).is_dir():
        return load_folder(name, device)
    if Path(name).is_file():
        raise ModelFolderError(
            f"{name}: a file; a model is a folder with {SETTINGS_FILE} in it. "
            "An official checkpoint becomes one with: lexiseg convert FILE"
        )
    if isinstance(model, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return _load_repository(name, "main", device, offline)
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
    return isinstance(source, OfficialFile) and (converted_folder(name) / SETTINGS_FILE).is_file()


def _load_entry(name: str, device: str | torch.device, offline: bool | None) -> Model:
    source = ZOO[name].source
    if isinstance(source, HubRepository):
        return _load_repository(source.repository, source.revision, device, offline)
    if isinstance(source, Embedded):
        folder = EMBEDDED / source.folder
        if not folder.is_dir():
            raise UnknownModelError(
                f"{name}: its weights are not in this installation. "
                f"Make them: lexiseg train {name} --data DIR --out RUN, then load RUN/model"
            )
        return load_folder(folder, device, name=name, siblings=True)
    folder = converted_folder(name)
    if not (folder / SETTINGS_FILE).is_file():
        raise UnknownModelError(
            f"{name}: not here yet. Fetch {source.file} ({source.gigabytes:.1f} GB) from {source.page}, "
            "then run: lexiseg convert FILE"
        )
    return load_folder(folder, device, name=name)


def _load_repository(repository: str, revision: str, device: str | torch.device, offline: bool | None) -> Model:
    def locate(file: str) -> Path:
        limit = MAX_SETTINGS_BYTES if file == SETTINGS_FILE else MAX_BYTES
        return hub_file(repository, file, revision=revision, offline=offline, max_bytes=limit)

    return load_located(locate, repository, device)

"""The folder of a batch: what is finished, and by which settings.

    batch.json            the settings; written first
    records/<photo>.json  what a photo shows: a `formats.records.PhotoRecord`
    labels/<photo>.png    its label map, in the formats that have one
    failures.jsonl        the photos that could not be segmented
    coco.json or another  all records in one, in the formats that have it; written last

A record is there whole or not at all, and comes after its label map: where it is, a photo is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lexiseg.bulk.inputs import BatchError, Input
from lexiseg.bulk.remote import Stamp
from lexiseg.formats.records import PhotoRecord
from lexiseg.formats.table import FORMATS
from lexiseg.results import Result
from lexiseg.weights.files import differing_settings, replacing

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

SETTINGS, FAILURES = "batch.json", "failures.jsonl"
RECORDS, LABELS = "records", "labels"

_LONGEST_NAME = 180
"""Bytes of a file's name. File systems take 255, and an ending and a temporary name come on top."""


class BatchFolder:
    """Where one batch is kept, for one process at a time: with BatchFolder(...) as folder."""

    def __init__(self, path: Path, format: str, settings: Mapping[str, Any]) -> None:
        """format: a name in `formats.table.FORMATS`."""
        self.path, self.format = path, FORMATS[format]
        self.settings = {**settings, "format": format}

    def __enter__(self) -> BatchFolder:
        """Begins or goes on. Raises BatchError where something else is kept, or somebody else is at work."""
        _agree(self.path, self.settings)
        self._lock = os.open(self.path / SETTINGS, os.O_RDONLY)
        try:
            _hold(self._lock, self.path)
        except BaseException:
            os.close(self._lock)
            raise
        self.sweep()
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._lock)

    def sweep(self) -> None:
        """Removes what killed processes have left half written."""
        for left in list(self.path.rglob(".*.part")):
            if left.is_dir():
                shutil.rmtree(left)
            left.unlink(missing_ok=True)

    def check_shared(self) -> None:
        """In a process that works for the one that holds the folder: it must see the same one, and mean the same."""
        if not (self.path / SETTINGS).is_file():
            raise BatchError(f"{self.path}: not there for a worker; the folder must be one that all machines share")
        different = differing_settings(self.path / SETTINGS, self.settings)
        if different:
            raise BatchError(
                f"{self.path}: a worker would make other results ({', '.join(different)}); all machines need the same "
                "Lexiseg and the same model"
            )

    def is_finished(self, photo: Input) -> bool:
        """Whether there are results of this photo, as its file is now."""
        try:
            record = self._read(photo.name)
        except (OSError, ValueError):  # none, or cut short by a loss of power
            return False
        told = record.get("photo") == photo.name and record.get("file") == _listed(photo.stamp)
        return told and (self.format.picture is None or self._labels(photo.name).is_file())

    def record(self, name: str) -> PhotoRecord:
        """What a finished photo shows."""
        return PhotoRecord.from_json(self._read(name))

    def write(self, photo: Input, result: Result) -> None:
        """The results of a photo: all of them, or nothing that counts."""
        record = {"file": _listed(photo.stamp), **result.record().to_json(), "photo": photo.name}
        if self.format.picture is not None:
            labels = self._labels(photo.name)
            labels.parent.mkdir(parents=True, exist_ok=True)
            with replacing(labels) as temporary:
                self.format.picture(result).save(temporary, format="PNG")
        path = self._record(photo.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    @contextmanager
    def failures(self) -> Iterator[Callable[[str, str], None]]:
        """What writes down a photo and what is wrong with it, at once; the list of an earlier call is forgotten.

        In the end the list is in the order of the names.
        """
        path, lines = self.path / FAILURES, {}
        with path.open("w", encoding="utf-8", newline="\n") as file:

            def add(name: str, problem: str) -> None:
                lines[name] = json.dumps({"photo": name, "error": problem}) + "\n"
                file.write(lines[name])
                file.flush()
                self._record(name).unlink(missing_ok=True)  # of an earlier file of this name
                self._labels(name).unlink(missing_ok=True)

            yield add
        if list(lines) != sorted(lines):
            with replacing(path) as temporary:
                temporary.write_text("".join(lines[name] for name in sorted(lines)), encoding="utf-8", newline="\n")

    def _read(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self._record(name).read_bytes())
        return record

    def _record(self, name: str) -> Path:
        return self.path / RECORDS / _kept_as(name, ".json")

    def _labels(self, name: str) -> Path:
        return self.path / LABELS / _kept_as(name, ".png")


def _agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new batch; those of an old one must be the same."""
    path.mkdir(parents=True, exist_ok=True)
    file = path / SETTINGS
    if not file.is_file() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        raise BatchError(f"{path}: holds other files, and no batch; give an empty folder or a new one")
    try:
        different = differing_settings(file, settings)
    except (ValueError, AttributeError):
        raise BatchError(f"{file}: damaged; delete {path} and begin again, or choose another folder") from None
    if different:
        raise BatchError(
            f"{path}: holds results of other settings ({', '.join(different)}); give the same again, or choose another "
            "folder"
        )


def _hold(handle: int, path: Path) -> None:
    """Keeps other processes out until this one closes the file or ends, in whatever way."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BatchError(
            f"{path}: another process is at work there; wait for its end, or choose another folder"
        ) from None
    except OSError:  # a file system without locks: then it is left to the user
        pass


def _kept_as(name: str, ending: str) -> Path:
    """Where the results of a photo lie: its name with an ending; parts too long for a file system are shortened."""
    parts = (name + ending).split("/")
    return Path(
        *(
            part if len(part.encode(errors="surrogateescape")) <= _LONGEST_NAME else _short(part, ending)
            for part in parts
        )
    )


def _short(part: str, ending: str) -> str:
    encoded = part.encode(errors="surrogateescape")
    start = encoded[: _LONGEST_NAME // 2].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:16]}{ending}"


def _listed(stamp: Stamp | None) -> list[int | str] | None:
    return None if stamp is None else list(stamp)

"""The folder of a batch: what is finished, and by which settings.

    batch.json            the settings; written first
    records/<photo>.json  what a photo shows: COCO's image and annotations, or the segments of its label map
    labels/<photo>.png    its label map, in the format png
    failures.jsonl        the photos that could not be segmented
    coco.json             all records in one, in the format coco; written last

A record is there whole or not at all, and comes after its label map: where it is, a photo is finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

from lexiseg.bulk.inputs import BatchError, Input
from lexiseg.results import Result
from lexiseg.weights.files import differing_settings, replacing

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

Format = Literal["coco", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)

SETTINGS, FAILURES, MERGED = "batch.json", "failures.jsonl", "coco.json"
RECORDS, LABELS = "records", "labels"

_LONGEST_NAME = 180
"""Bytes of a file's name. File systems take 255, and an ending and a temporary name come on top."""


class BatchFolder:
    """Where one batch is kept, for one process at a time: with BatchFolder(...) as folder."""

    def __init__(self, path: Path, kind: Format, settings: Mapping[str, Any]) -> None:
        self.path, self.kind = path, kind
        self.settings = {**settings, "format": kind}

    def __enter__(self) -> BatchFolder:
        """Begins or goes on. Raises BatchError where something else is kept, or somebody else is at work."""
        _agree(self.path, self.settings)
        self._lock = os.open(self.path / SETTINGS, os.O_RDONLY)
        try:
            _hold(self._lock, self.path)
        except BaseException:
            os.close(self._lock)
            raise
        for left in self.path.rglob(".*.part"):  # of a run that was killed while it wrote
            left.unlink()
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._lock)

    def is_finished(self, photo: Input) -> bool:
        """Whether there are results of this photo, as its file is now."""
        try:
            record = self.read(photo.name)
        except (OSError, ValueError):  # none, or cut short by a loss of power
            return False
        told = record.get("photo") == photo.name and record.get("file") == _listed(photo.stamp)
        return told and (self.kind == "coco" or self._labels(photo.name).is_file())

    def read(self, name: str) -> dict[str, Any]:
        """The record of a photo."""
        record: dict[str, Any] = json.loads(self._record(name).read_bytes())
        return record

    def write(self, photo: Input, result: Result) -> None:
        """The results of a photo: all of them, or nothing that counts."""
        record: dict[str, Any] = {"photo": photo.name, "file": _listed(photo.stamp)}
        if self.kind == "coco":
            found = result.to_coco()
            record |= {"image": found["images"][0] | {"file_name": photo.name}, "annotations": found["annotations"]}
        else:
            found = result.to_dict()
            record |= {key: found[key] for key in ("height", "width", "segments")}
            labels = self._labels(photo.name)
            labels.parent.mkdir(parents=True, exist_ok=True)
            with replacing(labels) as temporary:
                result.labels_png().save(temporary, format="PNG")
        path = self._record(photo.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    @contextmanager
    def failures(self) -> Iterator[Callable[[str, str], None]]:
        """What writes down a photo and what is wrong with it, at once; the list of an earlier call is forgotten."""
        with (self.path / FAILURES).open("w", encoding="utf-8", newline="\n") as file:

            def add(name: str, problem: str) -> None:
                file.write(json.dumps({"photo": name, "error": problem}) + "\n")
                file.flush()
                self._record(name).unlink(missing_ok=True)  # of an earlier file of this name
                self._labels(name).unlink(missing_ok=True)

            yield add

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


def _listed(stamp: Sequence[int] | None) -> list[int] | None:
    return None if stamp is None else list(stamp)

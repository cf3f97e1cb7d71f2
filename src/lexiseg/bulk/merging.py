"""One file or folder of all records of a batch, in the formats that have it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lexiseg.bulk.folder import BatchFolder
from lexiseg.formats.records import PhotoRecord
from lexiseg.formats.table import write_merged
from lexiseg.vocabulary import Vocabulary


def merge(folder: BatchFolder, names: Sequence[str], vocabulary: Vocabulary) -> Path | None:
    """Writes what the format makes of all photos, in the order of `names`; None where it makes nothing of them."""
    merged = folder.format.merged
    return None if merged is None else write_merged(merged, folder.path, _Records(folder, names), vocabulary)


def forget_merged(folder: BatchFolder) -> None:
    """Removes what an earlier call has merged."""
    merged = folder.format.merged
    if merged is None:
        return
    path = folder.path / merged.name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


class _Records:
    """The records of the photos, read anew at every pass: one is held at a time."""

    def __init__(self, folder: BatchFolder, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __iter__(self) -> Iterator[PhotoRecord]:
        return map(self.folder.record, self.names)

"""One COCO data set of all records of a batch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from lexiseg.bulk.folder import MERGED, BatchFolder
from lexiseg.results import coco_categories
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import replacing


def merge(folder: BatchFolder, names: Sequence[str], vocabulary: Vocabulary) -> Path:
    """Writes coco.json: images numbered in the order of `names`, annotations in that of their images.

    One record is held at a time: each is read twice, for COCO puts all images before all annotations.
    """
    path = folder.path / MERGED
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"images": [')
        _write_lines(file, _images(folder, names))
        file.write('],\n"categories": [')
        _write_lines(file, coco_categories(vocabulary))
        file.write('],\n"annotations": [')
        _write_lines(file, _annotations(folder, names))
        file.write("]}\n")
    return path


def _images(folder: BatchFolder, names: Sequence[str]) -> Iterator[object]:
    for number, name in enumerate(names, start=1):
        yield folder.read(name)["image"] | {"id": number}


def _annotations(folder: BatchFolder, names: Sequence[str]) -> Iterator[object]:
    count = 0
    for number, name in enumerate(names, start=1):
        for annotation in folder.read(name)["annotations"]:
            count += 1
            yield annotation | {"id": count, "image_id": number}


def _write_lines(file: TextIO, entries: Iterable[object]) -> None:
    """The entries of a JSON array, each on a line of its own."""
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry))

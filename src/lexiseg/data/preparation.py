"""`lexiseg data prepare`: a publisher's files to a data package that evaluation reads (see `lexiseg.data.packages`).

What is done is written down photo by photo in `.preparing.jsonl`, so that a run that was stopped goes on where it was;
every file is complete or absent. `dataset.json` is written last: a package without it is not finished.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.benchmarks import BENCHMARKS, Benchmark
from lexiseg.data.layouts import MAX_PIXELS, Converted, Layout
from lexiseg.data.sources import Source, SourceError, SourceLimits

JOURNAL = ".preparing.jsonl"
SPLIT = "val"

Progress = Callable[[Iterable[str], int], Iterable[str]]
"""Wraps the ids that remain; the number is how many there are."""


@dataclass(frozen=True)
class Prepared:
    """What came out."""

    name: str
    folder: Path
    photos: int
    expected: tuple[int, ...]
    remarks: tuple[str, ...]
    """What is not as in the published benchmark; empty when everything is."""

    @property
    def complete(self) -> bool:
        return self.photos in self.expected


def prepare(
    name: str,
    source: Path | str,
    out: Path | str,
    *,
    limits: SourceLimits | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """The benchmark `name` from the publisher's files in `source`, as a package in the folder `out`.

    The same call goes on where an earlier one stopped; of a finished package it only tells the outcome. Photos that are
    files on the disk of `out` become hard links. A photo whose files are broken stops the work: its error names it.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark is called {name!r}: choose one of {', '.join(BENCHMARKS)}")
    benchmark, folder = BENCHMARKS[name], Path(out)
    if (folder / "dataset.json").is_file():
        return _told(name, benchmark, folder)
    with Source(source, limits) as files:
        remarks = check_parts(benchmark, files)
        layout = benchmark.layout(files)
        _check_layout(benchmark, layout, files)
        return _write(name, benchmark, layout, files, folder, remarks, progress or (lambda ids, total: ids))


def check_parts(benchmark: Benchmark, source: Source) -> tuple[str, ...]:
    """What can be measured without is returned, a sentence each; anything else that is missing is an error.

    The error lists every missing part, a line each, with the place where its publisher offers it.
    """
    absent = [part for part in benchmark.parts if not source.match(part.pattern)]
    needed = [part for part in absent if not part.without]
    if needed:
        lines = [f"{source.path}: {len(needed)} parts of {benchmark.title} are missing"]
        lines += [f"{part.what} ({part.pattern}): {part.offered}" for part in needed]
        raise SourceError("\n  ".join(lines))
    return tuple(f"without {part.what}, {part.without} ({part.offered})" for part in absent)


def _check_layout(benchmark: Benchmark, layout: Layout, source: Source) -> None:
    if len(layout.classes) != benchmark.classes:
        raise SourceError(f"{source.path}: {len(layout.classes)} classes, {benchmark.title} has {benchmark.classes}")
    if not layout.ids:
        raise SourceError(f"{source.path}: no photo of {benchmark.title} has all of its files; unpack them all")
    for id in layout.ids:
        if not id.replace("-", "").replace("_", "").isalnum():
            raise SourceError(f"{source.path}: {id!r} is no name of a photo")


def _write(
    name: str,
    benchmark: Benchmark,
    layout: Layout,
    source: Source,
    folder: Path,
    remarks: tuple[str, ...],
    progress: Progress,
) -> Prepared:
    for part in ("images", "labels", *(("segments",) if layout.has_segments else ())):
        (folder / part).mkdir(parents=True, exist_ok=True)
    done = _Journal(folder / JOURNAL, {"benchmark": name, "photos": len(layout.ids), "classes": list(layout.classes)})
    with done:
        remaining = [id for id in layout.ids if id not in done.entries]
        for id in progress(remaining, len(remaining)):
            done.add(id, _write_photo(id, benchmark, layout, source, folder))
    kept = [id for id in layout.ids if not done.entries[id]["unlabelled"]]
    told = [*remarks, *layout.remarks]
    unlabelled = len(layout.ids) - len(kept)
    if unlabelled:
        told.append(f"{unlabelled} photos without a labelled pixel are left out")
    if len(kept) not in benchmark.photos:
        expected = " or ".join(str(number) for number in benchmark.photos)
        told.append(f"{len(kept)} photos where {benchmark.title} has {expected}")
    if layout.has_segments:
        _write_json(folder / "segments.json", {id: done.entries[id]["regions"] for id in kept})
    if layout.has_instances:
        _write_json(folder / "instances.json", {id: done.entries[id]["instances"] for id in kept})
    description: dict[str, Any] = {
        "name": name,
        "title": benchmark.title,
        "benchmark": name,
        "classes": list(layout.classes),
        "ignore": benchmark.ignore,
        "splits": {SPLIT: kept},
        "image_suffix": layout.image_suffix,
        "measures": [
            measure
            for measure, there in (
                ("miou", True),
                ("pq", layout.has_segments),
                ("ap", layout.has_segments or layout.has_instances),
            )
            if there and measure in benchmark.measures
        ],
        "remarks": told,
    }
    if layout.is_thing is not None:
        description["isthing"] = [int(flag) for flag in layout.is_thing]
    if layout.words is not None:
        description["words"] = [list(phrases) for phrases in layout.words]
    if layout.word_class is not None:
        description["word_class"] = list(layout.word_class)
    if layout.has_segments:
        description["segments"] = "numbers of segments.json"
    if layout.has_instances:
        description["instances"] = "instances.json"
    if layout.instance_rules != "coco":
        description["instance_rules"] = layout.instance_rules
    _check_files(folder, layout, kept)
    _write_json(folder / "dataset.json", description)
    (folder / JOURNAL).unlink()
    return _told(name, benchmark, folder)


def _write_photo(id: str, benchmark: Benchmark, layout: Layout, source: Source, folder: Path) -> dict[str, Any]:
    """The files of one photo, and what the journal keeps of it."""
    converted = layout.convert(id)
    shown = converted.image if isinstance(converted.image, str) else id
    labels = converted.labels
    _check_values(shown, labels, benchmark)
    if benchmark.skip_unlabelled and bool((labels == benchmark.ignore).all()):
        return {"unlabelled": True}
    photo: bytes | Path
    if isinstance(converted.image, str):
        photo = source.file(converted.image) or source.read(converted.image)
    else:
        photo = converted.image
    size_hw = _picture_size(shown, photo)
    if size_hw != labels.shape:
        raise SourceError(f"{shown}: {size_hw} pixels (height, width), but its labels have {labels.shape}")
    entry: dict[str, Any] = {"unlabelled": False}
    if converted.segments is not None:
        entry["regions"] = _checked_regions(shown, converted)
        _write_png(folder / "segments" / f"{id}.png", converted.segments)
    if converted.instances is not None:
        entry["instances"] = [
            {
                "class": instance.class_index,
                "area": instance.area,
                "iscrowd": int(instance.is_crowd),
                "rle": dict(instance.rle),
            }
            for instance in converted.instances
        ]
    _write_png(folder / "labels" / f"{id}.png", labels)
    _place(folder / "images" / f"{id}{layout.image_suffix}", photo)
    return entry


def _check_values(shown: str, labels: NDArray[Any], benchmark: Benchmark) -> None:
    outside = labels[(labels >= benchmark.classes) & (labels != benchmark.ignore)]
    if outside.size:
        raise SourceError(f"{shown}: its labels hold class {outside[0]} of {benchmark.classes}")


def _checked_regions(shown: str, converted: Converted) -> list[list[int]]:
    segments = converted.segments
    assert segments is not None
    if segments.shape != converted.labels.shape:
        raise SourceError(f"{shown}: its segments are {segments.shape}, its labels {converted.labels.shape}")
    listed = {region.number for region in converted.regions}
    unlisted = set(np.unique(segments).tolist()) - listed - {0}
    if unlisted or len(listed) != len(converted.regions):
        raise SourceError(f"{shown}: the segments of its map and those of its list differ")
    if max(listed, default=0) > 65535:
        raise SourceError(f"{shown}: {len(listed)} segments do not fit into a 16-bit picture")
    return [[region.number, region.class_index, int(region.is_crowd)] for region in converted.regions]


def _picture_size(shown: str, photo: bytes | Path) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(photo) if isinstance(photo, bytes) else photo) as picture:
            width, height = picture.size
    except Exception as error:  # Pillow meets damaged files with every kind of exception
        raise SourceError(f"{shown}: no picture, or damaged ({str(error)[:100]}); download it again") from None
    if width * height > MAX_PIXELS:
        raise SourceError(f"{shown}: {width} x {height} pixels, more than the limit")
    return height, width


def _check_files(folder: Path, layout: Layout, kept: list[str]) -> None:
    """Everything that the package promises is there."""
    for id in kept:
        paths = [folder / "images" / f"{id}{layout.image_suffix}", folder / "labels" / f"{id}.png"]
        paths += [folder / "segments" / f"{id}.png"] if layout.has_segments else []
        for path in paths:
            if not path.is_file() or path.stat().st_size == 0:
                raise SourceError(f"{path}: gone since it was written; delete {folder} and begin again")


def _told(name: str, benchmark: Benchmark, folder: Path) -> Prepared:
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    if description.get("benchmark") != name:
        raise SourceError(f"{folder}: holds {description.get('name')}, not {name}; choose another folder")
    photos = len(description["splits"][SPLIT])
    return Prepared(name, folder, photos, benchmark.photos, tuple(description["remarks"]))


def _write_png(path: Path, values: NDArray[Any]) -> None:
    """8 bits where they suffice, else 16."""
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8 if values.max(initial=0) <= 255 else np.uint16)).save(buffer, "PNG")
    _place(path, buffer.getvalue())


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    _place(path, (json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def _place(path: Path, content: bytes | Path) -> None:
    """The file is complete or absent; of another file a hard link, a copy where the disk allows none."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.unlink(missing_ok=True)
    if isinstance(content, bytes):
        temporary.write_bytes(content)
    else:
        try:
            os.link(content.resolve(), temporary)
        except OSError:
            shutil.copyfile(content, temporary)
    os.replace(temporary, path)


class _Journal:
    """One line per photo that is done. The first line says for what."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        lines = _complete_lines(path)
        if lines and lines[0] != about:
            raise SourceError(
                f"{path.parent}: holds an unfinished preparation of other files; delete it or choose another folder"
            )
        for line in lines[1:]:
            self.entries |= line
        self._file = path.open("ab")
        if not lines:
            self._write(about)

    def add(self, id: str, entry: Mapping[str, Any]) -> None:
        self.entries[id] = dict(entry)
        self._write({id: entry})

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """What the journal says; a line cut short by a kill is taken out of the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    os.truncate(path, end)
    return [json.loads(line) for line in content[:end].splitlines()]

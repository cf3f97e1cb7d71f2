"""Regions with their words on disk: what a data engine writes and a training of CLIP on masked crops reads.

A folder of shards. Each is a zip file that is there whole or not at all:

    shard-00007.zip
        pairs.tsv           a header and a line per pair: filepath, title (the word), photo, caption, similarity, area
        regions/<n>.png     the box of a region at its own size, everything outside of it in one colour; lossless
        report.json         what became of every photo of the shard

OVSeg (arXiv 2210.04150), section 3.2, trained on tables with the columns filepath and title: an unpacked shard is one.
Several words of one photo may share a region. By the colour of the background the mask is known again.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILL = (124, 116, 103)
"""The colour of the background in stored regions: by it the mask is known again, so files must be lossless."""

TABLE, REPORT = "pairs.tsv", "report.json"
COLUMNS = ("filepath", "title", "photo", "caption", "similarity", "area")
SHARD = re.compile(r"shard-(\d{5,})\.zip")
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of every member: the same pairs are the same bytes."""
MAX_SIDE = 20_000
"""Pixels of a stored region along one side."""


class PairError(ValueError):
    """Pairs that cannot be read. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Pair:
    """One line of a table."""

    region: str
    """The member of the shard with its pixels."""
    word: str
    photo: str
    caption: int
    """Which of the photo's captions has the word."""
    similarity: float
    """Cosine of region and word, as the CLIP that chose it saw them."""
    area: float
    """Share of the photo that the region covers."""


@dataclass(frozen=True)
class Shard:
    """What one portion of the photos gave."""

    pairs: tuple[Pair, ...]
    regions: dict[str, NDArray[np.uint8]]
    """Name -> [h, w, 3], blanked."""
    report: dict[str, Any]


def blanked(pixels: NDArray[np.uint8], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """pixels [h, w, 3], inside [h, w] -> the same with the background in its colour.

    A pixel inside that happens to have that colour becomes one step bluer, so that the mask is read back exactly.
    """
    region = np.where(inside[..., None], pixels, np.array(FILL, np.uint8))
    alike = inside & ~shown_part(region)
    region[alike, 2] += 1
    return region


def shown_part(region: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """region [H, W, 3] -> [H, W]: all that is not exactly of the background's colour."""
    return (region != np.array(FILL, np.uint8)).any(axis=-1)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.zip"


def shard_paths(folder: Path) -> dict[int, Path]:
    """The shards that are there, by number."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    return dict(sorted(found.items()))


def write_shard(path: Path, shard: Shard) -> None:
    """All of it or nothing, on disk before it has its name: neither a kill nor a power cut leaves half a shard.

    The same shard is the same bytes.
    """
    table = io.StringIO()
    rows = csv.writer(table, delimiter="\t", lineterminator="\n")
    rows.writerow(COLUMNS)
    for pair in shard.pairs:
        numbers = (f"{pair.similarity:.4f}", f"{pair.area:.5f}")
        rows.writerow((pair.region, pair.word, pair.photo, pair.caption, *numbers))
    members = {TABLE: table.getvalue().encode(), REPORT: _json(shard.report)}
    for name, pixels in shard.regions.items():
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=6)
        members[name] = png.getvalue()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name, EARLIEST), content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_table(path: Path) -> tuple[Pair, ...]:
    """The lines of a shard."""
    with _opened(path) as archive:
        text = _member(path, archive, TABLE).decode("utf-8")
    rows = csv.reader(io.StringIO(text), delimiter="\t")
    if tuple(next(rows, ())) != COLUMNS:
        raise PairError(f"{path}: {TABLE} has other columns than {', '.join(COLUMNS)}")
    try:
        return tuple(Pair(r, word, photo, int(c), float(s), float(a)) for r, word, photo, c, s, a in rows)
    except ValueError as error:
        raise PairError(f"{path}: {TABLE} has a line that is no pair ({error})") from error


def read_report(path: Path) -> dict[str, Any]:
    """What became of the photos of a shard."""
    with _opened(path) as archive:
        return json.loads(_member(path, archive, REPORT))


def read_region(path: Path, name: str) -> NDArray[np.uint8]:
    """[h, w, 3]: a region of a shard, blanked."""
    content = _member(path, _kept_open(path), name)
    with Image.open(io.BytesIO(content)) as picture:
        if max(picture.size) > MAX_SIDE:
            raise PairError(f"{path}: {name} has {picture.size} pixels; a side may have {MAX_SIDE}")
        return np.array(picture.convert("RGB"))


class MaskWordPairs(Sequence[tuple[NDArray[np.uint8], str]]):
    """All pairs of a folder, in the order of the shards; regions are read when they are asked for."""

    def __init__(self, folder: str | Path, shards: Iterable[int] | None = None) -> None:
        """shards: only these."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise PairError(f"{folder}: no such folder; `lexiseg data mine` makes one")
        paths = shard_paths(self.folder)
        chosen = paths if shards is None else {number: paths[number] for number in shards}
        self.entries = [(path, pair) for path in chosen.values() for pair in read_table(path)]
        if not self.entries:
            raise PairError(f"{folder}: has no pairs")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: Any) -> Any:
        path, pair = self.entries[number]
        return read_region(path, pair.region), pair.word

    @property
    def words(self) -> tuple[str, ...]:
        """All that occur, sorted."""
        return tuple(sorted({pair.word for _, pair in self.entries}))


@lru_cache(maxsize=16)
def _kept_open(path: Path) -> zipfile.ZipFile:
    return _opened(path)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise PairError(f"{path}: cannot be read ({error}); delete it and mine again, which makes it anew") from error


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise PairError(f"{path}: {name} is missing or damaged ({error})") from error


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

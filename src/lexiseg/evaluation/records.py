"""What one photo shows about a model, as a line of JSON.

Everything counted is an integer; scores keep all their digits. A line is either whole or not there: what a kill has cut
short is passed over.

K classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.metrics.cityscapes_instances import CityscapesOutcome, ClassOutcome
from lexiseg.metrics.instances import Outcome


@dataclass(frozen=True)
class PhotoRecord:
    """One photo. What was not measured is None."""

    id: str
    seconds: float
    """From the photo in memory to the outcome, without evaluation."""
    first: bool = False
    """The first photo of its process, which also pays for reading the words."""
    memory_mb: float | None = None
    """Peak of the process so far."""
    gpu_memory_mb: float | None = None
    pixels: list[list[int]] | None = None
    """Confusion of pixels, its cells that are not zero: [predicted, true, count]; predicted is K for no class."""
    confidence: list[tuple[int, float]] | None = None
    """[class, score] of what the model found, for calibration."""
    rims: list[list[int]] | None = None
    """Confusion of the rims of regions, likewise."""
    segments: list[list[int]] | None = None
    """Counts of panoptic quality of the classes that occur: [class, ...]."""
    instances: list[dict[str, Any]] | None = None
    """How detections fared; see `pack_outcome` and, for the rules of Cityscapes, `pack_cityscapes`."""
    masks: list[list[int]] | None = None
    """Confusion of given masks, likewise: [predicted, true, count]."""

    def to_line(self) -> str:
        """JSON without a line end."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None})

    @classmethod
    def from_line(cls, line: str | bytes) -> PhotoRecord:
        """The inverse of `to_line`."""
        return cls(**json.loads(line))


def sparse(counts: Tensor) -> list[list[int]]:
    """Matrix of counts -> its cells that are not zero: [row, column, count]."""
    cells = counts.nonzero()
    return torch.cat([cells, counts[cells[:, 0], cells[:, 1]][:, None]], 1).tolist()


def add_sparse(counts: Tensor, cells: Sequence[Sequence[int]]) -> None:
    """Adds what `sparse` made to a matrix of counts."""
    if cells:
        rows, columns, values = torch.tensor(cells, dtype=torch.int64).unbind(1)
        counts.index_put_((rows, columns), values, accumulate=True)


def sparse_class_counts(cells: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """[3, K]: `class_counts` of the confusion matrix that `sparse` took apart, without putting it together."""
    counts = torch.zeros(3, num_classes + 1, dtype=torch.int64)
    if cells:
        said, true, values = torch.tensor(cells, dtype=torch.int64).unbind(1)
        counts[0].index_add_(0, true, values * (said == true))
        counts[1].index_add_(0, true, values)
        counts[2].index_add_(0, said, values)
    return counts[:, :-1]  # the last column: pixels without a class


def sparse_columns(counts: NDArray[np.int64]) -> list[list[int]]:
    """[R, K] -> [class, R numbers] of the classes that have one that is not zero."""
    return [[int(index), *counts[:, index].tolist()] for index in np.flatnonzero(counts.any(0))]


def add_sparse_columns(counts: NDArray[np.int64], columns: Sequence[Sequence[int]]) -> None:
    """Adds what `sparse_columns` made."""
    for index, *values in columns:
        counts[:, index] += values


def pack_outcome(outcome: Outcome) -> list[dict[str, Any]]:
    """One entry per class and range of areas; truth values as hexadecimal bits."""
    return [
        {
            "class": index,
            "area": area,
            "scores": np.asarray(matched["dtScores"], np.float64).tolist(),
            "found": _bits(matched["dtMatches"]),
            "ignored": _bits(matched["dtIgnore"]),
            "thresholds": len(matched["dtMatches"]),
            "truth": len(matched["gtIgnore"]),
            "truth_ignored": _bits(matched["gtIgnore"]),
        }
        for (index, area), matched in outcome.items()
    ]


def unpack_outcome(entries: Sequence[Mapping[str, Any]]) -> Outcome:
    """The inverse of `pack_outcome`."""
    outcome: Outcome = {}
    for entry in entries:
        shape = (entry["thresholds"], len(entry["scores"]))
        outcome[entry["class"], entry["area"]] = {
            "dtScores": np.array(entry["scores"], np.float64),
            "dtMatches": _unpacked(entry["found"], shape),
            "dtIgnore": _unpacked(entry["ignored"], shape),
            "gtIgnore": _unpacked(entry["truth_ignored"], (entry["truth"],)),
        }
    return outcome


def pack_cityscapes(outcome: CityscapesOutcome) -> list[dict[str, Any]]:
    """One entry per class; truth values as hexadecimal bits."""
    return [
        {
            "class": index,
            "scores": fared.scores.tolist(),
            "found": _bits(fared.found),
            "wrong": _bits(fared.wrong),
            "missed": list(fared.missed),
            "objects": fared.objects,
        }
        for index, fared in outcome.items()
    ]


def unpack_cityscapes(entries: Sequence[Mapping[str, Any]]) -> CityscapesOutcome:
    """The inverse of `pack_cityscapes`."""
    outcome: dict[int, ClassOutcome] = {}
    for entry in entries:
        shape = (len(entry["missed"]), len(entry["scores"]))
        outcome[entry["class"]] = ClassOutcome(
            np.array(entry["scores"], np.float64),
            _unpacked(entry["found"], shape),
            _unpacked(entry["wrong"], shape),
            tuple(entry["missed"]),
            entry["objects"],
        )
    return outcome


def _bits(values: NDArray[Any]) -> str:
    return np.packbits(np.asarray(values, bool)).tobytes().hex()


def _unpacked(bits: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    flat = np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=math.prod(shape))
    values: NDArray[np.bool_] = flat.astype(bool).reshape(shape)
    return values


@dataclass
class RecordFolder:
    """The records of one evaluation: `records-<rank>.jsonl`, one file per process that writes."""

    path: Path

    def read(self, ids: Sequence[str]) -> dict[str, PhotoRecord]:
        """The whole records of these photos, in the order of `ids`."""
        found: dict[str, PhotoRecord] = {}
        for file in sorted(self.path.glob("records-*.jsonl")):
            for line in whole_lines(file.read_bytes()):
                record = PhotoRecord.from_line(line)
                found.setdefault(record.id, record)
        return {id: found[id] for id in ids if id in found}

    def count(self) -> int:
        """How many lines there are, without reading what they say."""
        return sum(file.read_bytes().count(b"\n") for file in self.path.glob("records-*.jsonl"))

    def writer(self, rank: int) -> RecordWriter:
        """Goes on in the file of this process."""
        self.path.mkdir(parents=True, exist_ok=True)
        return RecordWriter(self.path / f"records-{rank}.jsonl")


class RecordWriter:
    """Appends records; each is on its way to the disk when `add` returns."""

    def __init__(self, path: Path) -> None:
        if path.is_file():
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
        self._file = path.open("ab")

    def add(self, record: PhotoRecord) -> None:
        self._file.write(record.to_line().encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def whole_lines(content: bytes) -> list[bytes]:
    """Lines with an end."""
    return content[: content.rfind(b"\n") + 1].splitlines()

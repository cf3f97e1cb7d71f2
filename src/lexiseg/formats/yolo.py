"""YOLO's form for segmentation: a text file for each photo, a line for each segment, and data.yaml with the classes.

    class x1 y1 x2 y2 ...      an outline, x and y from 0 to 1

An outline has neither parts nor holes, so all of a segment are joined into one by seams of no width (see
`outlines.one_polygon`). Slanted edges are simplified by up to a pixel. Scores have no place in it.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import numpy as np

from lexiseg.formats.outlines import TOLERANCE, one_polygon
from lexiseg.formats.records import PhotoRecord, Records, plain_text
from lexiseg.vocabulary import Vocabulary


def to_yolo(record: PhotoRecord, tolerance: float = TOLERANCE) -> str:
    """The text of one photo; empty where nothing was found. tolerance: pixels, 0 keeps every corner."""
    lines = []
    for segment in record.segments:
        outline = one_polygon(record.mask(segment), tolerance) / [record.width, record.height]
        lines.append(" ".join([str(segment.label_index), *map(_number, outline.ravel())]) + "\n")
    return "".join(lines)


def write_yolo(folder: Path, records: Records, vocabulary: Vocabulary) -> None:
    """labels/ and data.yaml; the photos belong into images/ beside them."""
    (folder / "labels").mkdir()
    for record in records:
        path = folder / "labels" / PurePosixPath(plain_text(record.photo)).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_yolo(record), encoding="utf-8", newline="\n")
    names = "".join(f"  {index}: {_quoted(name)}\n" for index, name in enumerate(vocabulary.names))
    (folder / "data.yaml").write_text(
        f"path: .\ntrain: images\nval: images\nnc: {len(vocabulary)}\nnames:\n{names}", encoding="utf-8", newline="\n"
    )


def _number(value: np.floating) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"


def _quoted(name: str) -> str:
    """JSON's strings are YAML's too."""
    return json.dumps(plain_text(name), ensure_ascii=False)

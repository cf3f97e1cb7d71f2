"""Label Studio: predictions for its tasks.

A mask is a brush region, whose run lengths are Label Studio's own: of the bytes of a picture in red, green, blue and
alpha, row by row, packed bit by bit. It keeps every pixel. Tasks are made for a project with the labelling config that
`labelling_config` writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from lexiseg.drawing import class_colors
from lexiseg.formats.coco import write_lines
from lexiseg.formats.outlines import outer_polygons
from lexiseg.formats.records import PhotoRecord, Records, SegmentRecord, plain_text
from lexiseg.vocabulary import Vocabulary

TASKS, CONFIG = "tasks.json", "config.xml"

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio finds files below its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""

Shape = Literal["brush", "polygon"]

_SIZES = np.array([3, 4, 8, 16])
"""Bits for the length of a run, as every encoder of Label Studio's chooses them."""
_LONGEST = 2**16


@dataclass(frozen=True)
class Tags:
    """What a labelling config calls its parts."""

    control: str = "label"
    image: str = "image"
    """The tag of the picture."""
    value: str = "image"
    """The key of a task's data with the address of the picture."""
    shape: Shape = "brush"


def to_label_studio(
    record: PhotoRecord, tags: Tags = Tags(), names: Mapping[str, str] | None = None, address: str | None = None
) -> dict[str, Any]:
    """A task with its prediction, ready for JSON and for Label Studio's import.

    names: class -> its label in the project, where they differ. address: of the picture, as Label Studio is to ask for
    it; unless given, the photo's name below the folder of its local files.
    """
    address = LOCAL_FILES + quote(record.photo, errors="surrogateescape") if address is None else address
    return {"data": {tags.value: address}, "predictions": [to_prediction(record, tags, names or {})]}


def to_prediction(record: PhotoRecord, tags: Tags, names: Mapping[str, str]) -> dict[str, Any]:
    """What a model tells Label Studio about one picture. Its score is the mean of the segments', by area."""
    regions = []
    for segment in record.segments:
        label = names.get(segment.label, segment.label)
        regions += (
            _brush(record, segment, tags, label) if tags.shape == "brush" else _polygons(record, segment, tags, label)
        )
    area = sum(segment.area for segment in record.segments)
    score = sum(segment.score * segment.area for segment in record.segments) / max(area, 1)
    return {"model_version": record.model or "lexiseg", "score": score, "result": regions}


def labelling_config(vocabulary: Vocabulary, tags: Tags = Tags()) -> str:
    """The labelling config of a project for such predictions, with the colours of the classes."""
    kind = _kind(tags.shape)
    labels = "".join(
        f'    <Label value={quoteattr(plain_text(name))} background="#{bytes(color).hex()}"/>\n'
        for name, color in zip(vocabulary.names, class_colors(vocabulary), strict=True)
    )
    control, image = quoteattr(tags.control), quoteattr(tags.image)
    return (
        f'<View>\n  <Image name={image} value={quoteattr("$" + tags.value)} zoom="true"/>\n'
        f"  <{kind} name={control} toName={image}>\n{labels}  </{kind}>\n</View>\n"
    )


def write_label_studio(folder: Path, records: Records, vocabulary: Vocabulary) -> None:
    """tasks.json, to be imported, and config.xml, the labelling config of the project."""
    (folder / CONFIG).write_text(labelling_config(vocabulary), encoding="utf-8", newline="\n")
    with (folder / TASKS).open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        write_lines(file, (to_label_studio(record) for record in records))
        file.write("\n]\n")


def encode_brush(mask: np.ndarray) -> list[int]:
    """bool [H, W] -> the bytes of Label Studio's run lengths: of a picture that is white and opaque inside the mask.

    A head: the number of values in 32 bits, the bits of a value less one in 5, and four times the bits of a length less
    one in 4. Then runs: a one, which of the four in 2 bits, the length less one, the value.
    """
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = 4 * np.diff(ends, prepend=0)  # four channels
    values = 255 * flat[ends - 1].astype(np.int64)
    pieces = -(-lengths // _LONGEST)  # long runs come in pieces, the rest last
    values = np.repeat(values, pieces)
    cut = np.full(len(values), _LONGEST)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    size = np.searchsorted(2**_SIZES, cut)
    bits = _SIZES[size]
    codes = (((4 | size) << bits | (cut - 1)) << 8) | values
    head = [(4 * flat.size, 32), (7, 5), *((int(width) - 1, 4) for width in _SIZES)]
    codes = np.concatenate([np.array([number for number, _ in head]), codes])
    widths = np.concatenate([np.array([width for _, width in head]), bits + 11])
    last = np.cumsum(widths)
    place = np.arange(last[-1]) - np.repeat(last - widths, widths)  # of a bit in its code, the highest first
    stream = (np.repeat(codes, widths) >> (np.repeat(widths, widths) - 1 - place)) & 1
    packed = np.packbits(stream.astype(np.uint8)).tolist()
    return packed if last[-1] % 8 else [*packed, 0]  # Label Studio's own encoder never ends on a full byte


def _brush(record: PhotoRecord, segment: SegmentRecord, tags: Tags, label: str) -> list[dict[str, Any]]:
    value = {"format": "rle", "rle": encode_brush(record.mask(segment)), "brushlabels": [label]}
    return [_region(record, segment, tags, f"{segment.id}", value)]


def _polygons(record: PhotoRecord, segment: SegmentRecord, tags: Tags, label: str) -> list[dict[str, Any]]:
    """One for each part; holes are filled, for Label Studio's polygons have none."""
    scale = 100 / np.array([record.width, record.height])
    return [
        _region(
            record,
            segment,
            tags,
            f"{segment.id}-{number}",
            {"points": (outline * scale).round(4).tolist(), "closed": True, "polygonlabels": [label]},
        )
        for number, outline in enumerate(outer_polygons(record.mask(segment)), start=1)
    ]


def _region(
    record: PhotoRecord, segment: SegmentRecord, tags: Tags, id: str, value: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": id,
        "type": _kind(tags.shape).lower(),
        "from_name": tags.control,
        "to_name": tags.image,
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
        "score": segment.score,
        "value": value,
    }


def _kind(shape: Shape) -> str:
    return "BrushLabels" if shape == "brush" else "PolygonLabels"

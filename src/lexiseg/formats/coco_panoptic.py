"""COCO's panoptic form: a JSON file, and for each photo a PNG of segment ids: red + 256 green + 65536 blue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.formats.coco import write_document
from lexiseg.formats.records import PhotoRecord, Records, plain_text
from lexiseg.images import read_image
from lexiseg.vocabulary import Vocabulary

NAME = "panoptic"


def to_panoptic(record: PhotoRecord) -> tuple[Image.Image, list[dict[str, Any]]]:
    """The picture of ids, 0 for none, and the segments_info.

    Ids are those of the record, in a semantic one class index + 1; categories are class index + 1. Of overlapping
    segments only what lies on top, the first one, is in the picture, and its areas are counted there.
    """
    shift = 1 if record.task == "semantic" else 0
    ids = np.zeros(record.size_hw, np.int32)
    info = []
    free = np.ones(record.size_hw, bool)
    for segment in record.segments:
        visible = record.mask(segment) & free
        if not visible.any():  # hidden under better ones
            continue
        ids[visible] = segment.id + shift
        free &= ~visible
        rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
        left, top = int(columns[0]), int(rows[0])
        info.append(
            {
                "id": segment.id + shift,
                "category_id": segment.label_index + 1,
                "isthing": int(segment.is_thing),
                "iscrowd": 0,
                "area": int(visible.sum()),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "score": segment.score,
            }
        )
    return ids_picture(ids), info


def ids_picture(ids: NDArray[np.int32]) -> Image.Image:
    """[H, W] -> an RGB picture; `segment_ids` gives them again."""
    return Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8))


def segment_ids(colours: NDArray[Any]) -> NDArray[np.int32]:
    """[H, W, >= 3] of three bytes -> ids [H, W]."""
    wide = colours.astype(np.int32)
    ids: NDArray[np.int32] = wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]
    return ids


def read_segment_ids(path: Path) -> NDArray[np.int32]:
    """The ids in a PNG file; raises ValueError with one line."""
    colours = read_image(path).rgb
    with Image.open(path) as picture:
        if picture.format != "PNG" or picture.mode != "RGB":
            raise ValueError(
                f"{path}: is {picture.format} in mode {picture.mode}; ids are red + 256 green + 65536 blue of an RGB "
                "PNG; others lose those above 255"
            )
    return segment_ids(colours)


def write_coco_panoptic(folder: Path, records: Records, vocabulary: Vocabulary) -> None:
    """panoptic.json and panoptic/, whose pictures are called like the photos."""
    write_document(folder / f"{NAME}.json", records, vocabulary, _annotations(folder / NAME, records))


def _annotations(folder: Path, records: Records) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records, start=1):
        picture, info = to_panoptic(record)
        name = PurePosixPath(plain_text(record.photo)).with_suffix(".png")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name, format="PNG")
        yield {"image_id": number, "file_name": str(name), "segments_info": info}

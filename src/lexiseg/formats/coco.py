"""COCO's form for instances: one JSON file with images, categories and annotations."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lexiseg.drawing import class_colors
from lexiseg.formats.records import PhotoRecord, Records
from lexiseg.vocabulary import Vocabulary


def to_coco(record: PhotoRecord, vocabulary: Vocabulary, image_id: int = 1, first_annotation_id: int = 1) -> dict:
    """A data set of one photo, ready for JSON and for pycocotools."""
    return {
        "images": [_image(record, image_id)],
        "categories": coco_categories(vocabulary),
        "annotations": list(_annotations(record, image_id, first_annotation_id)),
    }


def coco_categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Ids are class index + 1: COCO's tools take 0 for "none"."""
    colors = class_colors(vocabulary)
    return [
        {"id": index + 1, "name": entry.name, "isthing": int(entry.is_thing), "color": list(colors[index])}
        for index, entry in enumerate(vocabulary.classes)
    ]


def write_coco(path: Path, records: Records, vocabulary: Vocabulary) -> None:
    """The data set of all records. It goes through them twice, for COCO puts all images before all annotations."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"images": [')
        write_lines(file, (_image(record, number) for number, record in enumerate(records, start=1)))
        file.write('],\n"categories": [')
        write_lines(file, coco_categories(vocabulary))
        file.write('],\n"annotations": [')
        write_lines(file, _all_annotations(records))
        file.write("]}\n")


def write_lines(file: TextIO, entries: Iterable[object]) -> None:
    """The entries of a JSON array, each on a line of its own."""
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry))


def _image(record: PhotoRecord, image_id: int) -> dict[str, Any]:
    return {"id": image_id, "file_name": record.photo, "height": record.height, "width": record.width}


def _annotations(record: PhotoRecord, image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    for number, segment in enumerate(record.segments, start=first_id):
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": segment.label_index + 1,
            "segmentation": {"size": list(record.size_hw), "counts": segment.counts},
            "area": segment.area,
            "bbox": segment.box_xywh,
            "iscrowd": 0,
            "score": segment.score,
        }


def _all_annotations(records: Records) -> Iterator[dict[str, Any]]:
    next_id = 1
    for number, record in enumerate(records, start=1):
        yield from _annotations(record, number, next_id)
        next_id += len(record.segments)

"""COCO's form for instances: one JSON file with images, categories and annotations, as run lengths or polygons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from lexiseg.drawing import class_colors
from lexiseg.formats.annotations import (
    AnnotatedMask,
    AnnotatedPhoto,
    AnnotatedSet,
    FormatError,
    Polygons,
    RunLengths,
    Shape,
    is_id,
    is_inside,
    is_number,
    read_polygon,
)
from lexiseg.formats.records import PhotoRecord, Records
from lexiseg.vocabulary import Vocabulary

MAX_SIDE = 10**7
"""Pixels of a photo, as a file tells of it."""

# ---------------------------------------------------------------------------------------------------------------- out


def to_coco(record: PhotoRecord, vocabulary: Vocabulary, image_id: int = 1, first_annotation_id: int = 1) -> dict:
    """A data set of one photo, ready for JSON and for pycocotools."""
    return {
        "images": [to_image(record, image_id)],
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
    """The data set of all records."""
    write_document(path, records, vocabulary, _all_annotations(records))


def write_document(path: Path, records: Records, vocabulary: Vocabulary, annotations: Iterable[object]) -> None:
    """A file of either of COCO's forms. It goes through the records once more, for images come before annotations."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"images": [')
        write_lines(file, (to_image(record, number) for number, record in enumerate(records, start=1)))
        file.write('],\n"categories": [')
        write_lines(file, coco_categories(vocabulary))
        file.write('],\n"annotations": [')
        write_lines(file, annotations)
        file.write("]}\n")


def write_lines(file: TextIO, entries: Iterable[object]) -> None:
    """The entries of a JSON array, each on a line of its own."""
    for number, entry in enumerate(entries):
        file.write((",\n" if number else "\n") + json.dumps(entry))


def to_image(record: PhotoRecord, image_id: int) -> dict[str, Any]:
    """What COCO's files say about a photo."""
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


# ----------------------------------------------------------------------------------------------------------------- in


def read_coco(path: Path, document: Any) -> AnnotatedSet:
    """The photos and shapes of a file of instances; classes in the order of its categories. Raises FormatError.

    Large shapes come first and small ones on top of them: COCO does not say which of two is in front.
    """
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(document, dict) or not isinstance(document.get(key), list)
    ]
    if missing:
        raise FormatError(f"{path}: has no list {missing[0]!r}, so it is no COCO file; is it the right one?")
    names: dict[Any, str] = {}
    things: dict[str, bool] = {}
    for number, category in enumerate(document["categories"], start=1):
        where = f"{path}: category {number}"
        if not isinstance(category, dict) or not is_id(category.get("id")) or not isinstance(category.get("name"), str):
            raise FormatError(f"{where} needs an id and a name")
        name = " ".join(category["name"].split())
        if not name or category["id"] in names or name in things:
            raise FormatError(f"{where} ({name!r}) has no name, or the id or name of another one; give each its own")
        names[category["id"]], things[name] = name, bool(category.get("isthing", True))
    files: dict[Any, str] = {}
    shapes: dict[Any, list[tuple[float, AnnotatedMask]]] = {}
    for number, image in enumerate(document["images"], start=1):
        if not isinstance(image, dict) or not is_id(image.get("id")) or not is_inside(image.get("file_name")):
            raise FormatError(f"{path}: image {number} needs an id and a file_name below the folder of the photos")
        if image["id"] in files:
            raise FormatError(f"{path}: image {number} has the id of another one, {image['id']}; change it")
        files[image["id"]], shapes[image["id"]] = image["file_name"], []
    for number, entry in enumerate(document["annotations"], start=1):
        where = f"{path}: annotation {number}"
        if not isinstance(entry, dict) or not is_id(entry.get("image_id")) or entry["image_id"] not in files:
            raise FormatError(f"{where} is of an image that is not listed; add it to images")
        where += f" ({files[entry['image_id']]})"
        category_id = entry.get("category_id")
        if not is_id(category_id) or category_id not in names:
            told = str(category_id)[:50]
            raise FormatError(f"{where} is of category {told}, which is not listed; add it to categories")
        try:
            shape = read_shape(entry)
        except ValueError as error:
            raise FormatError(f"{where}: {error}") from None
        area = entry.get("area")
        mask = AnnotatedMask(where, names[category_id], shape, bool(entry.get("iscrowd", 0)))
        shapes[entry["image_id"]].append((float(area) if is_number(area) else 0.0, mask))
    photos = [
        AnnotatedPhoto((files[id],), tuple(mask for _, mask in sorted(own, key=lambda one: -one[0])))
        for id, own in shapes.items()
        if own
    ]
    return AnnotatedSet(path, tuple(things), tuple(photos), tuple(things.values()))


def read_shape(entry: Any) -> Shape:
    """Of an annotation, or bare run lengths; raises ValueError."""
    told = entry.get("segmentation", entry) if isinstance(entry, dict) else entry
    if isinstance(told, list):
        if not told or not all(isinstance(one, list) and len(one) % 2 == 0 for one in told):
            raise ValueError("its polygons are no lists of x and y by turns")
        return Polygons(tuple(read_polygon([one[i : i + 2] for i in range(0, len(one), 2)]) for one in told))
    if not isinstance(told, dict) or not {"size", "counts"} <= told.keys():
        raise ValueError("is no mask; needed are polygons, or run lengths (RLE): {'size': [H, W], 'counts': ...}")
    size = told["size"]
    if (
        not isinstance(size, list)
        or len(size) != 2
        or any(type(side) is not int or not 1 <= side <= MAX_SIDE for side in size)
    ):
        raise ValueError(f"its size is {str(size)[:50]}; it must be [height, width]")
    return RunLengths(told["counts"], (size[0], size[1]))

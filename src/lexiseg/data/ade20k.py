"""ADE20K-150: the scene parsing challenge of 2016, with the instances of the challenge of 2017 where they are there.

ADEChallengeData2016/images/validation/<id>.jpg
ADEChallengeData2016/annotations/validation/<id>.png    8-bit: 0 = none, 1..150
ADEChallengeData2016/objectInfo150.txt                  number, shares, counts, names
annotations_instance/validation/<id>.png                red: kind of thing 1..100, green: number of the instance
categoryMapping.txt                                     kind of thing -> class 1..150

Panoptic truth: one segment per class of stuff from the first, the instances of the second over it.
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.layouts import (
    Converted,
    Layout,
    Part,
    Region,
    paired,
    read_labels,
    read_lines,
    read_picture,
)
from lexiseg.data.sources import Source, SourceError

CLASSES, IGNORE = 150, 255
_PAGE = "ADEChallengeData2016.zip, sceneparsing.csail.mit.edu"
_INSTANCES_PAGE = "annotations_instance.tar, sceneparsing.csail.mit.edu (challenge of 2017)"

PHOTOS = Part("photos", r"images/validation/(ADE_val_\d+)\.jpg", _PAGE)
LABELS = Part("labels", r"annotations/validation/(ADE_val_\d+)\.png", _PAGE)
NAMES = Part("class names", r"objectInfo150\.txt", _PAGE)
INSTANCES = Part(
    "instances",
    r"annotations_instance/validation/(ADE_val_\d+)\.png",
    _INSTANCES_PAGE,
    without="PQ and AP are not measured",
)
MAPPING = Part(
    "which instance classes are which of the 150",
    r"(?:categoryMapping|ade20k_instance_catid_mapping)\.txt",
    "categoryMapping.txt of the development kit of the challenge of 2017 (instance segmentation)",
    without="PQ and AP are not measured",
)
PARTS = (PHOTOS, LABELS, NAMES, INSTANCES, MAPPING)


def ade20k_150(source: Source) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    words = read_class_names(source, next(iter(source.match(NAMES.pattern).values())))
    instances, mapping_files = source.match(INSTANCES.pattern), source.match(MAPPING.pattern)
    ids = paired(photos, labels)
    mapping = None
    is_thing = None
    if instances and mapping_files:
        without = sorted(set(ids) - instances.keys())
        if without:
            raise SourceError(
                f"{INSTANCES.what}: {len(without)} photos have none, such as {without[0]}; unpack all of "
                f"{INSTANCES.offered}, or take the instances away"
            )
        mapping = read_mapping(source, next(iter(mapping_files.values())))
        is_thing = tuple(index in set(mapping.tolist()) for index in range(CLASSES))
    return Layout(
        classes=tuple(", ".join(phrases) for phrases in words),
        words=words,
        ids=ids,
        convert=partial(_convert, source, photos, labels, instances, mapping),
        is_thing=is_thing,
        has_segments=mapping is not None,
    )


def class_labels(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """0 = none, 1..150 -> 255, 0..149."""
    return raw - np.uint8(1)  # 0 wraps to 255


def panoptic_segments(
    labels: NDArray[np.uint8], instances: NDArray[np.uint8], mapping: NDArray[np.int64]
) -> tuple[NDArray[np.int32], tuple[Region, ...]]:
    """labels [H, W] of classes, instances [H, W, >= 2] as published, mapping [101] kind -> class, -1 for none.

    Stuff first, in the order of the classes, then the instances in the order of kinds and numbers. Stuff that the
    instances cover completely is left out.
    """
    segments = np.zeros(labels.shape, np.int32)
    regions: list[Region] = []
    things = set(mapping.tolist())
    for index in np.unique(labels).tolist():
        if index != IGNORE and index not in things:
            regions.append(Region(len(regions) + 1, index))
            segments[labels == index] = len(regions)
    kinds = instances[..., 0].astype(np.int32)
    code = np.where(kinds > 0, kinds * 256 + instances[..., 1], 0)
    for value in np.unique(code[code > 0]).tolist():
        regions.append(Region(len(regions) + 1, int(mapping[value // 256])))
        segments[code == value] = len(regions)
    visible = set(np.unique(segments).tolist())
    return segments, tuple(region for region in regions if region.number in visible)


def read_class_names(source: Source, path: str) -> tuple[tuple[str, ...], ...]:
    """The names of the 150 classes: the last column of objectInfo150.txt, several with commas between them."""
    names: dict[int, tuple[str, ...]] = {}
    for line in read_lines(source, path):
        columns = [column.strip() for column in line.split("\t") if column.strip()]
        if columns[0].isdigit():
            names[int(columns[0])] = tuple(name.strip() for name in columns[-1].split(",") if name.strip())
    if sorted(names) != list(range(1, CLASSES + 1)):
        raise SourceError(f"{path}: {len(names)} classes where {CLASSES} were expected; is it the right file?")
    return tuple(names[number] for number in range(1, CLASSES + 1))


def read_mapping(source: Source, path: str) -> NDArray[np.int64]:
    """[101]: kind of thing 1..100 -> class 0..149, and -1 for 0. The first two numbers of every line."""
    mapping = np.full(101, -1, np.int64)
    for line in read_lines(source, path):
        matched = re.match(r"(\d+)\s+(\d+)\b", line)
        if matched is None:  # the line of headings
            continue
        kind, number = int(matched[1]), int(matched[2])
        if not (1 <= kind <= 100 and 1 <= number <= CLASSES):
            raise SourceError(f"{path}: the line {line[:60]!r} maps no kind of 1..100 to a class of 1..{CLASSES}")
        mapping[kind] = number - 1
    if (mapping[1:] < 0).any():
        raise SourceError(f"{path}: {int((mapping[1:] >= 0).sum())} kinds of things where 100 were expected")
    return mapping


def _convert(
    source: Source,
    photos: dict[str, str],
    labels: dict[str, str],
    instances: dict[str, str],
    mapping: NDArray[np.int64] | None,
    id: str,
) -> Converted:
    raw = read_labels(source, labels[id])
    if raw.size and raw.max() > CLASSES:
        raise SourceError(f"{labels[id]}: holds the value {raw.max()}, but the classes are 1..{CLASSES}")
    classes = class_labels(raw.astype(np.uint8))
    if mapping is None:
        return Converted(photos[id], classes)
    things = read_picture(source, instances[id])
    if things.ndim != 3 or things.shape[2] < 2 or things.shape[:2] != classes.shape:
        raise SourceError(
            f"{instances[id]}: {things.shape} where {classes.shape} with at least two channels was expected"
        )
    if things[..., 0].max() > 100:
        raise SourceError(f"{instances[id]}: holds the kind {things[..., 0].max()}, but there are 100")
    segments, regions = panoptic_segments(classes, things, mapping)
    return Converted(photos[id], classes, segments, regions)

"""Cityscapes, validation set: 19 classes, 8 of them things.

leftImg8bit/val/<city>/<id>_leftImg8bit.png
gtFine/val/<city>/<id>_gtFine_labelIds.png        8-bit: numbers of all 34 kinds
gtFine/val/<city>/<id>_gtFine_instanceIds.png     16-bit: kind * 1000 + number of the instance, or the kind alone

As its own scripts make them: a region of a kind that has instances, but without a number, is a group (crowd); kinds
that are not among the 19 are void.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.layouts import Converted, Layout, Part, Region, looked_up, paired, read_labels
from lexiseg.data.sources import Source, SourceError

IGNORE = 255
_ID = r"([a-z-]+_\d{6}_\d{6})"
_PAGE = "gtFine_trainvaltest.zip, cityscapes-dataset.com (after registration)"
PHOTOS = Part(
    "photos",
    rf"leftImg8bit/val/[^/]+/{_ID}_leftImg8bit\.png",
    "leftImg8bit_trainvaltest.zip, cityscapes-dataset.com (after registration)",
)
LABELS = Part("labels", rf"gtFine/val/[^/]+/{_ID}_gtFine_labelIds\.png", _PAGE)
INSTANCES = Part("instances", rf"gtFine/val/[^/]+/{_ID}_gtFine_instanceIds\.png", _PAGE)
PARTS = (PHOTOS, LABELS, INSTANCES)

KINDS = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""Number of the kind -> name, in the order of the classes."""

FIRST_THING = 24


def cityscapes(source: Source) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    instances = source.match(INSTANCES.pattern)
    return Layout(
        classes=tuple(KINDS.values()),
        ids=tuple(id for id in paired(photos, labels) if id in instances),
        convert=partial(_convert, source, photos, labels, instances),
        image_suffix=".png",
        is_thing=tuple(kind >= FIRST_THING for kind in KINDS),
        has_segments=True,
        instance_rules="cityscapes",
    )


def table() -> NDArray[np.uint8]:
    """[256] number of the kind -> class."""
    classes = np.full(256, IGNORE, np.uint8)
    classes[list(KINDS)] = np.arange(len(KINDS))
    return classes


def panoptic_segments(instances: NDArray[np.integer]) -> tuple[NDArray[np.int32], tuple[Region, ...]]:
    """Published instances [H, W] -> numbered segments, in the order of the published values."""
    segments = np.zeros(instances.shape, np.int32)
    regions: list[Region] = []
    class_of = {kind: index for index, kind in enumerate(KINDS)}
    for value in np.unique(instances).tolist():
        kind = value if value < 1000 else value // 1000
        if kind in class_of:
            group = value < 1000 and kind >= FIRST_THING
            regions.append(Region(len(regions) + 1, class_of[kind], is_crowd=group))
            segments[instances == value] = len(regions)
    return segments, tuple(regions)


def _convert(
    source: Source, photos: dict[str, str], labels: dict[str, str], instances: dict[str, str], id: str
) -> Converted:
    classes = looked_up(table(), read_labels(source, labels[id]), labels[id])
    numbers = read_labels(source, instances[id]).astype(np.int32)
    if numbers.shape != classes.shape:
        raise SourceError(
            f"{instances[id]}: {numbers.shape} pixels (height, width), but the labels have {classes.shape}"
        )
    segments, regions = panoptic_segments(numbers)
    return Converted(photos[id], classes, segments, regions)

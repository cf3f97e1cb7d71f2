"""COCO-Stuff 164k on val2017: 171 classes, 80 of them things.

val2017/<id>.jpg                 the photos of COCO
val2017/<id>.png                 8-bit: number of COCO - 1, 255 = none
labels.txt                       "12: street sign", 182 names and 0 for none

Eleven of COCO's 182 numbers were never annotated.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.layouts import (
    Converted,
    Layout,
    Part,
    looked_up,
    paired,
    read_labels,
    read_numbered_names,
)
from lexiseg.data.sources import Source, SourceError

NUMBERS, THINGS, IGNORE = 182, 80, 255
NEVER_ANNOTATED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
_PAGE = "github.com/nightrome/cocostuff"
PHOTOS = Part("photos", r"val2017/(\d{12})\.jpg", "val2017.zip, cocodataset.org")
LABELS = Part("labels", r"val2017/(\d{12})\.png", f"stuffthingmaps_trainval2017.zip, {_PAGE}")
NAMES = Part("class names", r"labels\.txt", f"labels.txt, {_PAGE}")
PARTS = (PHOTOS, LABELS, NAMES)


def coco_stuff_171(source: Source) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    names = _names(source)
    classes = tuple(names[number] for number in range(1, NUMBERS + 1) if number not in NEVER_ANNOTATED)
    return Layout(
        classes=classes,
        ids=paired(photos, labels),
        convert=partial(_convert, source, photos, labels),
        is_thing=tuple(index < THINGS for index in range(len(classes))),
    )


def table() -> NDArray[np.uint8]:
    """[256] raw value -> class; what was never annotated, and 255, is ignored."""
    classes = np.full(256, IGNORE, np.uint8)
    annotated = [number - 1 for number in range(1, NUMBERS + 1) if number not in NEVER_ANNOTATED]
    classes[annotated] = np.arange(len(annotated))
    return classes


def _names(source: Source) -> dict[int, str]:
    """Other data sets have a labels.txt too: the one with COCO's numbers counts."""
    candidates = [path for path in source.paths if path.rpartition("/")[2] == "labels.txt"]
    for path in candidates:
        names = {number: name for number, name in read_numbered_names(source, path).items() if number > 0}
        if sorted(names) == list(range(1, NUMBERS + 1)):
            return names
    raise SourceError(f"{candidates[0]}: not the {NUMBERS} names of COCO-Stuff; take labels.txt of {_PAGE}")


def _convert(source: Source, photos: dict[str, str], labels: dict[str, str], id: str) -> Converted:
    return Converted(photos[id], looked_up(table(), read_labels(source, labels[id]), labels[id]))

"""PASCAL VOC 2012, validation set for segmentation: three benchmarks of the same labels.

VOCdevkit/VOC2012/JPEGImages/<id>.jpg
VOCdevkit/VOC2012/SegmentationClass/<id>.png          palette: 0 = background, 1..20, 255 = border
VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt

voc-20: the background is ignored. voc-21: the background is a class. voc-20b: the background is the last class, and the
model is asked for what it consists of: the names of Pascal Context that are no VOC class stand in for it, and all of
them are read as background.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.layouts import Converted, Layout, Part, read_labels, read_lines
from lexiseg.data.sources import Source, SourceError

IGNORE = 255
_PAGE = "VOCtrainval_11-May-2012.tar, host.robots.ox.ac.uk/pascal/VOC/voc2012"
PHOTOS = Part("photos", r"VOC2012/JPEGImages/([\w]+)\.jpg", _PAGE)
LABELS = Part("labels", r"VOC2012/SegmentationClass/([\w]+)\.png", _PAGE)
LIST = Part("list of the validation set", r"VOC2012/ImageSets/Segmentation/val\.txt", _PAGE)
PARTS = (PHOTOS, LABELS, LIST)

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""As VOC's development kit spells them, 1..20."""

BACKGROUND = "background"

STAND_INS = (
    *("bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence"),
    *("floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform"),
    *("sign", "plate", "road", "rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck"),
    *("wall", "water", "window", "wood"),
)
"""What the background of voc-20b consists of: Pascal Context's 59 names without VOC's."""


def table_20() -> NDArray[np.uint8]:
    """[256] raw value -> label of voc-20; background, border and what does not occur are 255."""
    table = np.full(256, IGNORE, np.uint8)
    table[1:21] = np.arange(20)
    return table


def table_20b() -> NDArray[np.uint8]:
    """[256] raw value -> label of voc-20b: the background is 20."""
    table = table_20()
    table[0] = 20
    return table


def table_21() -> NDArray[np.uint8]:
    """[256] raw value -> label of voc-21: as it is."""
    table = np.full(256, IGNORE, np.uint8)
    table[:21] = np.arange(21)
    return table


def voc_20(source: Source) -> Layout:
    return _layout(source, table_20(), NAMES)


def voc_20b(source: Source) -> Layout:
    words = tuple((name,) for name in (*NAMES, *STAND_INS))
    word_class = (*range(20), *[20] * len(STAND_INS))
    return _layout(source, table_20b(), (*NAMES, BACKGROUND), words, word_class)


def voc_21(source: Source) -> Layout:
    return _layout(source, table_21(), (BACKGROUND, *NAMES))


def _layout(
    source: Source,
    table: NDArray[np.uint8],
    classes: tuple[str, ...],
    words: tuple[tuple[str, ...], ...] | None = None,
    word_class: tuple[int, ...] | None = None,
) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    listed = read_lines(source, next(iter(source.match(LIST.pattern).values())))
    ids = tuple(sorted(id for id in listed if id in photos and id in labels))
    absent = sorted(set(listed) - set(ids))
    return Layout(
        classes=classes,
        ids=ids,
        convert=partial(_convert, source, photos, labels, table),
        is_thing=tuple(name != BACKGROUND for name in classes),
        words=words,
        word_class=word_class,
        remarks=(f"{len(absent)} photos of the list are missing, such as {absent[0]}",) if absent else (),
    )


def _convert(
    source: Source, photos: dict[str, str], labels: dict[str, str], table: NDArray[np.uint8], id: str
) -> Converted:
    raw = read_labels(source, labels[id])
    unknown = raw[(raw > 20) & (raw != IGNORE)]
    if unknown.size:
        raise SourceError(f"{labels[id]}: holds the value {unknown[0]}; VOC's are 0..20 and {IGNORE}")
    return Converted(photos[id], table[raw])

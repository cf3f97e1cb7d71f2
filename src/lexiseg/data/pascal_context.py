"""Pascal Context on the validation photos of VOC 2010: all 459 classes, or the 59 frequent ones.

VOCdevkit/VOC2010/JPEGImages/<id>.jpg
VOCdevkit/VOC2010/ImageSets/Main/val.txt
trainval/<id>.mat                  LabelMap: 0 = none, 1..459
labels.txt                         "12: bag"
59_labels.txt                      the frequent ones

The classes of context-59 are in the order of their numbers among the 459, as in the Detail API and the class lists made
for it; 59_labels.txt has another order, and calls one of them otherwise. Of the 459 some hundred never occur.
"""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from lexiseg.data.layouts import Converted, Layout, Part, looked_up, read_lines, read_numbered_names
from lexiseg.data.sources import Source, SourceError

CLASSES, FREQUENT = 459, 59
IGNORE_459, IGNORE_59 = 65535, 255
_VOC_PAGE = "VOCtrainval_03-May-2010.tar, host.robots.ox.ac.uk/pascal/VOC/voc2010"
_PAGE = "cs.stanford.edu/~roozbeh/pascal-context"
PHOTOS = Part("photos", r"VOC2010/JPEGImages/([\w]+)\.jpg", _VOC_PAGE)
LIST = Part("list of the validation set", r"VOC2010/ImageSets/Main/val\.txt", _VOC_PAGE)
LABELS = Part("labels", r"trainval/(\d{4}_\d{6})\.mat", f"trainval.tar.gz, {_PAGE}")
NAMES = Part("names of the 459 classes", r"labels\.txt", f"labels.txt, {_PAGE}")
FREQUENT_NAMES = Part("names of the 59 classes", r"59_labels\.txt", f"59_labels.txt, {_PAGE}")
PARTS_459 = (PHOTOS, LIST, LABELS, NAMES)
PARTS_59 = (*PARTS_459, FREQUENT_NAMES)

OTHER_NAMES = {"diningtable": "table"}
"""How lists of the 59 call a class -> how the list of the 459 does."""


def context_459(source: Source) -> Layout:
    names = _names(source)
    return _layout(source, tuple(names[number] for number in range(1, CLASSES + 1)), table_459())


def context_59(source: Source) -> Layout:
    names = _names(source)
    (path, *_) = source.match(FREQUENT_NAMES.pattern).values()
    frequent = list(read_numbered_names(source, path).values())
    try:
        numbers = frequent_numbers(names, frequent)
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from None
    classes = tuple(names[number] for number in numbers)
    return _layout(source, classes, table_59(numbers))


def frequent_numbers(names: dict[int, str], frequent: list[str]) -> list[int]:
    """The numbers among the 459 of the frequent classes, ascending: class k of context-59 is the k-th of them."""
    number_of = {name: number for number, name in names.items()}
    found = set()
    for name in frequent:
        plain = name.replace(" ", "")
        candidates = (name, plain, OTHER_NAMES.get(plain, ""))
        numbers = [number_of[candidate] for candidate in candidates if candidate in number_of]
        if not numbers:
            raise ValueError(f"{name!r} is none of the 459 names")
        found.add(numbers[0])
    if len(found) != FREQUENT:
        raise ValueError(f"{len(found)} different classes where {FREQUENT} were expected")
    return sorted(found)


def table_59(numbers: list[int]) -> NDArray[np.uint8]:
    """[460] LabelMap value -> label of context-59; everything else is 255."""
    table = np.full(CLASSES + 1, IGNORE_59, np.uint8)
    table[numbers] = np.arange(FREQUENT)
    return table


def table_459() -> NDArray[np.uint16]:
    """[460] LabelMap value -> label of context-459."""
    return class_labels(np.arange(CLASSES + 1, dtype=np.uint16))


def class_labels(raw: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """0 = none, 1..459 -> 65535, 0..458."""
    return raw - np.uint16(1)  # 0 wraps to 65535


def _names(source: Source) -> dict[int, str]:
    """Other data sets have a labels.txt too: the one with 459 names counts."""
    candidates = [path for path in source.paths if path.rpartition("/")[2] == "labels.txt"]
    for path in candidates:
        names = read_numbered_names(source, path)
        if sorted(names) == list(range(1, CLASSES + 1)):
            return names
    raise SourceError(f"{candidates[0]}: not the {CLASSES} names of Pascal Context, which {NAMES.offered} has")


def _layout(source: Source, classes: tuple[str, ...], table: NDArray[Any]) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    listed = read_lines(source, next(iter(source.match(LIST.pattern).values())))
    ids = tuple(sorted(id for id in listed if id in photos and id in labels))
    absent = sorted(set(listed) - set(ids))
    return Layout(
        classes=classes,
        ids=ids,
        convert=partial(_convert, source, photos, labels, table),
        remarks=(f"{len(absent)} photos of the list are missing, such as {absent[0]}",) if absent else (),
    )


def _convert(source: Source, photos: dict[str, str], labels: dict[str, str], table: NDArray[Any], id: str) -> Converted:
    return Converted(photos[id], looked_up(table, read_label_map(source, labels[id]), labels[id]))


def read_label_map(source: Source, path: str) -> NDArray[Any]:
    """The LabelMap [H, W] of a .mat file."""
    try:
        content = scipy.io.loadmat(io.BytesIO(source.read(path)))
    except SourceError:
        raise
    except Exception as error:  # a damaged file is met with every kind of exception
        raise SourceError(f"{path}: no .mat file, or damaged ({str(error)[:80]}); download it again") from None
    labels = content.get("LabelMap")
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise SourceError(f"{path}: without a LabelMap of class numbers; is it of Pascal Context?")
    return labels

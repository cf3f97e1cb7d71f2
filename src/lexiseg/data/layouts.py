"""What a reader of a publisher's files hands to the preparation: the classes, the photos, and how to convert one.

Every format has a module of its own in this folder: the parts it needs (`PARTS`), pure functions that convert labels,
and one function per benchmark, from a `Source` to a `Layout`.

K classes; maps are [H, W].
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.packages import InstanceRules
from lexiseg.data.sources import Source, SourceError

MAX_PIXELS = 200_000_000
"""Of one photo or map; the largest in use are of Mapillary, some 25 million."""


@dataclass(frozen=True)
class Part:
    """Some files of a data set."""

    what: str
    """What they are: "photos of the validation set"."""
    pattern: str
    """As for `Source.match`."""
    offered: str
    """The file that holds them, and where its publisher offers it."""
    without: str = ""
    """What goes on without them: "PQ and AP are not measured". Empty where nothing does."""


@dataclass(frozen=True)
class Region:
    """One segment of a panoptic map, by the number it has in the map."""

    number: int
    class_index: int
    is_crowd: bool = False


@dataclass(frozen=True)
class Instance:
    """One annotated thing; instances may overlap."""

    class_index: int
    rle: Mapping[str, Any]
    """COCO's run lengths, {"size": [H, W], "counts": text}."""
    area: float
    """As annotated."""
    is_crowd: bool = False


@dataclass(frozen=True, eq=False)
class Converted:
    """One photo in the form that evaluation reads."""

    image: bytes | str
    """The photo's file: its content, or its path in the source where it stays as it is."""
    labels: NDArray[np.uint8] | NDArray[np.uint16]
    """Class indices and the ignored value."""
    segments: NDArray[np.int32] | None = None
    """Numbers of `regions`, 0 = none."""
    regions: tuple[Region, ...] = ()
    instances: tuple[Instance, ...] | None = None
    """Where they are told apart from `regions`."""


@dataclass(frozen=True)
class Layout:
    """A benchmark, found in a source."""

    classes: tuple[str, ...]
    """K names as the publisher writes them."""
    ids: tuple[str, ...]
    """The photos in order."""
    convert: Callable[[str], Converted]
    """By id."""
    image_suffix: str = ".jpg"
    is_thing: tuple[bool, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    """What is asked for instead of `classes`: phrases per word."""
    word_class: tuple[int, ...] | None = None
    """The class of each of `words`, where there are more words than classes."""
    has_segments: bool = False
    has_instances: bool = False
    instance_rules: InstanceRules = "coco"
    """By which AP is measured."""
    remarks: tuple[str, ...] = ()
    """What is not as it should be, but does not stop the work."""


def paired(photos: Mapping[str, str], labels: Mapping[str, str]) -> tuple[str, ...]:
    """Ids of which both files exist, sorted: what the official loaders take."""
    return tuple(sorted(photos.keys() & labels.keys()))


def read_picture(source: Source, path: str) -> NDArray[Any]:
    """A picture of labels as it is stored: [H, W] of 8 or 16 bits, palette indices, or [H, W, C]."""
    try:
        with Image.open(io.BytesIO(source.read(path))) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise SourceError(f"{path}: {picture.width} x {picture.height} pixels, more than the limit")
            return np.asarray(picture)
    except SourceError:
        raise
    except Exception as error:  # Pillow's decoders meet damaged files with every kind of exception
        raise SourceError(f"{path}: no picture, or damaged ({str(error)[:100]}); download it again") from None


def read_labels(source: Source, path: str) -> NDArray[Any]:
    """A picture of one number per pixel."""
    labels = read_picture(source, path)
    if labels.ndim != 2:
        raise SourceError(f"{path}: {labels.shape[2]} channels where a picture of class numbers was expected")
    return labels


def read_json(source: Source, path: str, *keys: str) -> Any:
    """A JSON file that has these keys."""
    try:
        document = json.loads(source.read(path))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not valid JSON ({str(error)[:80]}); download it again") from None
    missing = [key for key in keys if not isinstance(document, dict) or key not in document]
    if missing:
        raise SourceError(f"{path}: without {missing[0]!r}; is it the right file?")
    return document


def read_lines(source: Source, path: str) -> list[str]:
    """The lines of a text file that are not empty."""
    text = source.read(path).decode("utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_numbered_names(source: Source, path: str) -> dict[int, str]:
    """Lines "12: window" -> {12: "window"}."""
    names = {}
    for line in read_lines(source, path):
        matched = re.fullmatch(r"(\d+)\s*[:\t ]\s*(.+)", line)
        if matched is None:
            raise SourceError(f"{path}: the line {line[:60]!r} is not 'number: name'")
        names[int(matched[1])] = matched[2].strip()
    return names


def looked_up(table: NDArray[Any], raw: NDArray[Any], path: str) -> NDArray[Any]:
    """`table[raw]`; a value beyond the table is named with its file."""
    if raw.size and not (raw.min() >= 0 and raw.max() < len(table)):
        outside = raw[(raw < 0) | (raw >= len(table))][0]
        raise SourceError(f"{path}: holds the value {outside}, which this data set does not know")
    return table[raw]

"""CVAT's form "CVAT for images 1.1": one XML file with masks, polygons and boxes by photo.

A mask is run lengths, row by row inside its box, beginning with the pixels that are not in it. It keeps every pixel;
scores have no place in it.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from lexiseg.drawing import class_colors
from lexiseg.formats.annotations import (
    AnnotatedMask,
    AnnotatedPhoto,
    AnnotatedSet,
    FormatError,
    Polygons,
    Shape,
    box_polygon,
    check_bytes,
    check_size,
    is_number,
    read_polygon,
)
from lexiseg.formats.records import PhotoRecord, Records, SegmentRecord, plain_text
from lexiseg.types import Size
from lexiseg.vocabulary import Vocabulary

ANNOTATIONS = "annotations.xml"

# ---------------------------------------------------------------------------------------------------------------- out


def to_cvat(record: PhotoRecord, number: int = 0) -> str:
    """The element of one photo."""
    told = f"<image id={_quoted(number)} name={_quoted(record.photo)} width={_quoted(record.width)} "
    lines = [f"  {told}height={_quoted(record.height)}>"]
    lines += [_mask(record, segment) for segment in record.segments]
    return "\n".join([*lines, "  </image>\n"])


def write_cvat(path: Path, records: Records, vocabulary: Vocabulary) -> None:
    """The file of all photos, to be imported into a task that has these photos and labels."""
    labels = "".join(
        f"        <label>\n          <name>{escape(plain_text(name))}</name>\n"
        f"          <color>#{bytes(color).hex()}</color>\n          <type>any</type>\n"
        "          <attributes></attributes>\n        </label>\n"
        for name, color in zip(vocabulary.names, class_colors(vocabulary), strict=True)
    )
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>\n    <task>\n'
        )
        file.write(f"      <labels>\n{labels}      </labels>\n    </task>\n  </meta>\n")
        for number, record in enumerate(records):
            file.write(to_cvat(record, number))
        file.write("</annotations>\n")


def _mask(record: PhotoRecord, segment: SegmentRecord) -> str:
    left, top, right, bottom = segment.box_xyxy
    inside = record.mask(segment)[top:bottom, left:right].ravel()
    changes = np.flatnonzero(np.diff(inside, prepend=False, append=not inside[-1]))
    runs = ", ".join(map(str, np.diff(changes, prepend=0).tolist()))
    return (
        f'    <mask label={_quoted(segment.label)} source="auto" occluded="0" rle="{runs}" left="{left}" top="{top}" '
        f'width="{right - left}" height="{bottom - top}" z_order="0"></mask>'
    )


def _quoted(value: object) -> str:
    return quoteattr(plain_text(str(value)))


# ----------------------------------------------------------------------------------------------------------------- in


class _Mask:
    """Run lengths in a box."""

    def __init__(self, runs: np.ndarray, left: int, top: int, width: int, height: int) -> None:
        self.runs, self.left, self.top, self.width, self.height = runs, left, top, width, height

    def draw(self, size_hw: Size) -> np.ndarray:
        right, bottom = self.left + self.width, self.top + self.height
        if self.left < 0 or self.top < 0 or right > size_hw[1] or bottom > size_hw[0]:
            raise ValueError(f"its box leaves the {size_hw[1]} x {size_hw[0]} pixels of the photo")
        mask = np.zeros(size_hw, bool)
        inside = np.repeat(np.arange(len(self.runs)) % 2 == 1, self.runs)
        mask[self.top : bottom, self.left : right] = inside.reshape(self.height, self.width)
        return mask


class _Sized:
    """A shape on a photo of which the file tells the size."""

    def __init__(self, shape: Shape, size_hw: Size) -> None:
        self.shape, self.size_hw = shape, size_hw

    def draw(self, size_hw: Size) -> np.ndarray:
        check_size(self.size_hw, size_hw)
        return self.shape.draw(size_hw)


def read_cvat(path: Path) -> AnnotatedSet:
    """An exported XML file, or the zip that holds it as annotations.xml. Raises FormatError."""
    classes: dict[str, None] = {}
    photos: list[AnnotatedPhoto] = []
    try:
        with _opened(path) as file:
            # Entities and document types are refused: with them a small file can fill the memory or ask for others.
            for _, element in iterparse(file, events=("end",), forbid_dtd=True):
                if element.tag == "label":
                    classes.update(dict.fromkeys(filter(None, [_stripped(element.findtext("name"))])))
                elif element.tag == "track":
                    raise FormatError(f"{path}: holds tracks of a video; export it as 'CVAT for images 1.1'")
                elif element.tag == "image":
                    photos.append(_photo(path, element, classes))
                    element.clear()
    except (ParseError, UnicodeError) as error:
        raise FormatError(f"{path}: not valid XML ({str(error)[:80]}); export it again") from None
    except DefusedXmlException:
        raise FormatError(
            f"{path}: declares a document type or entities, which CVAT does not; export it again"
        ) from None
    if not photos:
        raise FormatError(f"{path}: has no <image>, so it is no export as 'CVAT for images 1.1'; is it the right one?")
    return AnnotatedSet(path, tuple(classes), tuple(photos))


def _photo(path: Path, image: Element, classes: dict[str, None]) -> AnnotatedPhoto:
    name = image.get("name", "")
    where = f"{path}: image {image.get('id', '?')} ({name[:100]})"
    if not name:
        raise FormatError(f"{where}: has no name; export it again")
    height, width = (_whole(where, image, side) for side in ("height", "width"))
    masks: list[tuple[int, AnnotatedMask]] = []
    for number, element in enumerate((own for own in image if own.tag != "tag"), start=1):
        label = _stripped(element.get("label"))
        of_element = f"{where}, {element.tag} {number}"
        if not label:
            raise FormatError(f"{of_element}: has no label; give it one")
        classes.setdefault(label)
        try:
            shape = _Sized(_shape(element), (height, width))
            layer = _integer(element.get("z_order", "0"))
        except ValueError as error:
            raise FormatError(f"{of_element}: {error}") from None
        masks.append((layer, AnnotatedMask(of_element, label, shape)))
    masks.sort(key=lambda entry: entry[0])  # those of one layer stay in their order
    return AnnotatedPhoto((name,), tuple(mask for _, mask in masks))


def _shape(element: Element) -> Shape:
    if element.tag == "polygon":
        pairs = [pair.split(",") for pair in element.get("points", "").split(";")]
        return Polygons((read_polygon([[_number(value) for value in pair] for pair in pairs]),))
    if element.tag == "box":
        corners = np.array([_number(element.get(side, "")) for side in ("xtl", "ytl", "xbr", "ybr")]).reshape(2, 2)
        sides = corners[1] - corners[0]
        if (sides <= 0).any():
            raise ValueError("its box is empty; draw it again")
        return Polygons((box_polygon(corners[0], sides, _number(element.get("rotation", "0")), center=True),))
    if element.tag == "mask":
        left, top, width, height = (_integer(element.get(side, "")) for side in ("left", "top", "width", "height"))
        text = element.get("rle", "")
        if width < 1 or height < 1 or width * height > 2**40 or len(text) > 64 * 2**20:
            raise ValueError("its box or its run lengths are beyond any picture")
        runs = np.array([_integer(run) for run in text.split(",")], np.int64)
        if runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
            raise ValueError(f"its run lengths do not add up to the {width} x {height} pixels of its box")
        return _Mask(runs, left, top, width, height)
    raise ValueError(f"a {element.tag[:30]} is no mask; draw a mask, a polygon or a box, or remove it")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not is_number(value):
        raise ValueError(f"{text[:30]!r} is no number")
    return value


def _integer(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,12}\s*", text):
        raise ValueError(f"{text[:30]!r} is no whole number")
    return int(text)


def _whole(where: str, element: Element, name: str) -> int:
    text = element.get(name, "")
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise FormatError(f"{where}: its {name} is {text[:30]!r}; export it again")
    return int(text)


def _stripped(text: str | None) -> str:
    return " ".join((text or "").split())


@contextmanager
def _opened(path: Path) -> Iterator[IO[Any]]:
    try:
        if path.suffix.lower() != ".zip":
            check_bytes(path, path.stat().st_size)
            with path.open("rb") as file:
                yield file
            return
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if PurePosixPath(entry.filename).name == ANNOTATIONS]
            if len(found) != 1:
                raise FormatError(f"{path}: holds {len(found)} files called {ANNOTATIONS}; give the export of one task")
            check_bytes(f"{path}: its {ANNOTATIONS}", found[0].file_size)
            with archive.open(found[0]) as file:
                yield file
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise FormatError(f"{path}: no zip that can be read ({str(error)[:80]}); export it again") from None

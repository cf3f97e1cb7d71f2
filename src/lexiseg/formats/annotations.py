"""Masks as annotation tools keep them, read from their files: polygons, boxes and run lengths, each with its label.

Nothing of the size of a photo is made before the photo is there to compare sizes with. What is wrong is told in one
line that names the file, the entry and the remedy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol, TypeGuard

import numpy as np
from pycocotools import mask as rle_tools

from lexiseg.formats.run_lengths import decode_rle
from lexiseg.types import Size

MAX_FILE_BYTES = 2 * 2**30
"""Of a JSON or XML file. COCO's own, of 118 287 photos, has some 450 MB."""
MAX_POINTS = 100_000
"""Of a polygon."""
MAX_NUMBER = 1e12
"""Of a coordinate or an area: far beyond any photo."""


class FormatError(ValueError):
    """A file of another tool that cannot be used: one line with the file, the entry, what is wrong, what to do."""


class Shape(Protocol):
    """What covers some pixels of a photo."""

    def draw(self, size_hw: Size) -> np.ndarray:
        """bool [H, W]; raises ValueError where it does not fit such a photo."""


@dataclass(frozen=True, eq=False)
class Polygons:
    """All that lies in one polygon or more, as pycocotools fills them."""

    points: tuple[np.ndarray, ...]
    """Each float [N, 2], (x, y) in pixels, (0, 0) the upper left corner of the photo."""

    def draw(self, size_hw: Size) -> np.ndarray:
        height, width = size_hw
        for points in self.points:
            if (points < [-width, -height]).any() or (points > [2 * width, 2 * height]).any():
                raise ValueError(
                    f"its polygon lies far outside of the {width} x {height} pixels of the photo; draw it on this one"
                )
        each = rle_tools.frPyObjects([points.ravel().tolist() for points in self.points], height, width)
        return decode_rle(rle_tools.merge(each)["counts"].decode("ascii"), size_hw)


@dataclass(frozen=True, eq=False)
class RunLengths:
    """COCO's run lengths."""

    counts: str | list[int]
    size_hw: Size

    def draw(self, size_hw: Size) -> np.ndarray:
        check_size(self.size_hw, size_hw)
        return decode_rle(self.counts, size_hw)


@dataclass(frozen=True, eq=False)
class AnnotatedMask:
    """One shape that somebody drew."""

    where: str
    """For messages: the file and the entry."""
    label: str
    shape: Shape
    is_crowd: bool = False

    def draw(self, size_hw: Size) -> np.ndarray:
        """bool [H, W]; raises FormatError."""
        try:
            return self.shape.draw(size_hw)
        except ValueError as error:
            raise FormatError(f"{self.where}: {error}") from None


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo as a file tells of it."""

    names: tuple[str, ...]
    """What it may be called, with forward slashes; the likeliest first."""
    masks: tuple[AnnotatedMask, ...]
    """Those that lie on top last."""


@dataclass(frozen=True)
class AnnotatedSet:
    """What a file holds."""

    path: Path
    classes: tuple[str, ...]
    photos: tuple[AnnotatedPhoto, ...]
    is_thing: tuple[bool, ...] = field(default=())
    """Of each class, where the file says so."""

    def of(self, name: str) -> AnnotatedPhoto:
        """The photo of that name, compared from its end: "a.jpg" finds "photos/a.jpg", unless there are two."""
        asked = PurePosixPath(name.replace("\\", "/")).parts
        best, found = 0, []
        for photo in self.photos:
            alike = max(_alike(asked, PurePosixPath(own).parts) for own in photo.names)
            if alike > best:
                best, found = alike, [photo]
            elif alike == best and alike:
                found.append(photo)
        if len(found) != 1:
            raise FormatError(
                f"{self.path}: is about {len(self.photos)} photos, {len(found)} of them called {asked[-1]}; call the "
                "photo as the file does"
            )
        return found[0]


def _alike(some: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two paths share at their ends."""
    for number, (mine, yours) in enumerate(zip(reversed(some), reversed(other), strict=False)):
        if mine != yours:
            return number
    return min(len(some), len(other))


def read_polygon(points: Any) -> np.ndarray:
    """Pairs of numbers -> float [N, 2]; raises ValueError."""
    if not isinstance(points, list) or not 3 <= len(points) <= MAX_POINTS:
        raise ValueError(f"its polygon needs 3 to {MAX_POINTS} points")
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and all(map(is_number, pair)) for pair in points):
        raise ValueError("its polygon needs two numbers for each point")
    return np.array(points, float)


def box_polygon(corner: np.ndarray, sides: np.ndarray, degrees: float, center: bool) -> np.ndarray:
    """A box turned clockwise about its middle, or about its upper left corner -> float [4, 2].

    corner, sides: [2], (x, y) and (width, height).
    """
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * sides
    pivot = sides / 2 if center else np.zeros(2)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned: np.ndarray = (corners - pivot) @ np.array([[cos, sin], [-sin, cos]]) + pivot + corner
    return turned


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it may be a coordinate or an area."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def is_id(value: object) -> bool:
    """Whether entries of JSON may be told apart by it."""
    return type(value) in (int, float, str)


def check_size(told_hw: Size, size_hw: Size) -> None:
    """A shape that is told for one size of photo, on a photo of another: raises ValueError."""
    if told_hw != size_hw:
        raise ValueError(
            f"is of a photo of {told_hw[1]} x {told_hw[0]} pixels, the upright photo has {size_hw[1]} x {size_hw[0]}; "
            "annotate the photo as it is here"
        )


def check_bytes(what: object, size: int) -> None:
    """Raises FormatError where a file is larger than is read."""
    if size > MAX_FILE_BYTES:
        raise FormatError(f"{what}: larger than {MAX_FILE_BYTES // 2**30} GB; split it")


def read_json_file(path: Path) -> Any:
    """Raises FormatError."""
    try:
        check_bytes(path, path.stat().st_size)
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # of text, of JSON, of numbers with thousands of digits
        raise FormatError(f"{path}: not valid JSON ({str(error)[:80]}); write it again") from None


def is_inside(name: object) -> bool:
    """Whether a file name stays below the folder that it is looked for in."""
    if not isinstance(name, str) or "\0" in name:
        return False
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and not name.startswith(("/", "\\")) and ".." not in parts and not PureWindowsPath(name).drive

"""What a photo was found to show, without its pixels: the same for every form it may be written in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lexiseg.formats.run_lengths import decode_rle
from lexiseg.types import Size


@dataclass(frozen=True)
class SegmentRecord:
    """One region and its class."""

    id: int
    """Its value in the label map of the photo."""
    label: str
    label_index: int
    """Into the vocabulary."""
    score: float
    area: int
    """Pixels."""
    box_xyxy: tuple[int, int, int, int]
    """Right and bottom are just outside."""
    is_thing: bool
    counts: str
    """COCO's compressed run lengths."""

    @property
    def box_xywh(self) -> list[int]:
        """As COCO writes boxes."""
        left, top, right, bottom = self.box_xyxy
        return [left, top, right - left, bottom - top]


@dataclass(frozen=True)
class PhotoRecord:
    """One photo and its segments."""

    photo: str
    """Its name: a relative path with forward slashes, where there are many."""
    height: int
    width: int
    task: str
    model: str
    segments: tuple[SegmentRecord, ...]

    @property
    def size_hw(self) -> Size:
        return self.height, self.width

    def mask(self, segment: SegmentRecord) -> np.ndarray:
        """bool [H, W]."""
        return decode_rle(segment.counts, self.size_hw)

    def to_json(self) -> dict[str, Any]:
        """Ready for JSON; `from_json` gives the same record again."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> PhotoRecord:
        """Other keys than its own are left alone."""
        segments = tuple(
            SegmentRecord(**{**entry, "box_xyxy": tuple(entry["box_xyxy"])})  # JSON has lists alone
            for entry in told["segments"]
        )
        return cls(told["photo"], told["height"], told["width"], told["task"], told["model"], segments)


Records = Iterable[PhotoRecord]
"""To be gone through as often as one likes: a list, or what reads its records anew each time."""


def plain_text(name: str) -> str:
    """A name as text that every file can hold: U+FFFD for bytes that are no UTF-8 and for control characters."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)

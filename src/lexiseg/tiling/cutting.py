"""How a photo is cut into tiles of several sizes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from lexiseg.types import Size

SMALLEST_TILE = 64

# A size of tiles of which fewer than one and a half reach across the photo shows little that the whole does not.
_LARGEST_SHARE = 1.5

Span = tuple[int, int]
"""Pixels along one axis: first, and one past the last."""


@dataclass(frozen=True)
class Tiling:
    """How a photo is cut. Tiles of one size are equally large, so that a model sees all of them at one scale."""

    side: int = 1024
    """Longest side of the smallest tiles, in pixels of the photo. Photos that are not larger are not cut."""
    overlap: int = 128
    """Pixels that neighbours share, at most a third of the side: then nothing lies in more than two tiles of a row."""
    context: float = 0.8
    """0..1: how much of what tiles say about things larger than themselves is left to coarser looks; 0 for no such."""

    def __post_init__(self) -> None:
        if self.side < SMALLEST_TILE:
            raise ValueError(f"tiles of {self.side} pixels are too small to see anything: use {SMALLEST_TILE} or more")
        if not 0 <= self.overlap <= self.side // 3:
            raise ValueError(
                f"an overlap of {self.overlap} pixels does not fit tiles of {self.side}: use 0 to {self.side // 3}"
            )
        if not 0 <= self.context <= 1:
            raise ValueError(f"a context of {self.context} is no share: use 0 to 1")

    def cuts(self, size_hw: Size) -> bool:
        """Whether a photo of this size is larger than a tile."""
        return max(size_hw) > self.side

    def coarser(self, size_hw: Size) -> list[Tiling]:
        """The larger tiles a photo is looked at in, the largest first: that is the whole photo. Empty without context.

        Each has twice the side of the next, but for the whole.
        """
        if not self.context or not self.cuts(size_hw):
            return []
        longest, larger = max(size_hw), [self]
        while larger[0].side * 2 * _LARGEST_SHARE <= longest:
            larger.insert(0, replace(self, side=larger[0].side * 2, overlap=larger[0].overlap * 2))
        return [replace(self, side=longest, overlap=0), *larger[:-1]]

    def along(self, length: int) -> list[Span]:
        """The fewest tiles along an axis; neighbours share `overlap` pixels exactly."""
        count = max(1, -(-(length - self.overlap) // (self.side - self.overlap)))
        starts = [(length - self.overlap) * number // count for number in range(count)] + [length - self.overlap]
        if count == 1:
            return [(0, length)]
        return [(start, following + self.overlap) for start, following in itertools.pairwise(starts)]

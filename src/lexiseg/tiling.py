"""Photos larger than a model can take in, in overlapping tiles: what the tiles say is put together without seams.

Semantic: the class scores of the pixels are mixed in the overlaps, each tile's weight falling to zero at its border.
What has been seen is kept as masks on their small grids, of the tiles of one row and there of the overlaps alone, so
that memory grows neither with the vocabulary nor with the height of the photo; only the labels are as large as it is.

Panoptic: every tile has the pixels up to the middle of its overlaps, and segments that two tiles show in their overlap
become one: things whose shapes agree there, stuff by its class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lexiseg.geometry import neighbours
from lexiseg.postprocess import SemanticView, semantic_map
from lexiseg.types import PanopticMap, Segment, SemanticMap, SigmoidAt, Size

# Floats held at once for the masks, or for the class scores, of a block of pixels.
BLOCK_FLOATS = 1_000_000

SMALLEST_TILE = 64

JOIN_IOU = 0.5
"""Intersection over union that two tiles' views of a thing need in their overlap to be taken for one thing."""

Span = tuple[int, int]
"""Pixels along one axis: first, and one past the last."""


@dataclass(frozen=True)
class Tiling:
    """How a photo is cut. Tiles of one photo are equally large, so that a model sees all of them at one scale."""

    side: int = 1024
    """Longest side of a tile, in pixels of the photo. Photos that are not larger are not cut."""
    overlap: int = 128
    """Pixels that neighbours share, at most a third of the side: then nothing lies in more than two tiles of a row."""
    context: float = 0.5
    """0..1: weight of a look at the whole photo, made small, against the tiles; 0 for none. For the semantic task."""

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

    def along(self, length: int) -> list[Span]:
        """The fewest tiles along an axis; neighbours share `overlap` pixels exactly."""
        count = max(1, -(-(length - self.overlap) // (self.side - self.overlap)))
        starts = [(length - self.overlap) * number // count for number in range(count)] + [length - self.overlap]
        if count == 1:
            return [(0, length)]
        return [(start, following + self.overlap) for start, following in itertools.pairwise(starts)]


# ---------------------------------------------------------------------------------------------------------- semantic


def semantic(
    size_hw: Size,
    tiling: Tiling,
    look: Callable[[Span, Span], SemanticView],
    sigmoid_at: SigmoidAt = "canvas",
    whole: SemanticView | None = None,
) -> SemanticMap:
    """`postprocess.semantic` of a photo in tiles: the class with the best mixed score at every pixel.

    look(rows, columns): what a model sees in that part of the photo; the output of its frame is the part. Labels [H, W]
    are on the CPU, in the narrowest of uint8, int16 and int32. whole: the same of the whole photo. It knows what a tile
    cannot see, a tile has the detail: `tiling.context` is the share of the former in the mixture.
    """
    rows, columns = tiling.along(size_hw[0]), tiling.along(size_hw[1])
    canvas: _Labels | None = None
    # Its classes are summed up on the grid of its masks: a pixel of that is many of the photo, however it is enlarged.
    around: _Tile | None = None
    if whole is not None:
        around = _Tile.seen(whole, "grid", (0, size_hw[0]), (0, size_hw[1]), tiling.overlap, size_hw)
    above: list[_Tile] = []
    for top in rows:
        current: list[_Tile] = []
        left: _Tile | None = None
        for number, span in enumerate(columns):
            tile = _Tile.seen(look(top, span), sigmoid_at, top, span, tiling.overlap, size_hw)
            canvas = canvas or _Labels.of(size_hw, tile.class_probs)
            # All that no later tile reaches is decided now: what this one shares with earlier ones, and its inside.
            near = [tile, *([left] if left else []), *above[max(0, number - 1) : number + 1]]
            last_row, last_column = top == rows[-1], span == columns[-1]
            bottom = top[1] if last_row else top[1] - tiling.overlap
            right = span[1] if last_column else span[1] - tiling.overlap
            for part in _split(top[0], bottom, tiling.overlap if top[0] else 0):
                for across in _split(span[0], right, tiling.overlap if span[0] else 0):
                    showing = [other for other in near if other.covers(part, across)]
                    canvas.decide(showing, part, across, around, tiling.context)
            left = None if last_column or not tiling.overlap else tile.cut(top, (right, span[1]))
            if not last_row and tiling.overlap:
                current.append(tile.cut((bottom, top[1]), span))
        above = current
    if canvas is None:
        raise AssertionError("there is always a tile")
    return semantic_map(torch.from_numpy(canvas.labels), canvas.areas, canvas.sums.t())


def _split(start: int, stop: int, shared: int) -> list[Span]:
    """What is shared with an earlier tile, and the rest."""
    middle = min(start + shared, stop)
    return [(a, b) for a, b in ((start, middle), (middle, stop)) if a < b]


@dataclass(frozen=True, eq=False)
class _Axis:
    """How one axis of the photo reads one of the masks' grid: output -> picture on the canvas -> grid."""

    to_picture: tuple[Tensor, Tensor, Tensor]
    to_grid: tuple[Tensor, Tensor, Tensor]
    kept: Span
    """Cells of the grid that are there."""

    @classmethod
    def of(cls, grid: int, canvas: int, picture: int, output: int) -> _Axis:
        return cls(neighbours(picture, output), neighbours(grid, canvas), (0, grid))

    def pixels(self, span: Span) -> Span:
        """Pixels of the picture on the canvas that a span of the output is made of."""
        first, second, _ = self.to_picture
        return int(first[span[0]]), int(second[span[1] - 1]) + 1

    def cells(self, span: Span) -> Span:
        """Cells of the grid that a span of the output is made of."""
        start, stop = self.pixels(span)
        first, second, _ = self.to_grid
        return int(first[start]), int(second[stop - 1]) + 1


@dataclass(frozen=True, eq=False)
class _Tile:
    """What a model saw in a tile, or as much of it as a part of the tile is made of."""

    maps: Tensor
    """[Q, h, w] mask logits, or [K, h, w] class scores where `summed`."""
    class_probs: Tensor
    """[Q, K]."""
    summed: bool
    sigmoid_at: SigmoidAt
    axes: tuple[_Axis, _Axis]
    rows: Span
    """Of the photo: the whole tile's."""
    columns: Span
    shown: tuple[Span, Span]
    """The part of the photo that is still there, rows and columns."""
    overlap: int
    photo_hw: Size

    @classmethod
    def seen(
        cls, view: SemanticView, sigmoid_at: SigmoidAt, rows: Span, columns: Span, overlap: int, photo_hw: Size
    ) -> _Tile:
        frame, maps = view.frame, view.mask_logits
        axes = [
            _Axis.of(maps.shape[1 + axis], frame.canvas_hw[axis], frame.picture_hw[axis], frame.output_hw[axis])
            for axis in (0, 1)
        ]
        # Where all that follows the sigmoid is linear the classes may be summed up first, on the small grid.
        summed = sigmoid_at == "grid"
        if summed:
            maps = torch.einsum("qk,qhw->khw", view.class_probs, maps.sigmoid())
        both = (axes[0], axes[1])
        return cls(maps, view.class_probs, summed, sigmoid_at, both, rows, columns, (rows, columns), overlap, photo_hw)

    def covers(self, rows: Span, columns: Span) -> bool:
        """Whether a part of the photo is wholly in what is still there."""
        return all(
            shown[0] <= span[0] and span[1] <= shown[1] for shown, span in zip(self.shown, (rows, columns), strict=True)
        )

    def cut(self, rows: Span, columns: Span) -> _Tile:
        """The same with only as much of the masks as a part of the photo is made of, in memory of its own."""
        vertical, horizontal = self.axes
        down = vertical.cells((rows[0] - self.rows[0], rows[1] - self.rows[0]))
        across = horizontal.cells((columns[0] - self.columns[0], columns[1] - self.columns[0]))
        (y, _), (x, _) = vertical.kept, horizontal.kept
        return _Tile(
            self.maps[:, down[0] - y : down[1] - y, across[0] - x : across[1] - x].clone(),
            self.class_probs,
            self.summed,
            self.sigmoid_at,
            (
                _Axis(vertical.to_picture, vertical.to_grid, down),
                _Axis(horizontal.to_picture, horizontal.to_grid, across),
            ),
            self.rows,
            self.columns,
            (rows, columns),
            self.overlap,
            self.photo_hw,
        )

    def scores(self, rows: Span, columns: Span) -> Tensor:
        """Class scores [K, n, m] of a part of the photo: what `postprocess.semantic_scores` gives, up to rounding."""
        spans = (
            (rows[0] - self.rows[0], rows[1] - self.rows[0]),
            (columns[0] - self.columns[0], columns[1] - self.columns[0]),
        )
        x = self.maps
        pixels = [axis.pixels(span) for axis, span in zip(self.axes, spans, strict=True)]
        for dimension, (axis, span) in enumerate(zip(self.axes, pixels, strict=True), start=1):
            x = _read(x, dimension, axis.to_grid, span, axis.kept[0])
        if self.sigmoid_at == "canvas":
            x = x.sigmoid()
        for dimension, (axis, span, seen) in enumerate(zip(self.axes, spans, pixels, strict=True), start=1):
            x = _read(x, dimension, axis.to_picture, span, seen[0])
        if self.sigmoid_at == "output":
            x = x.sigmoid()
        return x if self.summed else torch.einsum("qk,qhw->khw", self.class_probs, x)

    def weight(self, rows: Span, columns: Span) -> Tensor:
        """[n, m] in 0..1: falls over the overlaps towards the border; the weights of all tiles are one together."""
        parts = (
            _ramp(span, own, self.overlap, length)
            for span, own, length in zip((rows, columns), (self.rows, self.columns), self.photo_hw, strict=True)
        )
        down, across = (part.to(self.maps) for part in parts)
        return down[:, None] * across


def _read(x: Tensor, dimension: int, plan: tuple[Tensor, Tensor, Tensor], span: Span, offset: int) -> Tensor:
    """Bilinear along one dimension of x [N, h, w]; offset: which place of the whole axis x begins with."""
    first, second, weight = (part[span[0] : span[1]].to(x.device) for part in plan)
    weight = weight.to(x)[:, None] if dimension == 1 else weight.to(x)
    return torch.lerp(x.index_select(dimension, first - offset), x.index_select(dimension, second - offset), weight)


def _ramp(span: Span, own: Span, overlap: int, length: int) -> Tensor:
    """Weights of the pixels `span` in a tile that has the pixels `own` of an axis."""
    at = torch.arange(*span, dtype=torch.float32) + 0.5
    weight = torch.ones_like(at)
    if own[0] > 0 and overlap:
        weight = weight.minimum((at - own[0]) / overlap)
    if own[1] < length and overlap:
        weight = weight.minimum((own[1] - at) / overlap)
    return weight


@dataclass(eq=False)
class _Labels:
    """The labels of the photo as they are decided, and what the scores of the classes sum up to."""

    labels: np.ndarray
    areas: Tensor
    """[K]."""
    sums: Tensor
    """[K, class of the segment]."""

    @classmethod
    def of(cls, size_hw: Size, class_probs: Tensor) -> _Labels:
        count = class_probs.shape[1]
        # One number stays free: some count the classes from one.
        kind = next(kind for kind in (np.uint8, np.int16, np.int32) if count < np.iinfo(kind).max)
        areas = torch.zeros(count, dtype=torch.long, device=class_probs.device)
        return cls(np.zeros(size_hw, kind), areas, class_probs.new_zeros(count, count, dtype=torch.float32))

    def decide(self, tiles: Sequence[_Tile], rows: Span, columns: Span, around: _Tile | None, context: float) -> None:
        """tiles: all that show this part of the photo."""
        count = len(self.areas)
        for part, across in _blocks(rows, columns, max(count, *(len(tile.maps) for tile in tiles))):
            total = tiles[0].scores(part, across)
            if len(tiles) > 1:
                total = total * tiles[0].weight(part, across)
                for tile in tiles[1:]:
                    total += tile.scores(part, across) * tile.weight(part, across)
            if around is not None:
                total = torch.lerp(total, around.scores(part, across), context)
            best = total.argmax(0)
            self.labels[part[0] : part[1], across[0] : across[1]] = best.cpu().numpy()
            self.sums.index_add_(1, best.flatten(), total.flatten(1).float())
            self.areas += torch.bincount(best.flatten(), minlength=count)


def _blocks(rows: Span, columns: Span, deep: int) -> Iterator[tuple[Span, Span]]:
    """A part of the photo in pieces of which `deep` values per pixel are not too many."""
    width = max(1, min(columns[1] - columns[0], BLOCK_FLOATS // deep))
    height = max(1, BLOCK_FLOATS // (deep * width))
    for top in range(rows[0], rows[1], height):
        for left in range(columns[0], columns[1], width):
            yield (top, min(top + height, rows[1])), (left, min(left + width, columns[1]))


# ---------------------------------------------------------------------------------------------------------- panoptic


def panoptic(
    size_hw: Size, tiling: Tiling, look: Callable[[Span, Span], PanopticMap], is_thing: Sequence[bool]
) -> PanopticMap:
    """The segments of a photo in tiles; those that go on in the next tile are one.

    look(rows, columns): the segments of that part of the photo. A joined segment's scores are the means of its parts',
    weighted by area. In the overlaps, where a tile finds nothing its neighbour's segments stand. Ids are int16 [H, W]
    on the CPU, int32 where there are more segments than that has numbers.
    """
    rows, columns, overlap = tiling.along(size_hw[0]), tiling.along(size_hw[1]), tiling.overlap
    joined = _Joined(is_thing)
    ids = np.zeros(size_hw, np.int16)
    above = np.zeros((overlap, size_hw[1]), np.int32)  # what the row above says about the rows it shares with this one
    for top in rows:
        below = np.zeros_like(above)
        beside: np.ndarray | None = None
        for span in columns:
            found = look(top, span)
            own = joined.add(found)
            if own.max(initial=0) > np.iinfo(np.int16).max - 1 and ids.dtype == np.int16:
                ids = ids.astype(np.int32)  # one more than the ids are needed where classes are counted from zero
            if top[0] and overlap:
                joined.join(above[:, span[0] : span[1]], own[:overlap])
            if beside is not None and overlap:
                joined.join(beside, own[:, :overlap])
            if top != rows[-1]:
                # In the corners two tiles of this row speak; the later one, which the next comparison is with too.
                below[:, span[0] : span[1]] = own[len(own) - overlap :]
            beside = own[:, own.shape[1] - overlap :].copy()
            place = ids[top[0] : top[1], span[0] : span[1]]
            # Up to the middle of an overlap the earlier tile has the word, unless it has nothing to say.
            later = np.ones(own.shape, bool)
            later[: overlap // 2 if top[0] else 0] = False
            later[:, : overlap // 2 if span[0] else 0] = False
            chosen = ((own > 0) & later) | (place == 0)
            place[chosen] = own[chosen]
        above = below
    return joined.renumbered(ids)


class _Joined:
    """Segments of all tiles, and which of them are one."""

    def __init__(self, is_thing: Sequence[bool]) -> None:
        self._is_thing = is_thing
        self._segments: list[Segment] = []
        self._same_as: list[int] = []
        self._stuff: dict[int, int] = {}

    def add(self, found: PanopticMap) -> np.ndarray:
        """The ids of a tile, int32 [h, w], as numbers that no other tile has."""
        own = found.ids.cpu().numpy().astype(np.int32)
        own[own > 0] += len(self._segments)
        for segment in found.segments:
            number = len(self._segments)
            self._segments.append(segment)
            k = segment.class_index
            self._same_as.append(number if self._is_thing[k] else self._stuff.setdefault(k, number))
        return own

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """What two tiles say about the same pixels: things of one class whose shapes agree are one."""
        of_one, of_other = np.bincount(one.ravel()), np.bincount(other.ravel())
        both = (one > 0) & (other > 0)
        pairs, shared = np.unique(np.stack([one[both], other[both]]), axis=1, return_counts=True)
        for a, b, count in zip(*pairs.tolist(), shared.tolist(), strict=True):
            same_class = self._segments[a - 1].class_index == self._segments[b - 1].class_index
            if same_class and count > JOIN_IOU * (of_one[a] + of_other[b] - count):
                first, second = sorted((self._root(a - 1), self._root(b - 1)))
                self._same_as[second] = first

    def _root(self, number: int) -> int:
        while self._same_as[number] != number:
            number = self._same_as[number]
        return number

    def renumbered(self, ids: np.ndarray) -> PanopticMap:
        """ids: numbers of all tiles' segments, replaced in place."""
        count = len(self._segments)
        areas = np.zeros(count + 1, np.int64)
        for row in ids:
            areas += np.bincount(row, minlength=count + 1)
        members: dict[int, list[int]] = {}
        for number in range(count):
            if areas[number + 1]:
                members.setdefault(self._root(number), []).append(number)
        numbers = np.zeros(count + 1, ids.dtype)
        segments = []
        for new, parts in enumerate(members.values(), start=1):
            numbers[[part + 1 for part in parts]] = new
            weights = torch.tensor([int(areas[part + 1]) for part in parts], dtype=torch.float64)
            scores = torch.stack([self._segments[part].class_scores.cpu().double() for part in parts])
            own = torch.tensor([self._segments[part].score for part in parts], dtype=torch.float64)
            share = weights / weights.sum()
            class_index = self._segments[parts[0]].class_index
            segments.append(Segment(class_index, float(share @ own), int(weights.sum()), (share @ scores).float()))
        for row in ids:
            row[:] = numbers[row]
        return PanopticMap(torch.from_numpy(ids), tuple(segments))

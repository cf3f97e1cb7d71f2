"""Panoptic segments of a photo in tiles: one thing through any number of tiles is one, and no border is a tile's.

Which class a pixel has, or void, is told by the mixed scores of all looks (`mixing`) and never by one tile's masks.
Stuff is that. For things there is, beside it, a small map of who is where, made from the largest tiles to the smallest:
what a coarse look sees whole stays whole, smaller tiles add what it could not see, and things are one that neighbours
show in their overlap with one shape, or that meet where nothing ends but a tile. They only share out the pixels of
their class: connected ones that no thing lies on go to the nearest of the things beside them, however far it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from lexiseg.postprocess import SemanticView
from lexiseg.tiling.cutting import Span, Tiling
from lexiseg.tiling.mixing import semantic
from lexiseg.types import PanopticMap, Segment, SemanticMap, SigmoidAt, Size

JOIN_IOU = 0.5
"""Intersection over union that two tiles' views of a thing need in their overlap to be taken for one thing."""

JOIN_CONTACT = 0.5
"""Or the part of a border of tiles along which they meet, as a share of what the smaller of them has of that border."""

INSIDE = 0.5
"""Share of a thing that lies in a coarser look's thing of its class when it is a part of that, or that itself."""

KEPT = 0.5
"""Share of a thing that must have its class in the mixed scores; else it was a look's mistake."""

# Pixels of the photo, a side, of a cell of the map of things in the smallest tiles.
_CELL = 2
# A thing of this part of a tile's side, squared, is seen whole there; smaller ones may be several that touch.
_SEEN_WHOLE = 1 / 16
# Part of a tile's side by which a mask may end before the tile: about a pixel of it.
_SHORT = 1 / 64
# Pixels that are not connected with any thing of their class are given to one as near as this part of a tile's side.
_NEAR = 1 / 8
# Of a mask that is on everywhere.
_SURE_LOGIT = 10.0
# Pixels that are named at once.
_BAND_PIXELS = 1_000_000
# Near things are looked for on a map of cells so many times larger.
_NEAR_STRIDE = 4


@dataclass(frozen=True)
class PanopticView:
    """What a look says: about the classes of the pixels, and which segments there are."""

    scores: SemanticView
    """Its last class is void: see `with_void`."""
    segments: PanopticMap
    """Of the same picture on any grid."""


def with_void(scores: SemanticView, void_prob: Tensor, threshold: float) -> SemanticView:
    """The view of the masks that `postprocess.panoptic` keeps, with one class more, void, and one mask more, its own:
    where none of them is on.

    void_prob [Q]; kept are masks whose best class beats void and the threshold.
    """
    best = scores.class_probs.amax(1)
    kept = (best > void_prob) & (best > threshold)
    masks, probs = scores.mask_logits[kept], functional.pad(scores.class_probs[kept], (0, 1))  # [n, K + 1]
    nothing = probs.new_zeros(1, probs.shape[1])
    nothing[0, -1] = 1
    if len(masks):
        off = -masks.amax(0, keepdim=True)
    else:
        off = masks.new_full((1, *masks.shape[1:]), _SURE_LOGIT)
    return SemanticView(torch.cat([masks, off]), torch.cat([probs, nothing]), scores.frame)


def panoptic(
    size_hw: Size,
    tiling: Tiling,
    look: Callable[[Span, Span], PanopticView],
    is_thing: Sequence[bool],
    sigmoid_at: SigmoidAt = "output",
) -> PanopticMap:
    """The segments of a photo in tiles.

    look(rows, columns): what a model sees in that part of the photo, as for `semantic`. A thing's scores are the means
    of its parts', weighted by area; those of stuff, and of things that no look shows in one piece, the mean of all
    mixed scores of their class. Pixels are without a segment where void is (`mixing`), and in small spots where the
    scores tell a class of things but no look a thing near. Ids [H, W] are on the CPU, in the narrowest of uint8, int16
    and int32.
    """
    things = _Things(is_thing)
    levels = [*tiling.coarser(size_hw), tiling]
    plan = [
        (rows, columns, level)
        for level in range(len(levels))
        for rows in levels[level].along(size_hw[0])
        for columns in levels[level].along(size_hw[1])
    ]
    coming = iter(plan)
    reached = -1

    def scores(rows: Span, columns: Span) -> SemanticView:
        nonlocal reached
        *expected, level = next(coming)
        if expected != [rows, columns]:
            raise AssertionError(f"looks come in the order of the plan: {expected}, not {[rows, columns]}")
        if level != reached:
            things.begin(size_hw, levels[level], _CELL * 2 ** (len(levels) - 1 - level))
            reached = level
        seen = look(rows, columns)
        things.add(seen.segments, rows, columns)
        return seen.scores

    labels = semantic(size_hw, tiling, scores, sigmoid_at, void=True)
    things.finish()
    return things.assigned(labels)


@dataclass(frozen=True, eq=False)
class _Shown:
    """What a tile says on the cells whose centres it has."""

    rows: Span
    """Cells."""
    columns: Span
    numbers: np.ndarray
    """int32 [n, m]: a thing's number + 1, 0 for none."""

    def shared(self, other: _Shown) -> tuple[np.ndarray, np.ndarray]:
        """What both say about the cells that both have."""
        rows = (max(self.rows[0], other.rows[0]), min(self.rows[1], other.rows[1]))
        columns = (max(self.columns[0], other.columns[0]), min(self.columns[1], other.columns[1]))
        own, its = (
            shown.numbers[
                rows[0] - shown.rows[0] : max(rows) - shown.rows[0],
                columns[0] - shown.columns[0] : max(columns) - shown.columns[0],
            ]
            for shown in (self, other)
        )
        return own, its


class _Things:
    """The things of all looks, which of them are one, and where they are."""

    def __init__(self, is_thing: Sequence[bool]) -> None:
        self._is_thing = is_thing
        self._segments: list[Segment] = []
        self._same_as: list[int] = []
        self._seen_whole: list[bool] = []
        self._size_hw: Size = (0, 0)
        self._tiling = Tiling()
        self._cell = 0
        self._map = np.zeros((0, 0), np.int32)
        self._coarser: np.ndarray | None = None
        self._above: list[_Shown] = []
        self._current: list[_Shown] = []
        # First cells after where a tile of this or a larger size ends, begins, or gives the word to the next: down the
        # photo and across.
        self._borders: tuple[set[int], set[int]] = (set(), set())

    def begin(self, size_hw: Size, tiling: Tiling, cell: int) -> None:
        """Tiles of the next size: cells of the map have half the side of those before."""
        self.finish()
        self._coarser = self._map if self._map.size else None
        self._map = np.zeros((-(-size_hw[0] // cell), -(-size_hw[1] // cell)), np.int32)
        self._size_hw, self._tiling, self._cell = size_hw, tiling, cell
        self._above, self._current = [], []
        down, across = self._borders
        self._borders = ({2 * line for line in down}, {2 * line for line in across})

    def add(self, found: PanopticMap, rows: Span, columns: Span) -> None:
        """The segments of a tile; tiles come row by row."""
        if self._current and self._current[-1].columns[1] * self._cell > columns[0] + self._tiling.overlap + self._cell:
            self._above, self._current = self._current, []
        shown = self._numbered(found, rows, columns)
        for other in (*self._above, *self._current[-1:]):
            self._join(*other.shared(shown))
        self._lay(shown, rows, columns)
        self._current.append(shown)

    def _numbered(self, found: PanopticMap, rows: Span, columns: Span) -> _Shown:
        """The things of a tile by numbers that no other tile has, on the cells of the map."""
        ids = found.ids.cpu().numpy()
        spans, places = [], []
        for own, length in zip((rows, columns), ids.shape, strict=True):
            first, last = ((side + self._cell // 2) // self._cell for side in own)
            last = max(last, first + 1)
            centres = (np.arange(first, last) + 0.5) * self._cell - own[0]
            spans.append((first, last))
            places.append(np.clip(centres * (length / (own[1] - own[0])), 0, length - 1).astype(np.intp))
        ids = ids[places[0][:, None], places[1]]
        table = np.zeros(len(found.segments) + 1, np.int32)
        least = (self._tiling.side * _SEEN_WHOLE / self._cell) ** 2
        areas = np.bincount(ids.ravel(), minlength=len(table))
        for number, segment in enumerate(found.segments, start=1):
            if self._is_thing[segment.class_index]:
                self._segments.append(segment)
                self._same_as.append(len(self._same_as))
                self._seen_whole.append(bool(areas[number] >= least))
                table[number] = len(self._segments)
        # Cells beyond the last of the map are of a border narrower than half a cell.
        spans = [(a, min(b, length)) for (a, b), length in zip(spans, self._map.shape, strict=True)]
        numbers = table[ids][: spans[0][1] - spans[0][0], : spans[1][1] - spans[1][0]]
        return _Shown(spans[0], spans[1], numbers)

    def _join(self, one: np.ndarray, other: np.ndarray) -> None:
        """What two tiles say about the same cells: things of one class whose shapes agree are one."""
        areas, shared = _meetings([(one, other)])
        for (a, b), count in shared.items():
            same_class = self._segments[a - 1].class_index == self._segments[b - 1].class_index
            if same_class and count > JOIN_IOU * (areas[0][a] + areas[1][b] - count):
                self._unite(a - 1, b - 1)

    def _join_along_borders(self) -> None:
        """Things that meet along a border of tiles are one: nothing but a tile ends there. Masks are coarse, and may
        end a little before their tile does."""
        roots = self._roots()
        reach = max(1, round(self._tiling.side * _SHORT / max(1, self._cell)))  # no cells before the first tile
        for lines, cells in zip(self._borders, (self._map, self._map.T), strict=True):
            for line in lines:
                if not 0 < line < len(cells):
                    continue
                sides = _first(cells[max(0, line - reach) : line][::-1]), _first(cells[line : line + reach])
                lengths, shared = _meetings([(roots[sides[0]], roots[sides[1]])])
                for (a, b), count in shared.items():
                    same_class = self._segments[a - 1].class_index == self._segments[b - 1].class_index
                    if same_class and count >= JOIN_CONTACT * min(lengths[0][a], lengths[1][b]):
                        self._unite(a - 1, b - 1)

    def _lay(self, shown: _Shown, rows: Span, columns: Span) -> None:
        """Up to the middle of an overlap the earlier tile has the word, unless it has nothing to say."""
        half = self._tiling.overlap // 2 // self._cell
        for lines, (first, last) in zip(self._borders, (shown.rows, shown.columns), strict=True):
            lines.update((first, first + half, last))
        later = np.ones(shown.numbers.shape, bool)
        later[: half if rows[0] else 0] = False
        later[:, : half if columns[0] else 0] = False
        place = self._map[slice(*shown.rows), slice(*shown.columns)]
        chosen = ((shown.numbers > 0) & later) | (place == 0)
        place[chosen] = shown.numbers[chosen]

    def finish(self) -> None:
        """After the last tile of a size: its things and those of the coarser tiles are one map."""
        self._join_along_borders()
        if self._coarser is None:
            return
        coarser, self._coarser = self._coarser, None
        roots = self._roots()

        def bands() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            """Of this map, and of the coarser one on its cells."""
            step = 2 * max(1, _BAND_PIXELS // (2 * self._map.shape[1]))
            for top in range(0, len(self._map), step):
                own = self._map[top : top + step]
                around = coarser[top // 2 : (top + step) // 2].repeat(2, 0).repeat(2, 1)
                yield own, around[: own.shape[0], : own.shape[1]]

        areas, shared = _meetings((roots[own], roots[around]) for own, around in bands())
        told = np.zeros(len(roots), np.int64)  # cells of coarser things in which smaller tiles see things of their own
        for (fine, coarse), count in shared.items():
            if self._segments[fine - 1].class_index != self._segments[coarse - 1].class_index:
                continue
            alike = count > JOIN_IOU * (areas[0][fine] + areas[1][coarse] - count)
            if alike or (self._seen_whole[coarse - 1] and count > INSIDE * areas[0][fine]):
                self._unite(fine - 1, coarse - 1)
            else:
                told[coarse] += count
        stays = np.array([told[coarse] <= INSIDE * areas[1][coarse] for coarse in range(len(roots))])
        for own, around in bands():
            free = (own == 0) & stays[roots[around]]
            own[free] = around[free]
        self._join_along_borders()

    def _unite(self, one: int, other: int) -> None:
        first, second = sorted((self._root(one), self._root(other)))
        self._same_as[second] = first
        self._seen_whole[first] |= self._seen_whole[second]

    def _root(self, number: int) -> int:
        while self._same_as[number] != number:
            number = self._same_as[number]
        return number

    def _roots(self) -> np.ndarray:
        """int32 [n + 1]: number + 1 of a segment -> the same of the first one that is the same thing."""
        return np.array([0, *(self._root(number) + 1 for number in range(len(self._segments)))], np.int32)

    # ------------------------------------------------------------------------------------------------- the outcome

    def assigned(self, found: SemanticMap) -> PanopticMap:
        """Every pixel by its class, of which the last is void, and by what thing is there."""
        labels = found.labels.numpy()
        classes = len(self._is_thing)
        cells = _counts(self._map, len(self._segments) + 1)
        parts = self._confirmed(labels, cells)
        segments = [self._thing(members, cells) for members in parts]
        of_class = {segment.class_index: segment for segment in found.segments if segment.class_index < classes}
        near: dict[int, np.ndarray] = {}
        for k, segment in of_class.items():
            if self._is_thing[k]:
                mine = np.array([False, *(thing.class_index == k for thing in segments)])
                near[k], more = self._owners(labels, k, mine)
                segments += [segment] * more
        things = len(segments)
        class_of = np.array([classes, *(segment.class_index for segment in segments)])
        segments += [segment for k, segment in of_class.items() if not self._is_thing[k]]

        # What a band holds -> ids: things first, then classes, void the last of these.
        numbers = np.arange(things + classes + 2)
        numbers[things + 1 :] = 0
        for number, segment in enumerate(segments[things:], start=things + 1):
            numbers[things + 1 + segment.class_index] = number
        # One more than the ids is needed where classes are counted from zero.
        kind = next(kind for kind in (np.uint8, np.int16, np.int32) if len(segments) + 1 < np.iinfo(kind).max)
        numbers = numbers.astype(kind)
        ids = np.empty(labels.shape, kind)
        areas = np.zeros(len(segments) + 1, np.int64)
        top = 0
        for band in self._bands(labels, class_of, near):
            ids[top : top + len(band)] = numbers[band]
            areas += _counts(ids[top : top + len(band)], len(areas))
            top += len(band)
        measured = (
            Segment(s.class_index, s.score, int(area), s.class_scores[:classes].cpu())
            for s, area in zip(segments, areas[1:], strict=True)
        )
        return PanopticMap(torch.from_numpy(ids), tuple(measured))

    def _confirmed(self, labels: np.ndarray, cells: np.ndarray) -> list[list[int]]:
        """Which segments the things are of whose class the mixed scores confirm; from now on the map holds those.

        cells: of each segment + 1.
        """
        members: dict[int, list[int]] = {}
        for number in range(len(self._segments)):
            if cells[number + 1]:
                members.setdefault(self._root(number), []).append(number)
        thing_of = np.zeros(len(cells), np.int32)  # number + 1 of a segment -> number of the thing it is a part of
        for thing, parts in enumerate(members.values(), start=1):
            thing_of[[part + 1 for part in parts]] = thing
        class_of = np.array([-1, *(self._segments[root].class_index for root in members)])
        at = self._pixels(1)
        sizes, agreed = np.zeros(len(class_of), np.int64), np.zeros(len(class_of), np.int64)
        for row, place in zip(self._map, at[0], strict=True):
            row[:] = thing_of[row]
            sizes += np.bincount(row, minlength=len(sizes))
            agreed += np.bincount(row[class_of[row] == labels[place, at[1]]], minlength=len(sizes))
        kept = agreed >= np.maximum(1, KEPT * sizes)
        kept[0] = False
        numbers = np.where(kept, kept.cumsum(), 0).astype(np.int32)
        for row in self._map:
            row[:] = numbers[row]
        return [parts for thing, parts in enumerate(members.values(), start=1) if kept[thing]]

    def _pixels(self, stride: int) -> list[np.ndarray]:
        """Rows and columns of the photo: the pixels that stand for every stride-th cell."""
        return [
            np.minimum(np.arange(min(stride // 2, cells - 1), cells, stride) * self._cell + self._cell // 2, pixels - 1)
            for cells, pixels in zip(self._map.shape, self._size_hw, strict=True)
        ]

    def _thing(self, parts: Sequence[int], cells: np.ndarray) -> Segment:
        weights = torch.tensor([int(cells[part + 1]) for part in parts], dtype=torch.float64)
        share = weights / weights.sum()
        scores = torch.stack([self._segments[part].class_scores.cpu().double() for part in parts])
        own = torch.tensor([self._segments[part].score for part in parts], dtype=torch.float64)
        return Segment(self._segments[parts[0]].class_index, float(share @ own), 0, (share @ scores).float())

    def _owners(self, labels: np.ndarray, k: int, mine: np.ndarray) -> tuple[np.ndarray, int]:
        """Which thing of class k has a pixel of it that none lies on, on a coarser map; and how many are new.

        mine: of the things so far, from number one on, which are of the class. Connected pixels are shared out among
        the things in them. Where there are none all are of the nearest, if that is near; or a thing of their own, if
        they are many; or of none, 0. So no thing ends where a tile does.
        """
        first = [min(_NEAR_STRIDE // 2, length - 1) for length in self._map.shape]
        small = self._map[first[0] :: _NEAR_STRIDE, first[1] :: _NEAR_STRIDE]
        down, across = self._pixels(_NEAR_STRIDE)
        region = labels[down[:, None], across] == k
        own = mine[small] & region
        patches, count = ndimage.label(region, np.ones((3, 3)))
        sizes = np.bincount(patches.ravel(), minlength=count + 1)
        side = self._tiling.side / (self._cell * _NEAR_STRIDE)
        if own.any():
            distance, places = ndimage.distance_transform_edt(~own, return_indices=True)
            nearest = small[tuple(places)]
        else:
            distance, nearest = np.full(small.shape, np.inf), np.zeros_like(small)
        closest = ndimage.minimum_position(distance, patches, np.arange(1, count + 1))
        owner = np.zeros(count + 1, np.int32)
        shared = np.zeros(count + 1, bool)
        more = 0
        for patch, place in enumerate(closest, start=1):
            shared[patch] = own[place]
            if distance[place] <= side * _NEAR:
                owner[patch] = nearest[place]
            elif sizes[patch] >= (side * _SEEN_WHOLE) ** 2:
                owner[patch] = len(mine) + more
                more += 1
        owners = np.where(shared[patches], nearest, owner[patches])
        around = np.where(distance <= side * _NEAR, nearest, 0)
        beside = ndimage.maximum_filter(owners, 3)
        return np.where(region, owners, np.where(beside > 0, beside, around)), more

    def _bands(self, labels: np.ndarray, class_of: np.ndarray, near: dict[int, np.ndarray]) -> Iterator[np.ndarray]:
        """Bands of the photo, int32 [n, W]: the thing a pixel is of, or as many as there are things plus its class."""
        height, width = labels.shape
        columns = np.minimum(np.arange(width) // self._cell, self._map.shape[1] - 1)
        step = self._cell * max(1, _BAND_PIXELS // (width * self._cell))
        for top in range(0, height, step):
            part = labels[top : top + step]
            rows = np.minimum(np.arange(top, top + len(part)) // self._cell, self._map.shape[0] - 1)
            thing = self._map[rows[:, None], columns]
            band = part.astype(np.int32) + len(class_of)
            own = class_of[thing] == part
            own &= thing > 0
            band[own] = thing[own]
            for k, nearest in near.items():
                missing = np.nonzero((part == k) & ~own)
                places = [
                    np.minimum(axis // _NEAR_STRIDE, length - 1)
                    for axis, length in zip((rows[missing[0]], columns[missing[1]]), nearest.shape, strict=True)
                ]
                found = nearest[places[0], places[1]]
                band[missing] = np.where(found > 0, found, band[missing])
            yield band


def _meetings(
    maps: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[tuple[Counter[int], Counter[int]], Counter[tuple[int, int]]]:
    """Areas of the values of two maps, and of the places where two of them meet; zero is none. The maps in bands."""
    areas: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    met: Counter[tuple[int, int]] = Counter()
    for one, other in maps:
        codes, counts = np.unique(one.astype(np.int64) << 32 | other, return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            a, b = code >> 32, code & 0xFFFFFFFF
            if a:
                areas[0][a] += count
            if b:
                areas[1][b] += count
            if a and b:
                met[a, b] += count
    return areas, met


def _first(cells: np.ndarray) -> np.ndarray:
    """[n, m] -> [m]: the first number of every column that is not zero, or zero."""
    return np.take_along_axis(cells, (cells > 0).argmax(0)[None], 0)[0]


def _counts(values: np.ndarray, length: int) -> np.ndarray:
    """How often each number below length is in a map; row by row, because numpy counts in 64 bits."""
    total = np.zeros(length, np.int64)
    for row in values:
        total += np.bincount(row, minlength=length)
    return total

"""The scores of all looks at a photo, mixed so that no border of a tile can be seen.

With F what a tile says about the classes of a pixel, B(F) what is broad in that (`looking.broad`), and c the context,

    mixed = F - c * B(F) + c * (the same of the next coarser tiles)

and for the coarsest look, the whole photo, mixed = F. So a tile's opinion on what fills it, which its neighbour need
not share, is replaced by a coarser look's; what it sees inside itself stands. With c = 1 this is the band-pass blending
of picture mosaics (Burt and Adelson, 1983) for scores in the place of brightness; with c = 0 the tiles are alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.postprocess import SemanticView, semantic_map
from lexiseg.tiling.cutting import Span, Tiling
from lexiseg.tiling.looking import Sketch, Tile, bilinear, broad, sketched
from lexiseg.types import SemanticMap, SigmoidAt, Size

# Floats held at once for the masks, or for the class scores, of a block of pixels.
BLOCK_FLOATS = 1_000_000

# Void is what has more than this of the mixed vote: looks often disagree whether there is anything, and then there is,
# as a rule. With less, what a tile takes for nothing would end in a straight line beside another that sees something.
_VOID = 0.95
# The same where tiles are alone: then nothing but their masks tells where void ends.
_VOID_ALONE = 0.5

# What coarser looks say is computed once for so many parts of a tile's side, and interpolated between.
_CELLS_PER_SIDE = 128


def semantic(
    size_hw: Size,
    tiling: Tiling,
    look: Callable[[Span, Span], SemanticView],
    sigmoid_at: SigmoidAt = "canvas",
    *,
    void: bool = False,
) -> SemanticMap:
    """`postprocess.semantic` of a photo in tiles: the class with the best mixed score at every pixel.

    look(rows, columns): what a model sees in that part of the photo; the output of its frame is the part. The largest
    parts come first: the whole photo, then tiles from large to small. Labels [H, W] are on the CPU, in the narrowest of
    uint8, int16 and int32. Held are the labels, sketches of the larger tiles, and of the smallest ones what their
    overlaps along one row are made of.

    void: the last class is void, and what the last mask of a view is; see `_VOID`.
    """
    rows, columns = tiling.along(size_hw[0]), tiling.along(size_hw[1])
    around: _Around | None = None
    for coarse in tiling.coarser(size_hw):
        around = _Around.seen(size_hw, coarse, look, around, void=void)
    canvas: _Labels | None = None
    above: list[_Seen] = []
    for top in rows:
        current: list[_Seen] = []
        left: _Seen | None = None
        for number, span in enumerate(columns):
            view = look(top, span)
            exact = Tile.seen(view, sigmoid_at, top, span, tiling.overlap, size_hw, void=void)
            tile = _Seen.of(exact, view if around is not None else None)
            canvas = canvas or _Labels.of(size_hw, tile.exact.class_probs, tiling, around, void=void)
            # All that no later tile reaches is decided now: what this one shares with earlier ones, and its inside.
            near = [tile, *([left] if left else []), *above[max(0, number - 1) : number + 1]]
            last_row, last_column = top == rows[-1], span == columns[-1]
            bottom = top[1] if last_row else top[1] - tiling.overlap
            right = span[1] if last_column else span[1] - tiling.overlap
            for part in _split(top[0], bottom, tiling.overlap if top[0] else 0):
                for across in _split(span[0], right, tiling.overlap if span[0] else 0):
                    canvas.decide([other for other in near if other.exact.covers(part, across)], part, across)
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
class _Seen:
    """One of the smallest tiles."""

    exact: Tile
    broad: Sketch | None
    """What is broad in it; None where no coarser look takes its place."""

    @classmethod
    def of(cls, exact: Tile, view: SemanticView | None) -> _Seen:
        """view: given where what is broad in it matters."""
        if view is None:
            return cls(exact, None)
        maps, class_probs = sketched(view, void=exact.void)
        return cls(exact, Sketch(broad(maps), class_probs, exact.rows, exact.columns, exact.overlap, exact.photo_hw))

    def cut(self, rows: Span, columns: Span) -> _Seen:
        """The same with only as much as a part of the photo is made of."""
        return _Seen(self.exact.cut(rows, columns), self.broad)


@dataclass(frozen=True, eq=False)
class _Around:
    """The tiles of one size as sketches, without what is broad in them; and those of the next larger size."""

    sketches: Sequence[Sketch]
    context: float
    coarser: _Around | None

    @classmethod
    def seen(
        cls,
        size_hw: Size,
        tiling: Tiling,
        look: Callable[[Span, Span], SemanticView],
        coarser: _Around | None,
        *,
        void: bool,
    ) -> _Around:
        found = []
        for rows in tiling.along(size_hw[0]):
            for columns in tiling.along(size_hw[1]):
                maps, class_probs = sketched(look(rows, columns), void=void)
                if void:
                    # Where exactly void ends the smaller tiles know better: close to there it may well be void.
                    maps[-1:] = functional.max_pool2d(maps[-1:], 3, 1, 1)
                if coarser is not None:
                    size = (maps.shape[-2], maps.shape[-1])
                    maps = maps - tiling.context * functional.interpolate(broad(maps)[None], size, mode="bilinear")[0]
                found.append(Sketch(maps.half(), class_probs, rows, columns, tiling.overlap, size_hw))
        return cls(found, tiling.context, coarser)

    def scores(self, down: Tensor, across: Tensor) -> Tensor:
        """[K, n, m]: the mixed scores at places of the photo, increasing along both axes."""
        if self.coarser is None:
            (whole,) = self.sketches
            return whole.at(down, across)
        total = self.coarser.scores(down, across) * self.context
        _add(total, self.sketches, down, across)
        return total


def _add(total: Tensor, sketches: Sequence[Sketch], down: Tensor, across: Tensor, factor: float = 1.0) -> None:
    """To total [K, n, m], factor times what those of the sketches say that reach the places."""
    for sketch in sketches:
        inside = [
            slice(*torch.searchsorted(places, torch.tensor([float(own[0]), float(own[1])])).tolist())
            for places, own in ((down, sketch.rows), (across, sketch.columns))
        ]
        if all(part.start < part.stop for part in inside):
            total[:, inside[0], inside[1]] += factor * sketch.at(down[inside[0]], across[inside[1]])


@dataclass(eq=False)
class _Labels:
    """The labels of the photo as they are decided, and what the scores of the classes sum up to."""

    labels: np.ndarray
    areas: Tensor
    """[K]."""
    sums: Tensor
    """[K, class of the segment]."""
    around: _Around | None
    cell: int
    """Pixels of the photo, a side, for which what is broad is computed once."""
    void: bool
    """Whether the last class is void."""

    @classmethod
    def of(cls, size_hw: Size, class_probs: Tensor, tiling: Tiling, around: _Around | None, *, void: bool) -> _Labels:
        count = class_probs.shape[1]
        # One number stays free: some count the classes from one.
        kind = next(kind for kind in (np.uint8, np.int16, np.int32) if count < np.iinfo(kind).max)
        areas = torch.zeros(count, dtype=torch.long, device=class_probs.device)
        sums = class_probs.new_zeros(count, count, dtype=torch.float32)
        return cls(np.zeros(size_hw, kind), areas, sums, around, max(1, tiling.side // _CELLS_PER_SIDE), void)

    def decide(self, tiles: Sequence[_Seen], rows: Span, columns: Span) -> None:
        """tiles: all that show this part of the photo."""
        count = len(self.areas)
        for part, across in _blocks(rows, columns, max(count, *(len(tile.exact.maps) for tile in tiles))):
            total = tiles[0].exact.votes(part, across)
            for tile in tiles[1:]:
                total += tile.exact.votes(part, across)
            if self.around is not None:
                total += self._from_around(self.around, tiles, part, across)
            best = total[: count - self.void].argmax(0)
            if self.void:
                best[total[-1] > (_VOID_ALONE if self.around is None else _VOID)] = count - 1
                total[-1] = 0  # no part of any segment's scores
            self.labels[part[0] : part[1], across[0] : across[1]] = best.cpu().numpy()
            self.sums.index_add_(1, best.flatten(), total.clamp_(min=0).flatten(1).float())
            self.areas += torch.bincount(best.flatten(), minlength=count)

    def _from_around(self, around: _Around, tiles: Sequence[_Seen], rows: Span, columns: Span) -> Tensor:
        """[K, n, m]: what coarser looks say, in the place of what is broad in the tiles."""
        firsts, places = [], []
        for span, spans in (
            (rows, [tile.exact.rows for tile in tiles]),
            (columns, [tile.exact.columns for tile in tiles]),
        ):
            # The centres of the cells around the part; the same cells for all parts.
            first, last = (span[0] - self.cell // 2) // self.cell, (span[1] - 1 + self.cell // 2) // self.cell
            firsts.append(first)
            cells = torch.arange(first, last + 1, dtype=torch.float32)
            places.append((cells + 0.5) * self.cell)
            places[-1].clamp_(min(own[0] for own in spans) + 0.5, max(own[1] for own in spans) - 0.5)
        down, across = places
        scores = around.scores(down, across) * around.context
        _add(scores, [tile.broad for tile in tiles if tile.broad], down, across, -around.context)
        for dimension, (span, first) in enumerate(zip((rows, columns), firsts, strict=True), start=1):
            at = torch.arange(*span, dtype=torch.float32) + 0.5
            scores = bilinear(scores, dimension, at / self.cell - first)
        return scores


def _blocks(rows: Span, columns: Span, deep: int) -> Iterator[tuple[Span, Span]]:
    """A part of the photo in pieces of which `deep` values per pixel are not too many."""
    width = max(1, min(columns[1] - columns[0], BLOCK_FLOATS // deep))
    height = max(1, BLOCK_FLOATS // (deep * width))
    for top in range(rows[0], rows[1], height):
        for left in range(columns[0], columns[1], width):
            yield (top, min(top + height, rows[1])), (left, min(left + width, columns[1]))

"""What a model saw in a tile, and how it is read at the pixels of the photo: exactly, or roughly.

Exactly as one look at a photo is read (`Tile`); or as a sketch of it on a small grid, which is enough for what is
broad (`Sketch`). Either way the scores of a pixel's classes sum to one, so that all looks have equal votes. A view may
have void for its last class, with a mask of its own, the last: that stands beside the vote, between zero and one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.geometry import neighbours, probs_on_grid
from lexiseg.postprocess import SemanticView
from lexiseg.tiling.cutting import Span
from lexiseg.types import SigmoidAt, Size

# Cells of a sketch along the longer side of its tile: with a hundred masks it takes two megabytes. What is smaller the
# next size of tiles knows better.
_SKETCH_CELLS = 96
# The same of what is broad in a sketch.
_BROAD_CELLS = 24
# Standard deviation of the weights of the mean that tells what is broad, as a share of the longer side of the tile.
_BROAD = 0.25
# Below this sum of scores nothing was seen.
_LEAST_SUM = 1e-3


def sketched(view: SemanticView, *, void: bool = False) -> tuple[Tensor, Tensor | None]:
    """A view on a small grid: (maps [N, h, w], class_probs [N, K]).

    Without class_probs the maps are those of the classes: whichever are fewer, masks or classes. The class scores of a
    cell sum to one, but for void, the last where the view has it.
    """
    frame, grid = view.frame, view.mask_logits.shape[-2:]
    cells = [
        max(1, round(length * picture / canvas))
        for length, picture, canvas in zip(grid, frame.picture_hw, frame.canvas_hw, strict=True)
    ]
    maps = probs_on_grid(view.mask_logits.float(), frame.canvas_hw, frame.picture_hw, (cells[0], cells[1]))
    maps = _pooled(maps, _SKETCH_CELLS)
    class_probs = view.class_probs.float()
    voting = len(maps) - void
    total = torch.einsum("q,qhw->hw", class_probs[:voting].sum(1), maps[:voting])
    maps[:voting] /= total.clamp_min(_LEAST_SUM)
    if class_probs.shape[1] <= len(maps):
        return torch.einsum("qk,qhw->khw", class_probs, maps), None
    return maps, class_probs


def broad(maps: Tensor) -> Tensor:
    """What is broad in maps [N, h, w]: a mean with smooth weights over about half of the tile, on a small grid."""
    small = _pooled(maps, _BROAD_CELLS)
    spread = _BROAD * max(small.shape[-2:])
    for axis in (1, 2):
        place = torch.arange(small.shape[axis], dtype=small.dtype, device=small.device)
        weights = (-((place[:, None] - place) ** 2) / (2 * spread**2)).softmax(1)
        small = torch.tensordot(small, weights, ([axis], [1])).movedim(-1, axis)
    return small


def _pooled(maps: Tensor, cells: int) -> Tensor:
    """maps [N, h, w] with at most so many cells along the longer side."""
    height, width = maps.shape[-2:]
    shrink = min(1.0, cells / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    return maps if shrink == 1 else functional.adaptive_avg_pool2d(maps[None], size)[0]


def ramp(at: Tensor, own: Span, overlap: int, length: int) -> Tensor:
    """Weights in a tile that has the pixels `own` of an axis, at positions of the axis; a pixel's is its centre.

    They fall to zero over the overlaps, without a bend; those of all tiles are one together.
    """
    weight = torch.ones_like(at)
    if own[0] > 0 and overlap:
        weight = weight.minimum((at - own[0]) / overlap)
    if own[1] < length and overlap:
        weight = weight.minimum((own[1] - at) / overlap)
    return 0.5 - 0.5 * torch.cos(torch.pi * weight.clamp(0, 1))


def bilinear(x: Tensor, dimension: int, positions: Tensor) -> Tensor:
    """x [N, h, w] along one dimension at positions of which cell i has its centre at i + 0.5."""
    last = x.shape[dimension] - 1
    at = (positions - 0.5).clamp(0, last)
    first = at.floor().long()
    share = (at - first).to(x.device)
    first = first.to(x.device)
    one, other = x.index_select(dimension, first), x.index_select(dimension, (first + 1).clamp(max=last))
    share = share[:, None] if dimension == 1 else share
    return torch.lerp(one.float(), other.float(), share)


@dataclass(frozen=True, eq=False)
class Sketch:
    """A tile on a small grid."""

    maps: Tensor
    """[N, h, w]."""
    class_probs: Tensor | None
    """[N, K]; None where the maps are those of the classes."""
    rows: Span
    """Of the photo."""
    columns: Span
    overlap: int
    photo_hw: Size

    def at(self, down: Tensor, across: Tensor) -> Tensor:
        """[K, n, m]: the scores at places of the photo inside the tile, times the weight of the tile there."""
        x = self.maps
        for dimension, (places, own) in enumerate(((down, self.rows), (across, self.columns)), start=1):
            x = bilinear(x, dimension, (places - own[0]) * (x.shape[dimension] / (own[1] - own[0])))
        if self.class_probs is not None:
            x = torch.einsum("nk,nhw->khw", self.class_probs, x)
        y = ramp(down, self.rows, self.overlap, self.photo_hw[0])
        return x * (y[:, None] * ramp(across, self.columns, self.overlap, self.photo_hw[1])).to(x)


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
class Tile:
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
    void: bool
    """Whether the last class is void."""

    @classmethod
    def seen(
        cls,
        view: SemanticView,
        sigmoid_at: SigmoidAt,
        rows: Span,
        columns: Span,
        overlap: int,
        photo_hw: Size,
        *,
        void: bool = False,
    ) -> Tile:
        frame, maps = view.frame, view.mask_logits
        axes = [
            _Axis.of(maps.shape[1 + axis], frame.canvas_hw[axis], frame.picture_hw[axis], frame.output_hw[axis])
            for axis in (0, 1)
        ]
        # Where all that follows the sigmoid is linear the classes may be summed up first, on the small grid.
        summed = sigmoid_at == "grid"
        if summed:
            maps = torch.einsum("qk,qhw->khw", view.class_probs, maps.sigmoid())
        both, shown = (axes[0], axes[1]), (rows, columns)
        return cls(maps, view.class_probs, summed, sigmoid_at, both, rows, columns, shown, overlap, photo_hw, void)

    def covers(self, rows: Span, columns: Span) -> bool:
        """Whether a part of the photo is wholly in what is still there."""
        return all(
            shown[0] <= span[0] and span[1] <= shown[1] for shown, span in zip(self.shown, (rows, columns), strict=True)
        )

    def cut(self, rows: Span, columns: Span) -> Tile:
        """The same with only as much of the masks as a part of the photo is made of, in memory of its own."""
        vertical, horizontal = self.axes
        down = vertical.cells((rows[0] - self.rows[0], rows[1] - self.rows[0]))
        across = horizontal.cells((columns[0] - self.columns[0], columns[1] - self.columns[0]))
        (y, _), (x, _) = vertical.kept, horizontal.kept
        return Tile(
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
            self.void,
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

    def votes(self, rows: Span, columns: Span) -> Tensor:
        """`scores` that sum to one at every pixel, but for void, times the weight of the tile there."""
        scores = self.scores(rows, columns)
        voting = scores[: len(scores) - self.void]
        voting /= voting.sum(0).clamp_min(_LEAST_SUM)
        at = [torch.arange(*span, dtype=torch.float32) + 0.5 for span in (rows, columns)]
        y = ramp(at[0], self.rows, self.overlap, self.photo_hw[0])
        x = ramp(at[1], self.columns, self.overlap, self.photo_hw[1])
        return scores.mul_((y[:, None] * x).to(scores))


def _read(x: Tensor, dimension: int, plan: tuple[Tensor, Tensor, Tensor], span: Span, offset: int) -> Tensor:
    """Bilinear along one dimension of x [N, h, w]; offset: which place of the whole axis x begins with."""
    first, second, weight = (part[span[0] : span[1]].to(x.device) for part in plan)
    weight = weight.to(x)[:, None] if dimension == 1 else weight.to(x)
    return torch.lerp(x.index_select(dimension, first - offset), x.index_select(dimension, second - offset), weight)

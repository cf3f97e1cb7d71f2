"""Masks as polygons, for tools that know nothing else.

Outlines run along the edges of pixels: (x, y) are corners of the pixel grid, (0, 0) the upper left one of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

TOLERANCE = 1.0
"""Pixels by which a simplified outline may leave the true one: the stairs of a slanted edge become a straight line."""


@dataclass(frozen=True)
class Part:
    """A piece of a mask whose pixels hang together by their sides."""

    outer: np.ndarray
    """[N, 2] (x, y) int64, clockwise as one sees it, without repeating the first."""
    holes: tuple[np.ndarray, ...]
    """Each [N, 2], counterclockwise."""


def parts_of(mask: np.ndarray) -> list[Part]:
    """bool [H, W] -> its parts from top to bottom, outlined exactly."""
    padded = np.pad(mask, 1)
    number_of, count = ndimage.label(padded)
    outers: list[np.ndarray] = [np.empty((0, 2), np.int64)] * count
    holes: list[list[np.ndarray]] = [[] for _ in range(count)]
    for ring in _rings(padded):
        x, y = ring[0]  # the leftmost of its uppermost corners
        if padded[y + 1, x + 1]:
            outers[number_of[y + 1, x + 1] - 1] = ring
        else:
            holes[number_of[y, x + 1] - 1].append(np.concatenate([ring[:1], ring[:0:-1]]))
    return [Part(outer, tuple(own)) for outer, own in zip(outers, holes, strict=True)]


def simplified(ring: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """[N, 2] -> some of its corners, so that none that is left out lies farther than `tolerance` from the outline.

    Douglas and Peucker 1973. Three corners stay at least.
    """
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]]).astype(float)
    kept = np.zeros(len(closed), bool)
    kept[[0, far, len(ring)]] = True
    spans = [(0, far), (far, len(ring))]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        between = closed[first + 1 : last] - closed[first]
        along = closed[last] - closed[first]
        share = np.clip(between @ along / max(float(along @ along), 1e-12), 0, 1)
        distance = np.hypot(*(between - share[:, None] * along).T)
        farthest = int(distance.argmax())
        if distance[farthest] > tolerance:
            middle = first + 1 + farthest
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    found = ring[kept[:-1]]
    return found if len(found) >= 3 else ring


def outer_polygons(mask: np.ndarray, tolerance: float = TOLERANCE) -> list[np.ndarray]:
    """The outlines of the parts, their holes filled; each [N, 2]."""
    return [simplified(part.outer, tolerance) for part in parts_of(mask)]


def one_polygon(mask: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """All parts and holes as a single outline [N, 2], joined by seams of no width.

    A seam goes forth and back between the two nearest corners. Filled by the even-odd rule or by winding, the
    outline covers the mask; programs that paint outlines with a pen draw the seams one pixel wide.
    """
    rings = [simplified(ring, tolerance) for part in parts_of(mask) for ring in (part.outer, *part.holes)]
    joined = rings[0]
    for ring in rings[1:]:
        distances, nearest = cKDTree(joined).query(ring)
        here = int(distances.argmin())
        there = int(nearest[here])
        turned = np.roll(ring, -here, axis=0)
        joined = np.concatenate([joined[: there + 1], turned, turned[:1], joined[there:]])
    return joined


def _rings(padded: np.ndarray) -> list[np.ndarray]:
    """All outlines of a mask with an empty border: corners [N, 2] (x, y), clockwise from the uppermost left one.

    A corner has an edge to its left or right and one up or down. Where two pixels of the mask touch by their corners
    alone, it counts twice, so that they are two parts. In a row of the grid an edge goes from each corner with an odd
    place to the next one; in a column likewise. Following rows and columns by turns gives the rings.
    """
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    inside = nw.astype(np.int8) + ne + sw + se
    across = (inside == 2) & (nw == se)
    alone = (inside % 2 == 1) | across
    # A corner of one pixel: the pixel inside alone, or, of three, the one outside. It says where its edges lie.
    odd = inside == 3
    places = []
    for pixel, left, up in ((nw, True, True), (ne, False, True), (sw, True, False), (se, False, False)):
        y, x = np.nonzero(alone & (pixel != odd))
        places.append(np.stack([x, y, np.full_like(x, left), np.full_like(x, up)], 1))
    x, y, left, up = np.concatenate(places).T
    along_row = _partners(np.lexsort((1 - left, x, y)))
    along_column = _partners(np.lexsort((1 - up, y, x)))
    rows, columns = along_row.tolist(), along_column.tolist()
    seen = bytearray(len(x))
    rings = []
    for first in np.lexsort((x, y)).tolist():
        if seen[first]:
            continue
        ring, node = [], first
        while not seen[node]:
            seen[node] = 1
            ring.append(node)
            node = rows[node]
            seen[node] = 1
            ring.append(node)
            node = columns[node]
        rings.append(np.stack([x[ring], y[ring]], 1))
    return rings


def _partners(order: np.ndarray) -> np.ndarray:
    """Of every node the one beside it: the first and the second in `order`, the third and the fourth, and so on."""
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners

"""Outlines: filled again they give the mask."""

from itertools import pairwise

import numpy as np
import pytest

from lexiseg.formats.outlines import one_polygon, outer_polygons, parts_of, simplified
from tests.formats.some_photos import shapes


def winding(rings: list[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """How often rings along the edges of pixels go clockwise around each pixel."""
    turns = np.zeros(size_hw, int)
    for ring in rings:
        for (x, y), (next_x, next_y) in zip(ring, np.roll(ring, -1, 0), strict=True):
            assert x == next_x or y == next_y
            if x == next_x:
                turns[min(y, next_y) : max(y, next_y), x:] += 1 if next_y < y else -1
    return turns


@pytest.mark.parametrize("seed", range(40))
def test_parts_give_the_mask(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(generator.integers(1, 20, 2)) < generator.random()
    parts = parts_of(mask)
    total = np.zeros(mask.shape, int)
    for part in parts:
        assert winding([part.outer], mask.shape).min() >= 0
        for hole in part.holes:
            assert winding([hole], mask.shape).max() <= 0
        total += winding([part.outer, *part.holes], mask.shape)
    assert (total == mask).all()


def test_parts() -> None:
    ring, corners, pixel = (parts_of(mask) for mask in shapes().numpy())
    assert [len(part.holes) for part in ring] == [1, 0]  # the island is a part of its own
    assert ring[0].outer.tolist() == [[3, 2], [22, 2], [22, 20], [3, 20]]
    assert ring[0].holes[0].tolist() == [[7, 6], [7, 14], [17, 14], [17, 6]]
    assert len(corners) == 2  # what touches by a corner alone does not hang together
    assert pixel[0].outer.tolist() == [[39, 30], [40, 30], [40, 31], [39, 31]]
    assert parts_of(np.zeros((3, 3), bool)) == []


@pytest.mark.parametrize("tolerance", [0.0, 0.5, 1.0, 3.0])
def test_simplified(tolerance: float) -> None:
    y, x = np.mgrid[:60, :60]
    (part,) = parts_of((x - 30) ** 2 + (y - 30) ** 2 < 25**2)
    found = simplified(part.outer, tolerance)
    ends = np.roll(found, -1, 0)
    for point in part.outer:
        along = ends - found
        share = np.clip(((point - found) * along).sum(1) / (along**2).sum(1), 0, 1)
        assert np.hypot(*(point - found - share[:, None] * along).T).min() <= tolerance + 1e-9
    assert 3 <= len(found) <= len(part.outer)
    assert tolerance < 1 or len(found) < len(part.outer) / 2


def test_thin_things_stay_polygons() -> None:
    line = np.zeros((5, 50), bool)
    line[2, 3:40] = True
    assert [len(outline) >= 3 for outline in outer_polygons(line, tolerance=10.0)] == [True]


def test_one_polygon_by_both_rules() -> None:
    for mask in shapes().numpy():
        joined = one_polygon(mask, tolerance=0)
        assert (_even_odd(joined, mask.shape) == mask).all()
        assert (_turns(joined, mask.shape) == mask).all()


def _turns(polygon: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """How often the polygon goes around the middle of each pixel."""
    total = np.zeros(size_hw)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + np.array([0.5017, 0.4969])[:, None, None]  # on no seam
    angles = [np.arctan2(py - y, px - x) for px, py in [*polygon, polygon[0]]]
    for before, after in pairwise(angles):
        total += (after - before + np.pi) % (2 * np.pi) - np.pi
    return np.rint(total / (2 * np.pi)).astype(int)


def _even_odd(polygon: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return _turns(polygon, size_hw) % 2 == 1

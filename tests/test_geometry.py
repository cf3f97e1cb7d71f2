"""Sizes and resizing against hand-worked values and the framework's interpolation."""

import pytest
import torch

from lexiseg.geometry import RowResize, fit_short_edge, resize, round_up


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((480, 640), (800, 1067)),  # 1066.67 rounds up
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((1080, 1920), (750, 1333)),  # the long edge is the limit
        ((100, 400), (333, 1333)),
        ((801, 801), (800, 800)),
        ((60, 90), (800, 1200)),  # small pictures are enlarged
    ],
)
def test_fit_short_edge(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_short_edge(size_hw, 800, 1333) == expected


def test_round_up_leaves_multiples_alone() -> None:
    assert round_up((800, 1067), 32) == (800, 1088)
    assert round_up((1, 33), 32) == (32, 64)


@pytest.mark.parametrize("sizes", [((7, 9), (20, 31)), ((20, 31), (7, 9)), ((5, 5), (5, 11)), ((6, 4), (13, 4))])
@pytest.mark.parametrize("step", [1, 3, 100])
def test_rows_resized_a_few_at_a_time_are_the_rows_of_the_whole(
    sizes: tuple[tuple[int, int], tuple[int, int]], step: int
) -> None:
    input_hw, output_hw = sizes
    x = torch.randn(3, *input_hw, generator=torch.Generator().manual_seed(0))
    rows = RowResize(input_hw, output_hw)
    parts = []
    for start in range(0, output_hw[0], step):
        stop = min(start + step, output_hw[0])
        first, last = rows.needs(start, stop)
        parts.append(rows(x[:, first:last], start, stop))
    torch.testing.assert_close(torch.cat(parts, 1), resize(x[None], output_hw)[0])


def test_resize_to_the_same_size_is_the_same_tensor() -> None:
    x = torch.randn(1, 2, 4, 5)
    assert resize(x, (4, 5)) is x

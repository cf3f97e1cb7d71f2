"""Sizes and resizing against hand-worked values and the framework's interpolation."""

import pytest
import torch
from torch.nn import functional

from lexiseg.geometry import MAX_ASPECT, RowResize, TowerView, fit_short_edge, probs_on_grid, resize, round_up
from lexiseg.types import Images


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


@pytest.mark.parametrize(
    ("view", "size_hw", "expected"),
    [
        (TowerView("short", 392, 14), (512, 683), (392, 522)),  # 522.9 is cut
        (TowerView("short", 392, 14), (683, 512), (522, 392)),
        (TowerView("short", 800, 32), (800, 1067), (800, 1067)),  # its own size to the pixel
        (TowerView("short", 50, 1), (7, 7), (50, 50)),
        (TowerView("short", 50, 1), (1, 9000), (50, 50 * MAX_ASPECT)),
        (TowerView("square", 20, 1), (3, 90), (20, 20)),
        (TowerView("scale", 0.7, 1), (19, 31), (13, 21)),
        (TowerView("scale", 0.1, 1), (5, 31), (1, 3)),
        (TowerView("none", 0, 1), (5, 31), (5, 31)),
    ],
)
def test_sizes_of_views(view: TowerView, size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert view.size_of(size_hw) == expected


def two_pictures() -> Images:
    chance = torch.Generator().manual_seed(0)
    sizes = ((90, 128), (96, 60))
    pixels = torch.zeros(2, 3, 96, 128)
    for row, (h, w) in zip(pixels, sizes, strict=True):
        row[:, :h, :w] = 255 * torch.rand(3, h, w, generator=chance)
    return Images(pixels, sizes, ((9, 9), (8, 8)))


def test_a_view_is_each_picture_resized_without_its_padding() -> None:
    images = two_pictures()
    view = TowerView("short", 48, 14)(images)
    assert (view.sizes_hw, view.canvas_hw, view.original_hw) == (((48, 68), (76, 48)), (84, 70), images.original_hw)
    for index, ((h, w), (height, width)) in enumerate(zip(images.sizes_hw, view.sizes_hw, strict=True)):
        alone = resize(images.pixels[index : index + 1, :, :h, :w], (height, width))[0]
        assert torch.equal(view.pixels[index, :, :height, :width], alone)
        assert view.pixels[index, :, height:].abs().max() == 0 and view.pixels[index, :, :, width:].abs().max() == 0
    again = TowerView("none", 0, 32)(images)
    assert again.pixels is images.pixels  # nothing to do


def test_a_view_comes_from_what_the_picture_was_before() -> None:
    before = two_pictures()
    scaled = TowerView("short", 150, 32)(before)
    images = Images(scaled.pixels, scaled.sizes_hw, scaled.original_hw, unscaled=before)
    view = TowerView("short", 48, 14)
    assert torch.equal(view(images).pixels, view(before).pixels)
    assert not torch.allclose(view(scaled).pixels, view(before).pixels, atol=1.0)
    moved = images.to("meta")
    assert moved.pixels.is_meta and moved.unscaled is not None and moved.unscaled.pixels.is_meta


@pytest.mark.parametrize("rule", ["short", "none"])
def test_masks_of_a_view_are_the_four_steps(rule: str) -> None:
    """To the canvas, cut to the picture, to the view, padded, to the grid: one matrix per axis."""
    images = two_pictures()
    view_of = TowerView(rule, 48, 14)  # type: ignore[arg-type]
    view = view_of(images)
    masks = torch.rand(2, 4, 24, 32, generator=torch.Generator().manual_seed(1))
    found = view_of.masks(masks, images, view, (6, 5))
    for index, ((h, w), (height, width)) in enumerate(zip(images.sizes_hw, view.sizes_hw, strict=True)):
        there = resize(masks[index : index + 1], images.canvas_hw)[..., :h, :w]
        there = resize(there, (height, width))
        padding = (0, view.canvas_hw[1] - width, 0, view.canvas_hw[0] - height)
        there = resize(functional.pad(there, padding), (6, 5))[0]
        torch.testing.assert_close(found[index], there, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [((8, 12), (32, 48), (32, 48), (5, 7)), ((32, 48), (32, 48), (20, 41), (3, 3))])
def test_probabilities_on_a_grid_as_three_steps_have_them(sizes: tuple[tuple[int, int], ...]) -> None:
    mask_hw, canvas_hw, frame_hw, grid_hw = sizes
    logits = torch.randn(4, *mask_hw) * 3
    whole = resize(logits[None], canvas_hw).sigmoid()[..., : frame_hw[0], : frame_hw[1]]
    found = probs_on_grid(logits, canvas_hw, frame_hw, grid_hw)
    torch.testing.assert_close(found[None], resize(whole, grid_hw), rtol=1e-5, atol=1e-6)

"""Against transformers' own image processors, and hand-worked places."""

from functools import partial

import pytest
import torch

from lexiseg.proposals.transformers_view import IMAGENET, Look, PixelScale, View, short_edge_at, square
from lexiseg.types import Images

PLAIN = PixelScale((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def canvas(sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], seed: int = 0) -> Images:
    """Smooth pictures of whole values, black around them."""
    pixels = torch.zeros(len(sizes_hw), 3, *canvas_hw)
    for index, (row, (height, width)) in enumerate(zip(pixels, sizes_hw, strict=True)):
        noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed + index)) * 255
        row[:, :height, :width] = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].round()
    return Images(pixels, tuple(sizes_hw), tuple(sizes_hw))


def linear(height: int, width: int, stride: float, by_row: float, by_column: float) -> torch.Tensor:
    """[1, height, width], linear in the places of the cells' centres."""
    rows, columns = (torch.arange(height) + 0.5) * stride, (torch.arange(width) + 0.5) * stride
    return (by_row * rows[:, None] + by_column * columns)[None]


def test_sizes() -> None:
    assert square((480, 640), 1024) == ((768, 1024), (1024, 1024))
    assert square((427, 640), 1024) == ((683, 1024), (1024, 1024))  # 683.2
    assert square((3, 4000), 64) == ((1, 64), (64, 64))  # a hair-thin picture keeps a line
    assert square((480, 640), 1024, stretch=True) == ((1024, 1024), (1024, 1024))
    assert short_edge_at((480, 640), 800, 1333, 32) == ((800, 1067), (800, 1088))
    assert short_edge_at((1, 4000), 800, 1333, 32) == ((1, 1333), (32, 1344))


@pytest.mark.parametrize("size_hw", [(96, 128), (128, 70), (33, 41)])
def test_pixels_are_those_of_the_official_processor_of_sam(size_hw: tuple[int, int]) -> None:
    """To the rounding of its resizing, which is done on 8-bit values."""
    transformers = pytest.importorskip("transformers")
    processor = transformers.SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    images = canvas([size_hw], (128, 160))
    picture = images.pixels[0, :, : size_hw[0], : size_hw[1]].to(torch.uint8)
    expected = processor(picture, return_tensors="pt")
    (view,) = Look(partial(square, side=64), IMAGENET)(images)
    assert view.shown_hw == tuple(expected["reshaped_input_sizes"][0])
    torch.testing.assert_close(view.pixels, expected["pixel_values"], rtol=0, atol=1.01 / min(IMAGENET.std))
    outside = view.pixels[0, :, view.shown_hw[0] :]
    assert torch.equal(outside, torch.zeros_like(outside))


def test_pixels_are_those_of_the_official_processor_of_eomt() -> None:
    """Its padding is black before normalisation."""
    transformers = pytest.importorskip("transformers")
    size = {"shortest_edge": 64, "longest_edge": 64}
    processor = transformers.EomtImageProcessor(size=size, do_pad=True)
    images = canvas([(96, 128)], (96, 128))
    expected = processor(images.pixels[0].to(torch.uint8), return_tensors="pt")["pixel_values"]
    (view,) = Look(partial(square, side=64), IMAGENET, black_padding=True)(images)
    torch.testing.assert_close(view.pixels, expected, rtol=0, atol=1.01 / min(IMAGENET.std))
    assert float(view.pixels[0, 0, -1, -1]) == pytest.approx(-IMAGENET.mean[0] / IMAGENET.std[0])


def test_pixels_are_those_of_the_official_processor_of_mask2former() -> None:
    """Where the size is a multiple of 32 it does not stretch."""
    transformers = pytest.importorskip("transformers")
    processor = transformers.Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    images = canvas([(96, 144)], (128, 160))
    expected = processor(images.pixels[0, :, :96, :144].to(torch.uint8), return_tensors="pt")["pixel_values"]
    (view,) = Look(partial(short_edge_at, short_edge=64, long_edge=128, multiple=32), IMAGENET)(images)
    assert view.pixels.shape == (1, 3, 64, 96)
    torch.testing.assert_close(view.pixels, expected, rtol=0, atol=1.01 / min(IMAGENET.std))


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    images = canvas([(64, 90)], (64, 96))
    (view,) = Look(partial(short_edge_at, short_edge=64, long_edge=128, multiple=32), PLAIN)(images)
    assert torch.equal(view.pixels, images.pixels)


def test_pictures_before_the_canvas_are_preferred() -> None:
    large = canvas([(128, 120)], (128, 128))
    images = Images(torch.zeros(1, 3, 64, 64), ((64, 60),), ((128, 120),), unscaled=large)
    (view,) = Look(partial(square, side=128), PLAIN)(images)
    assert torch.equal(view.pixels[..., :120], large.pixels[..., :120])
    assert (view.picture_hw, view.canvas_hw) == ((64, 60), (64, 64))


def test_masks_of_the_same_grid_come_back_untouched() -> None:
    logits = torch.randn(2, 16, 24, generator=torch.Generator().manual_seed(0))
    view = View(torch.zeros(1, 3, 64, 96), shown_hw=(64, 96), picture_hw=(64, 96), canvas_hw=(64, 96))
    assert torch.equal(view.to_canvas(logits), logits)


@pytest.mark.parametrize(
    ("shown_hw", "input_hw", "cells_hw"),
    [((96, 128), (128, 128), (32, 32)), ((60, 80), (64, 96), (16, 24)), ((128, 128), (128, 128), (32, 32))],
)
def test_masks_come_back_to_their_place(
    shown_hw: tuple[int, int], input_hw: tuple[int, int], cells_hw: tuple[int, int]
) -> None:
    """A mask that is linear over the tower's input is linear over the picture, whatever the picture was resized to."""
    picture_hw, canvas_hw = (48, 64), (64, 96)
    view = View(torch.zeros(1, 3, *input_hw), shown_hw, picture_hw, canvas_hw)
    by_row, by_column = picture_hw[0] / shown_hw[0], picture_hw[1] / shown_hw[1]
    out = view.to_canvas(linear(*cells_hw, input_hw[0] / cells_hw[0], by_row, by_column))
    assert out.shape == (1, 16, 24)
    # Beyond the centre of the first and the last cell a mask has no values to go by.
    torch.testing.assert_close(out[:, 1:11, 1:15], linear(16, 24, 4, 1.0, 1.0)[:, 1:11, 1:15])


def test_the_picture_ends_one_cell_late() -> None:
    """Enlarged, masks reach the last pixel of the picture; further on they are empty."""
    view = View(torch.zeros(1, 3, 64, 64), shown_hw=(64, 64), picture_hw=(32, 34), canvas_hw=(64, 64))
    out = view.to_canvas(torch.full((1, 16, 16), 3.0))
    assert (out[0, 0] > 0).int().tolist() == [1] * 10 + [0] * 6  # 34 pixels are in nine cells
    assert (out[0, :, 0] > 0).int().tolist() == [1] * 9 + [0] * 7
    assert float(out.min()) == -10.0
    large = torch.nn.functional.interpolate(out[None], (64, 64), mode="bilinear")[0, 0]
    assert (large[:32, :34] == 3).all()


def test_canvases_that_are_no_multiple_of_four() -> None:
    view = View(torch.zeros(1, 3, 30, 30), shown_hw=(30, 30), picture_hw=(30, 30), canvas_hw=(30, 30))
    out = view.to_canvas(linear(15, 15, 2, 1.0, 0.0))
    assert out.shape == (1, 8, 8)
    torch.testing.assert_close(out[0, 1:7, 0], ((torch.arange(8) + 0.5) * 3.75)[1:7])


def test_the_masks_given_are_not_changed() -> None:
    logits = torch.ones(1, 16, 16)
    View(torch.zeros(1, 3, 64, 64), (64, 64), (32, 32), (64, 64)).to_canvas(logits)
    assert (logits == 1).all()

"""Crops: photo and labels stay together."""

import random

import numpy as np
import pytest
from PIL import Image

from lexiseg.train.augment import Cutout, crop_matrix, cut_out, paint_openings, paste, recolour, warp


@pytest.mark.parametrize("seed", range(5))
def test_labels_follow_the_photo(seed: int) -> None:
    labels = np.zeros((90, 120), np.uint8)
    labels[20:60, 30:80] = 1
    photo = Image.fromarray(np.repeat(labels[..., None] * 255, 3, -1))
    rng = random.Random(seed)
    matrix = crop_matrix(rng, 64, (90, 120), (0.6, 2.2), (50.0, 40.0))
    image = np.asarray(warp(photo, matrix, 64, 1, (0, 0, 0)), np.float32)[..., 0] / 255
    rows = np.asarray(warp(Image.fromarray(labels), matrix, 64, 4, 0))
    assert rows.shape == (16, 16)
    assert rows.any()  # the crop was centred on the square
    blocks = image.reshape(16, 4, 16, 4).mean((1, 3))
    clear = (blocks < 0.02) | (blocks > 0.98)
    assert ((blocks > 0.5) == rows)[clear].all()


def test_colour_keeps_size_and_is_repeatable() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8))
    for seed in range(30):
        once, again = (np.asarray(recolour(random.Random(seed), photo)) for _ in range(2))
        assert once.shape == (40, 50, 3)
        assert np.array_equal(once, again)


def test_paste_covers_photo_and_labels_alike() -> None:
    inside = np.zeros((40, 40), bool)
    inside[5:35, 8:30] = True
    red = Image.new("RGB", (40, 40), (255, 0, 0))
    cutout = cut_out(red, inside, row=7)
    assert isinstance(cutout, Cutout)
    assert cutout.image.size == (22, 30)
    for seed in range(10):
        image, rows = Image.new("RGB", (64, 64)), Image.new("L", (16, 16))
        paste(random.Random(seed), image, rows, 4, cutout)
        painted = np.asarray(image)[..., 0].reshape(16, 4, 16, 4).mean((1, 3)) / 255
        covered = np.asarray(rows) == 7
        assert covered[painted > 0.98].all()
        assert not covered[painted < 0.02].any()


def test_openings_stay_on_the_wall() -> None:
    wall = np.zeros((120, 160), bool)
    wall[20:100, 40:150] = True
    photo, rows = Image.new("RGB", (160, 120), (150, 140, 130)), Image.fromarray(wall.astype(np.uint8))
    found = set()
    for seed in range(20):
        image, labels = paint_openings(random.Random(seed), photo, rows, wall, window_row=50, door_row=60)
        values = np.asarray(labels)
        found |= set(np.unique(values).tolist())
        outside = ~wall
        assert (np.isin(values, (50, 60)) & outside).mean() < 0.02
        assert np.asarray(image).std() > 0 or not np.isin(values, (50, 60)).any()
    assert {50, 60} <= found
    assert np.asarray(rows).max() == 1  # the originals are untouched

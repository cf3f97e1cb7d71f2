import random

import numpy as np
import pytest

from lexiseg.train.semantic_crops import colour_jitter, semantic_crop, short_edges


def test_short_edges_of_the_released_training() -> None:
    edges = short_edges(448, range(3, 20))
    assert len(edges) == 17 and edges[0] == 134 and edges[-1] == 851


def test_image_and_ids_are_cut_alike() -> None:
    ids = np.arange(60, dtype=np.int64)[None].repeat(40, 0) // 20 + 1000
    image = np.stack([(ids - 1000) * 100] * 3, -1).astype(np.uint8)
    for seed in range(20):
        part, labels = semantic_crop(random.Random(seed), image, ids, 32, (40, 80), 200, jitter=False)
        assert part.shape == (32, 32, 3) and labels.shape == (32, 32) and labels.dtype == ids.dtype
        sure = np.abs(part[..., 0].astype(int) - (labels - 1000) * 100) < 20  # but at the seams
        assert sure.mean() > 0.9


def test_small_photos_are_not_padded_and_long_edges_are_limited() -> None:
    image, ids = np.zeros((10, 100, 3), np.uint8), np.zeros((10, 100), np.uint8)
    part, labels = semantic_crop(random.Random(0), image, ids, 64, (20,), 50, jitter=False)
    assert labels.shape == (5, 50) and part.shape == (5, 50, 3)


def test_jitter_draws_the_same_for_the_same_state_and_changes_colours() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    drawn = [colour_jitter(random.Random(seed), image) for seed in range(12)]
    assert np.array_equal(drawn[3], colour_jitter(random.Random(3), image))
    assert sum(not np.array_equal(one, image) for one in drawn) >= 9
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in drawn)


def test_brightness_stays_within_its_limits() -> None:
    class Fixed(random.Random):
        def random(self) -> float:
            self.calls = getattr(self, "calls", 0) + 1
            return 0.1 if self.calls == 1 else 0.9

        def uniform(self, a: float, b: float) -> float:
            return b

    image = np.full((2, 2, 3), 240, np.uint8)
    assert colour_jitter(Fixed(), image).tolist() == [[[255] * 3] * 2] * 2
    assert colour_jitter(Fixed(), image - 100).max() == pytest.approx(172)

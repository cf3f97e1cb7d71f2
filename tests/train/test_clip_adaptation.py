"""CLIP on masked regions: the loss, and masks that are known by their colour."""

import math

import numpy as np
import torch
from PIL import Image

from lexiseg.data.pairs import FILL, shown_part
from lexiseg.train.clip_adaptation import centre_view, contrastive_loss


def test_contrastive_loss_by_hand() -> None:
    # Similarities times 2: region 0 has (2, 0), region 1 (0, 2); the same in the other direction.
    rows = torch.eye(2)
    expected = -math.log(math.exp(2) / (math.exp(2) + 1))
    assert math.isclose(float(contrastive_loss(rows, rows, torch.tensor(2.0))), expected, rel_tol=1e-6)
    # Two regions with one word: each is the other's negative.
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert math.isclose(float(contrastive_loss(same, same, torch.tensor(50.0))), math.log(2), rel_tol=1e-6)


def test_the_loss_learns_from_both_sides() -> None:
    images, words = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    contrastive_loss(images, words, torch.tensor(1.0)).backward()
    assert images.grad is not None and words.grad is not None and images.grad.any() and words.grad.any()


def test_background_is_exactly_one_colour() -> None:
    region = np.full((2, 3, 3), FILL, np.uint8)
    region[0, 0] = (124, 116, 104)
    region[1, 2] = 0
    assert shown_part(region).tolist() == [[True, False, False], [False, False, True]]


def test_the_view_is_the_middle_and_keeps_the_colour_of_the_background() -> None:
    region = np.full((20, 41, 3), FILL, np.uint8)
    region[:, 15:25] = 255
    view = centre_view(Image.fromarray(region), 10)
    assert view.shape == (10, 10, 3)
    shown = shown_part(view)
    assert shown.any(0).tolist()[3:7] == [True] * 4 and not shown[:, 0].any() and not shown[:, -1].any()
    assert np.array_equal(centre_view(Image.fromarray(region[:20, :20]), 20), region[:20, :20])

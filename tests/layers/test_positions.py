import math

import torch

from lexiseg.layers.positions import grid_centres, sine_positions


def test_code_of_a_tiny_map_by_hand() -> None:
    code = sine_positions((1, 2), 8)
    assert code.shape == (1, 2, 8)
    # One row: y = 2 pi for it. Two columns: x = pi and 2 pi. Periods 1, 1, 100, 100.
    y, x = 2 * math.pi, math.pi
    expected = [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
    expected += [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
    torch.testing.assert_close(code[0, 0], torch.tensor(expected), rtol=0, atol=2e-5)


def test_axes_are_separate() -> None:
    code = sine_positions((3, 5), 16)
    assert torch.equal(code[:, 0, :8], code[:, 4, :8])  # the first half tells y alone
    assert torch.equal(code[0, :, 8:], code[2, :, 8:])  # the second half tells x alone


def test_centres_of_two_maps() -> None:
    centres = grid_centres([(1, 2), (2, 1)])
    expected = [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
    assert torch.equal(centres, torch.tensor(expected))

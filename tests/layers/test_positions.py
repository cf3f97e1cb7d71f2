import math

import torch

from lexiseg.layers.positions import grid_centres, rotary_waves, rotate, sine_positions


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


def test_rotary_waves_by_hand() -> None:
    """Two frequencies per axis, 1 and 1/100; a map of 2 x 4 is stretched to 16 x 16."""
    cosines, sines = rotary_waves((2, 4), 8)
    row, column = 8.0, 12.0  # of the last cell
    angles = torch.tensor([row, row, row / 100, row / 100, column, column, column / 100, column / 100])
    torch.testing.assert_close(cosines[7], angles.cos())
    torch.testing.assert_close(sines[7], angles.sin())
    assert torch.equal(cosines[0], torch.ones(8))


def test_rotation_keeps_lengths_and_tells_distances() -> None:
    waves = rotary_waves((4, 4), 8)
    query, key = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(query.expand(16, 8), waves), rotate(key.expand(16, 8), waves)
    torch.testing.assert_close(turned[0].norm(dim=-1), query.norm().expand(16))
    products = turned[0] @ turned[1].T
    torch.testing.assert_close(products[0, 5], products[10, 15])  # one down, one right
    torch.testing.assert_close(
        rotate(torch.tensor([[1.0, 0.0]]), (torch.zeros(1, 2), torch.ones(1, 2)))[0, 1], torch.tensor(1.0)
    )

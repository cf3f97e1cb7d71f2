import pytest
import torch

from lexiseg.layers.deformable_attention import (
    DeformableAttention,
    DeformableEncoder,
    sample_by_gather,
    sample_by_grid,
)
from lexiseg.layers.positions import grid_centres

SIZES = [(2, 3), (4, 5), (7, 9)]
TOKENS = sum(h * w for h, w in SIZES)


def random_case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, TOKENS, 4, 6, generator=generator, dtype=dtype)
    # Well beyond the border on all sides, where half of a point's cells or all of them are missing.
    locations = torch.rand(2, 11, 4, 3, 5, 2, generator=generator, dtype=dtype) * 1.6 - 0.3
    weights = torch.rand(2, 11, 4, 3, 5, generator=generator, dtype=dtype)
    return value, locations, weights


def test_both_forms_of_the_sampling_agree() -> None:
    value, locations, weights = random_case()
    gathered = sample_by_gather(value, SIZES, locations, weights)
    assert gathered.shape == (2, 11, 24)
    torch.testing.assert_close(gathered, sample_by_grid(value, SIZES, locations, weights), rtol=0, atol=1e-12)


def test_their_gradients_agree() -> None:
    gradients = []
    for sample in (sample_by_gather, sample_by_grid):
        inputs = [x.requires_grad_() for x in random_case()]
        sample(inputs[0], SIZES, *inputs[1:]).square().sum().backward()
        gradients.append([x.grad for x in inputs])
    for gathered, gridded in zip(*gradients, strict=True):
        torch.testing.assert_close(gathered, gridded, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sample", [sample_by_gather, sample_by_grid])
def test_sampling_by_hand(sample) -> None:
    value = torch.tensor([10.0, 20.0, 30.0, 40.0]).view(1, 4, 1, 1)  # one map of 2 x 2
    centre_of_cell, middle, corner, far = [0.25, 0.25], [0.5, 0.5], [0.0, 0.0], [3.0, 0.5]
    locations = torch.tensor([centre_of_cell, middle, corner, far]).view(1, 4, 1, 1, 1, 2)
    out = sample(value, [(2, 2)], locations, torch.ones(1, 4, 1, 1, 1))
    # The corner is shared with three cells outside, which are zero.
    assert out.flatten().tolist() == pytest.approx([10, 25, 2.5, 0])


def test_a_nan_place_shows_in_the_result() -> None:
    value, locations, weights = random_case(torch.float32)
    locations[0, 0] = torch.nan
    out = sample_by_gather(value, SIZES, locations, weights)
    assert out[0, 0].isnan().all()
    assert not out[0, 1:].isnan().any()


def test_fresh_attention_looks_into_the_compass_directions() -> None:
    attention = DeformableAttention(width=16, heads=8, levels=2, points=3)
    offsets = attention.sampling_offsets.bias.view(8, 2, 3, 2)
    assert torch.equal(offsets[:, 0], offsets[:, 1])
    torch.testing.assert_close(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0]]))
    torch.testing.assert_close(offsets[1, 0], torch.tensor([[1.0, 1], [2, 2], [3, 3]]))  # the larger component is 1
    torch.testing.assert_close(offsets[6, 0], torch.tensor([[0.0, -1], [0, -2], [0, -3]]), rtol=0, atol=1e-6)
    for zero in (attention.sampling_offsets.weight, attention.attention_weights.weight, attention.output_proj.bias):
        assert not zero.any()


def test_encoder_keeps_the_shape_and_trains_every_parameter() -> None:
    encoder = DeformableEncoder(width=16, heads=4, levels=3, points=2, ffn_width=24, num_layers=2)
    for layer in encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
    tokens = torch.randn(2, TOKENS, 16)
    out = encoder(tokens, torch.randn(TOKENS, 16), SIZES)
    assert out.shape == tokens.shape
    out.square().mean().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_images_of_a_batch_do_not_mix() -> None:
    attention = DeformableAttention(width=16, heads=4, levels=3, points=2)
    tokens = torch.randn(2, TOKENS, 16)
    centres = grid_centres(SIZES)
    together = attention(tokens, tokens, centres, SIZES)
    alone = attention(tokens[1:], tokens[1:], centres, SIZES)
    torch.testing.assert_close(together[1:], alone)


def test_width_that_the_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="not a multiple of 3 heads"):
        DeformableAttention(width=16, heads=3, levels=3, points=2)

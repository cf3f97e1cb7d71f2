import pytest
import torch
from torch import nn

from lexiseg.layers.attention import CrossAttentionBlock, MultiheadAttention, SelfAttentionBlock
from lexiseg.layers.mlp import MLP, FeedForwardBlock


@pytest.mark.parametrize("fused", [True, False])
def test_equals_torch_with_the_same_parameters(fused: bool) -> None:
    ours, theirs = MultiheadAttention(16, 4, fused=fused), nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    visible = torch.rand(2, 5, 7) > 0.5
    visible[..., 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~visible.repeat_interleave(4, dim=0))
    torch.testing.assert_close(ours(query, key, value, visible), expected, rtol=1e-5, atol=1e-6)


def test_a_query_that_sees_one_place_returns_its_value() -> None:
    attention = MultiheadAttention(8, 2)
    value = torch.randn(1, 3, 8)
    visible = torch.tensor([[[False, True, False]]])
    out = attention(torch.randn(1, 1, 8), torch.randn(1, 3, 8), value, visible)
    one = attention.out_proj(nn.functional.linear(value[:, 1:2], attention.in_proj_weight[16:]))
    torch.testing.assert_close(out, one)


def test_blocks_are_normalised_after_the_sum() -> None:
    x, positions = torch.randn(2, 5, 16), torch.randn(5, 16)
    memory = torch.randn(2, 7, 16)
    for out in (
        CrossAttentionBlock(16, 4)(x, positions, memory, memory),
        SelfAttentionBlock(16, 4)(x, positions),
        FeedForwardBlock(16, 32)(x),
    ):
        assert out.shape == x.shape
        torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5), rtol=0, atol=1e-5)


def test_mlp_is_linear_at_the_end() -> None:
    mlp = MLP(4, 8, 3, 3)
    assert [tuple(layer.weight.shape) for layer in mlp.layers] == [(8, 4), (8, 8), (3, 8)]
    assert (mlp(torch.randn(100, 4)) < 0).any()


def test_width_that_the_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="not a multiple of 5 heads"):
        MultiheadAttention(16, 5)

"""Every embedder through the same checks, and each by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.projection import Projection
from lexiseg.regions.attention_pool import AttentionPool, MaskedAttention2d
from lexiseg.regions.grown import GrownUntilSeen, grow
from lexiseg.regions.mask_adapter import MaskAdapter, MaskAdapterPool
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.types import Features, Images

CHANNELS, WIDTH = 8, 5


def mask_pool() -> MaskPool:
    return MaskPool(Projection(CHANNELS, WIDTH, norm_eps=1e-6, hidden=6))


def attention_pool() -> AttentionPool:
    return AttentionPool(MaskedAttention2d(CHANNELS, num_heads=2, out_dim=WIDTH, grid_size=3))


def mask_adapter() -> MaskAdapterPool:
    adapter = MaskAdapter(WIDTH, width=12, mask_width=8, num_maps=3)
    return MaskAdapterPool(adapter, Projection(CHANNELS, WIDTH, norm_eps=1e-6, hidden=6))


def grown() -> GrownUntilSeen:
    return GrownUntilSeen(mask_pool())


EMBEDDERS = pytest.mark.parametrize("make", [mask_pool, attention_pool, mask_adapter, grown])


def images_for(batch: int, h: int = 4, w: int = 6) -> Images:
    sizes = ((32 * h, 32 * w),) * batch
    return Images(torch.zeros(batch, 3, 32 * h, 32 * w), sizes, sizes)


def example(batch: int = 2, queries: int = 3, scale: int = 8) -> tuple[Features, Tensor]:
    torch.manual_seed(1)
    dense = torch.randn(batch, CHANNELS, 4, 6)
    blobs = torch.randn(batch, queries, 2, 3)
    blobs[:, :, 0, 0] = 3  # none empty
    blobs = functional.interpolate(blobs, size=(4 * scale, 6 * scale), mode="bilinear")
    return Features(maps=(), dense=dense), blobs


@EMBEDDERS
def test_shapes_and_empty_masks(make) -> None:
    embedder = make().eval()
    features, mask_logits = example()
    mask_logits[0, 1] = -1
    mask_logits[1] = -1  # no valid row at all
    regions = embedder(images_for(2), features, mask_logits)
    assert regions.embeds.shape == (2, 3, WIDTH)
    assert regions.valid.tolist() == [[True, False, True], [False] * 3]
    assert torch.isfinite(regions.embeds).all()


@EMBEDDERS
def test_a_logit_of_zero_is_outside(make) -> None:
    features, _ = example(1)
    regions = make()(images_for(1), features, torch.zeros(1, 2, 4, 6))
    assert not regions.valid.any()


@EMBEDDERS
def test_order_of_proposals_and_other_images_do_not_matter(make) -> None:
    embedder = make().eval()
    features, mask_logits = example()
    both = embedder(images_for(2), features, mask_logits).embeds
    turned = embedder(images_for(2), features, mask_logits.flip(1)).embeds
    torch.testing.assert_close(turned, both.flip(1))
    alone = embedder(images_for(1), Features(maps=(), dense=features.dense[1:]), mask_logits[1:]).embeds
    torch.testing.assert_close(alone, both[1:])


@EMBEDDERS
def test_only_the_sign_of_a_mask_counts_and_gradients_reach_the_map(make) -> None:
    embedder = make()
    features, mask_logits = example(scale=1)
    first = embedder(images_for(2), features, mask_logits).embeds
    torch.testing.assert_close(embedder(images_for(2), features, mask_logits * 7).embeds, first)
    dense = features.dense.requires_grad_()
    mask_logits.requires_grad_()
    mask_logits.data[0, 0] = -1  # an empty mask must not spoil the gradient either
    embedder(images_for(2), Features(maps=(), dense=dense), mask_logits).embeds.square().sum().backward()
    assert mask_logits.grad is None
    assert torch.isfinite(dense.grad).all() and dense.grad.abs().sum() > 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in embedder.parameters())


def test_mask_pool_by_hand() -> None:
    dense = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(1, 2, 1, 1)
    dense[:, 1] *= 10
    mask_logits = torch.tensor([[[[1.0, 1.0], [-1.0, 1.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
    regions = MaskPool(nn.Identity())(images_for(1, 2, 2), Features(maps=(), dense=dense), mask_logits)
    torch.testing.assert_close(regions.embeds, torch.tensor([[[4 / 3, 40 / 3], [0.0, 0.0]]]))


def test_masks_are_resized_without_antialiasing() -> None:
    """Of an 8 x 8 block only the middle 2 x 2 decides."""
    mask_logits = torch.full((1, 2, 8, 8), -1.0)
    mask_logits[:, 0, 3:5, 3:5] = 0.1
    mask_logits[:, 1] = 1.0
    mask_logits[:, 1, 3:5, 3:5] = -0.1
    features = Features(maps=(), dense=torch.ones(1, CHANNELS, 1, 1))
    assert mask_pool()(images_for(1, 1, 1), features, mask_logits).valid.tolist() == [[True, False]]


def test_attention_pool_as_torch_does_it() -> None:
    """PyTorch's multi-head attention with a mask, one query per region."""
    pool = MaskedAttention2d(CHANNELS, num_heads=2, out_dim=WIDTH, grid_size=3)
    features, mask_logits = example(scale=1)
    grid = pool.positional_embedding[1:].T.reshape(1, CHANNELS, 3, 3)
    grid = functional.interpolate(grid, size=(4, 6), mode="bilinear", align_corners=False)
    tokens = (features.dense + grid).flatten(2).permute(2, 0, 1)  # [N, B, C]
    query = (features.dense.mean((-2, -1)) + pool.positional_embedding[0]).expand(3, -1, -1)  # [Q, B, C]
    expected, _ = functional.multi_head_attention_forward(
        query,
        tokens,
        tokens,
        CHANNELS,
        2,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        attn_mask=(mask_logits <= 0).flatten(2).repeat_interleave(2, dim=0),
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    regions = AttentionPool(pool)(images_for(2), features, mask_logits)
    assert regions.valid.all()
    torch.testing.assert_close(regions.embeds, expected.transpose(0, 1), rtol=1e-4, atol=1e-5)


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="8 channels cannot be split among 3 heads"):
        MaskedAttention2d(CHANNELS, num_heads=3, out_dim=WIDTH, grid_size=3)


def test_the_whole_picture_is_shown_where_it_is_asked_for() -> None:
    features, mask_logits = example()
    projection = Projection(CHANNELS, WIDTH, norm_eps=1e-6)
    assert MaskPool(projection)(images_for(2), features, mask_logits).dense_embeds is None
    by_position, by_memory = (
        MaskPool(projection, order)(images_for(2), features, mask_logits).dense_embeds
        for order in ("position", "memory")
    )
    torch.testing.assert_close(by_position[1, :, 2, 3], projection(features.dense[1, :, 2, 3]))
    row = features.dense[1].flatten()[15 * CHANNELS : 16 * CHANNELS]  # position 2, 3 of 4 x 6 is the 15th
    torch.testing.assert_close(by_memory[1, :, 2, 3], projection(row))


@pytest.mark.parametrize("make", [mask_pool, attention_pool])
@pytest.mark.parametrize("scale", [8, 32])
def test_masks_between_the_cells_are_grown_until_they_are_seen(make, scale: int) -> None:
    """scale: mask cells per cell of the map, 8 for masks at stride 4."""
    features, mask_logits = example(scale=scale)
    mask_logits[:, 1:] = -10
    mask_logits[:, 1, -1, -1] = 10  # one pixel, in a corner of the last cell
    embedder = make().eval()
    grown = GrownUntilSeen(embedder)
    plain, regions = embedder(images_for(2), features, mask_logits), grown(images_for(2), features, mask_logits)
    assert plain.valid.tolist() == [[True, False, False]] * 2
    assert regions.valid.tolist() == [[True, True, False]] * 2
    assert torch.equal(regions.embeds[:, [0, 2]], plain.embeds[:, [0, 2]])
    last_cell = torch.full_like(mask_logits[:, :1], -10)
    last_cell[..., -scale:, -scale:] = 10
    expected = embedder(images_for(2), features, last_cell).embeds[:, 0]
    torch.testing.assert_close(regions.embeds[:, 1], expected)


def test_growing_is_by_the_largest_value_around() -> None:
    logits = torch.full((1, 1, 7, 9), -3.0)
    logits[..., 3, 4] = 5
    assert (grow(logits, 2)[0, 0] == 5).nonzero().tolist() == [[r, c] for r in range(1, 6) for c in range(2, 7)]

"""The classifiers of MaskCLIP++: every one through the same checks, and each against its long form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.eva import EvaTrunk
from lexiseg.clip.projection import Projection
from lexiseg.geometry import TowerView
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.regions.masked_attention import OUTSIDE, SoftAttentionPool, SoftMaskedAttention2d, soft_bias
from lexiseg.regions.soft_mask_pool import SoftMaskPool
from lexiseg.types import Features, Images
from tests.eva_towers import eva

CHANNELS, WIDTH = 8, 16
VIEW = TowerView("short", 56, 14)


class Trunk(nn.Module):
    """A convolution, at stride 14."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 14, 14)

    def forward(self, images: Images) -> Features:
        dense = self.conv(images.pixels / 255)
        return Features(maps=(), dense=dense)


def soft_mask_pool() -> SoftMaskPool:
    return SoftMaskPool(VIEW, Trunk(), Projection(CHANNELS, WIDTH, norm_eps=1e-6, hidden=6))


def soft_attention_pool() -> SoftAttentionPool:
    return SoftAttentionPool(VIEW, Trunk(), SoftMaskedAttention2d(CHANNELS, num_heads=2, out_dim=WIDTH, grid_size=3))


def mask_tokens(second: bool = True) -> MaskTokens:
    return MaskTokens(VIEW, EvaTrunk(eva(second), frozen=False), first_block=2)


def eva01_mask_tokens() -> MaskTokens:
    return mask_tokens(second=False)


Make = Callable[[], nn.Module]
CLASSIFIERS = pytest.mark.parametrize("make", [soft_mask_pool, soft_attention_pool, mask_tokens, eva01_mask_tokens])
SIZES = ((96, 140), (112, 112))


def built(make: Make) -> nn.Module:
    torch.manual_seed(0)
    embedder = make()
    with torch.no_grad():
        for name, parameter in embedder.named_parameters():
            if not name.endswith("mask_logit_scale"):
                parameter.normal_(std=0.2)
    return embedder.eval()


def example(queries: int = 3) -> tuple[Images, Tensor]:
    """Two pictures on one canvas, masks [2, Q, 28, 35] of it, none empty."""
    torch.manual_seed(1)
    pixels = torch.zeros(2, 3, 112, 140)
    for row, (h, w) in zip(pixels, SIZES, strict=True):
        row[:, :h, :w] = 255 * torch.rand(3, h, w)
    blobs = 4 * torch.randn(2, queries, 4, 5)
    blobs[:, :, 0, 0] = 3
    return Images(pixels, SIZES, SIZES), functional.interpolate(blobs, size=(28, 35), mode="bilinear")


def one(images: Images, index: int) -> Images:
    """A picture of a batch, on the same canvas."""
    part = slice(index, index + 1)
    return Images(images.pixels[part], images.sizes_hw[part], images.original_hw[part])


@CLASSIFIERS
def test_shapes_and_empty_masks(make: Make) -> None:
    embedder = built(make)
    images, mask_logits = example()
    mask_logits[0, 1] = -10  # as hard masks say it
    mask_logits[1] = -10  # no valid row at all
    regions = embedder(images, None, mask_logits)
    assert regions.embeds.shape == (2, 3, WIDTH)
    assert regions.valid.tolist() == [[True, False, True], [False] * 3]
    assert torch.isfinite(regions.embeds).all()
    assert embedder(images, None, mask_logits[:, :0]).embeds.shape == (2, 0, WIDTH)


@CLASSIFIERS
def test_order_of_proposals_and_other_images_do_not_matter(make: Make) -> None:
    embedder = built(make)
    images, mask_logits = example()
    both = embedder(images, None, mask_logits).embeds
    torch.testing.assert_close(embedder(images, None, mask_logits.flip(1)).embeds, both.flip(1))
    turned = Images(images.pixels.flip(0), images.sizes_hw[::-1], images.original_hw[::-1])
    torch.testing.assert_close(embedder(turned, None, mask_logits.flip(0)).embeds, both.flip(0))
    # In a batch a picture is padded to the largest, so alone it is seen without that.
    wide = Images(images.pixels[:1], SIZES[:1], SIZES[:1])
    alike = Images(images.pixels[[0, 0]], SIZES[:1] * 2, SIZES[:1] * 2)
    alone = embedder(wide, None, mask_logits[:1]).embeds
    torch.testing.assert_close(embedder(alike, None, mask_logits[[0, 1]]).embeds[:1], alone)


@CLASSIFIERS
def test_masks_are_soft_and_gradients_reach_the_tower_alone(make: Make) -> None:
    embedder = built(make).requires_grad_(True)
    images, mask_logits = example()
    mask_logits[0, 0] = -10
    mask_logits.requires_grad_()
    first = embedder(images, None, mask_logits).embeds
    assert not torch.allclose(embedder(images, None, mask_logits * 0.3).embeds[1], first[1], atol=1e-6)
    first.square().sum().backward()
    assert mask_logits.grad is None
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_soft_bias_by_hand() -> None:
    masks = torch.tensor([[[[0.8, 0.5, 0.3]], [[0.0, 0.0, 0.0]]]])
    bias = soft_bias(masks, torch.tensor([0.0, 1.0]).log())  # heads with weights 0 and 1
    torch.testing.assert_close(bias[0, 1, 0], torch.tensor([0.8, 0.5, OUTSIDE]))
    torch.testing.assert_close(bias[0, 0, 0], torch.tensor([0.0, 0.0, OUTSIDE]))
    assert (bias[0, :, 1] == OUTSIDE).all()  # the same everywhere: an empty mask looks everywhere


@pytest.mark.parametrize("second", [False, True], ids=["eva01", "eva02"])
def test_mask_tokens_are_one_attention_over_all_tokens(second: bool) -> None:
    """The form of the released code: mask tokens in front, and a bias that hides them from everybody."""
    embedder = built(lambda: mask_tokens(second))
    embedder.mask_logit_scale.data = torch.randn(2, 4)
    images, mask_logits = example()
    images = one(images, 0)
    view, count = embedder.view(images), 3
    grid_hw = embedder.grid_of(view)
    masks = embedder.view.masks(mask_logits[:1].sigmoid(), images, view, grid_hw)
    trunk = embedder.trunk
    tokens, _ = trunk.enter(view)
    waves = trunk.waves(grid_hw)
    for index in range(embedder.first_block):
        tokens = trunk.block(index, tokens, waves)
    tokens = torch.cat((tokens[:, :1].expand(-1, count, -1), tokens), dim=1)
    for index in range(embedder.first_block, trunk.depth):
        bias = torch.zeros(1, 4, tokens.shape[1], tokens.shape[1])
        bias[..., :count] = -torch.inf  # nobody sees a mask token
        bias[..., :count, count] = -torch.inf  # mask tokens do not see the class token
        flat = masks.flatten(2)[0]
        inside = flat > flat.amax(1, keepdim=True) / 2
        scale = embedder.mask_logit_scale[trunk.depth - 1 - index].exp()[:, None, None]
        bias[0, :, :count, count + 1 :] = torch.where(inside, scale * flat, -100.0)
        query, key, value = trunk.attention(index, tokens[:, count:], waves)
        own = (trunk.trunk.blocks[index].attn, trunk.trunk.blocks[index].norm1(tokens[:, :count]))
        query, key, value = (
            torch.cat((trunk._project(own[0], part, own[1]), rest), dim=2)
            for part, rest in (("q", query), ("k", key), ("v", value))
        )
        tokens = trunk.attend(index, tokens, query, key, value, bias)
    torch.testing.assert_close(embedder.look(view, masks), trunk.leave(tokens[:, :count]), rtol=1e-4, atol=1e-5)


def test_mask_tokens_need_a_block() -> None:
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        MaskTokens(VIEW, EvaTrunk(eva(True)), first_block=4)


def test_soft_mask_pool_by_hand() -> None:
    embedder = SoftMaskPool(TowerView("none", 0, 1), nn.Identity(), nn.Identity())
    embedder.trunk.forward = lambda images: Features(maps=(), dense=images.pixels)  # type: ignore[method-assign]
    pixels = torch.arange(12.0).reshape(1, 3, 2, 2)
    logits = torch.tensor([[[[0.0, 0.0], [-50.0, -50.0]], [[-50.0, 50.0], [-50.0, 50.0]]]])
    regions = embedder(Images(pixels, ((2, 2),), ((2, 2),)), None, logits)
    torch.testing.assert_close(regions.embeds[0, 0], torch.tensor([0.5, 4.5, 8.5]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(regions.embeds[0, 1], torch.tensor([2.0, 6.0, 10.0]), rtol=1e-5, atol=1e-4)
    assert regions.dense_embeds is not None and torch.equal(regions.dense_embeds, pixels)


def test_attention_pool_as_torch_does_it() -> None:
    """PyTorch's multi-head attention with an additive mask, and positions resized with their corners aligned."""
    embedder = built(soft_attention_pool)
    pool = embedder.pool
    features, masks = torch.randn(1, CHANNELS, 4, 6), torch.rand(1, 3, 4, 6)
    grid = pool.positional_embedding[1:].T.reshape(1, CHANNELS, 3, 3)
    positions = functional.interpolate(grid, size=(4, 6), mode="bicubic", align_corners=True)
    assert torch.equal(pool.positions((3, 3)), grid)
    tokens = (features + positions).flatten(2).permute(2, 0, 1)
    query = (features.mean((-2, -1)) + pool.positional_embedding[0]).expand(3, -1, -1)
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
        attn_mask=soft_bias(masks, pool.mask_logit_scale)[0],
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    torch.testing.assert_close(pool(features, masks), expected.transpose(0, 1), rtol=1e-4, atol=1e-5)

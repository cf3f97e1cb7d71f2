"""A class token per mask, against one attention over all tokens with a bias for every pair."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.clip.vit import VisionTransformer
from lexiseg.geometry import resize
from lexiseg.regions.mask_bias import MaskBiasedAttention
from lexiseg.types import Images, Regions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from mask_bias import with_full_bias  # the program that measures both forms

SMALL = {"width": 32, "layers": 5, "patch_size": 8, "image_size": 32, "head_width": 8}
SIDE, FIRST = 48, 2


def build(**options) -> MaskBiasedAttention:
    torch.manual_seed(0)
    tower = VisionTransformer(16, **SMALL)
    for block in tower.blocks:
        torch.nn.init.normal_(block.attn.in_proj_bias)
    return MaskBiasedAttention(tower, **{"side": SIDE, "first_block": FIRST, **options}).eval()


def example(queries: int = 7) -> tuple[Images, Tensor]:
    torch.manual_seed(1)
    sizes = ((64, 96), (60, 90))
    images = Images(torch.rand(2, 3, 64, 96) * 255, sizes, sizes)
    masks = functional.interpolate(torch.randn(2, queries, 4, 6) * 3, size=(16, 24), mode="bilinear")
    return images, masks


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 7, 60])
def test_the_same_as_with_the_full_bias(queries: int) -> None:
    embedder = build()
    images, masks = example(queries)
    masks[0, 0] = -5  # sees itself alone
    allowed, tokens = embedder.allowed(images, masks), embedder.shared(embedder.view(images))
    regions: Regions = embedder(images, None, masks)
    torch.testing.assert_close(regions.embeds, with_full_bias(embedder, tokens, allowed), rtol=1e-5, atol=1e-5)
    assert regions.valid[0, 0].item() is False and torch.isfinite(regions.embeds).all()


@torch.no_grad()
def test_the_whole_picture_is_the_plain_tower() -> None:
    embedder = build()
    images, _ = example()
    view = embedder.view(images)
    assert view.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(embedder.whole(embedder.shared(view)), embedder.tower(view), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_any_number_of_masks_and_their_order() -> None:
    embedder = build()
    images, masks = example()
    both = embedder(images, None, masks).embeds
    torch.testing.assert_close(embedder(images, None, masks.flip(1)).embeds, both.flip(1))
    torch.testing.assert_close(embedder(images, None, masks[:, 2:3]).embeds, both[:, 2:3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_pictures_of_the_batch_do_not_matter() -> None:
    """The smaller picture on a canvas of its own: its frame is that of the padding it would have alone."""
    embedder = build()
    images, masks = example()
    masks = resize(masks, (64, 96))
    canvas = torch.zeros(2, 3, 96, 160)
    canvas[:, :, :64, :96] = images.pixels
    wide = Images(canvas, images.sizes_hw, images.original_hw)
    on_canvas = functional.pad(masks, (0, 64, 0, 32), value=-9.0)
    expected = embedder(images, None, masks)
    torch.testing.assert_close(embedder(wide, None, on_canvas).embeds, expected.embeds, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_a_mask_shows_decides() -> None:
    """A patch outside of a mask changes its embedding only through other patches: not in the last block alone."""
    embedder = build(first_block=4)
    images, _ = example()
    masks = torch.full((2, 2, 64, 96), -9.0)
    masks[:, 0, :, :48] = masks[:, 1, :, 48:] = 9.0
    left, right = embedder(images, None, masks).embeds.unbind(1)
    assert not torch.allclose(left, right, atol=1e-3)
    allowed = embedder.allowed(images, masks)
    assert torch.equal(allowed[0, 0], ~allowed[0, 1])
    same = embedder.regions(embedder.shared(embedder.view(images)), torch.ones(2, 3, 36, dtype=torch.bool))
    torch.testing.assert_close(same[:, 0], same[:, 2])


@torch.no_grad()
def test_masks_on_the_patches_as_three_steps_have_them() -> None:
    images, masks = example()
    for frame in ("padded", "picture"):
        embedder = build(mask_frame=frame)
        found = embedder.masks(images, masks)
        for index, size in enumerate(images.sizes_hw):
            height, width = size if frame == "picture" else (64, 96)
            probs = resize(masks[index : index + 1], images.canvas_hw).sigmoid()[..., :height, :width]
            torch.testing.assert_close(found[index : index + 1], resize(probs, (6, 6)), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_half_is_inside() -> None:
    embedder = build()
    images, masks = example()
    assert embedder.allowed(images, torch.zeros_like(masks)).all()
    assert not embedder.allowed(images, torch.full_like(masks, -1e-3)).any()


@torch.no_grad()
def test_when_a_mask_counts_as_seen() -> None:
    """One pixel of a picture is between the patches; one of the padding is nowhere."""
    images, _ = example()
    masks = torch.full((2, 2, 64, 96), -9.0)
    masks[:, 0, 1, 1] = 9.0
    masks[:, 1, 61:] = 9.0
    by_patch, by_pixel = build()(images, None, masks).valid, build(seen_by="pixel")(images, None, masks).valid
    assert by_patch.tolist() == [[False, False], [False, False]]
    assert by_pixel.tolist() == [[True, True], [True, False]]


def test_gradients_reach_the_tower_and_never_the_masks() -> None:
    embedder = build()
    images, masks = example()
    masks.requires_grad_()
    masks.data[0, 0] = -5
    embedder(images, None, masks).embeds.square().sum().backward()
    assert masks.grad is None
    for name, parameter in embedder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="has blocks 0 to 4"):
        build(first_block=5)
    with pytest.raises(ValueError, match="no patch"):
        build(side=7)

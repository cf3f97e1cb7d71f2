"""Regions cut out and blanked: boxes, colours and sizes by hand; rows, batches and gradients."""

import pytest
import torch
from torch import nn

from lexiseg.layers.normalise import CLIP_MEAN
from lexiseg.regions.crops import UNIT_MEAN, UNIT_STD, MaskedCrops, boxes_of, expand_boxes
from lexiseg.types import Images

SIZE = (24, 32)


class Tower(nn.Module):
    """Tells what it was shown: the mean colour of the shown part, and how much is shown."""

    embed_dim = 4
    image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.gain = nn.Parameter(torch.ones(()))

    def keep(self, masks: torch.Tensor) -> torch.Tensor:
        return masks > 0

    def forward(self, pixels: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(pixels))
        shown = keep[:, None].float()
        mean = (pixels * shown).sum((2, 3)) / shown.sum((2, 3))
        return self.gain * torch.cat((mean, shown.mean((1, 2, 3))[:, None]), dim=1)


def pictures(batch: int = 2) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(batch, 3, *SIZE, generator=generator) * 255).round()
    sizes = tuple((SIZE[0] - 4 * index, SIZE[1]) for index in range(batch))
    for row, (height, _) in zip(pixels, sizes, strict=True):
        row[:, height:] = 0
    return Images(pixels, sizes, sizes)


def masks(batch: int = 2, count: int = 5) -> torch.Tensor:
    """Logits on a grid of half the canvas; the third of each picture is empty."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(batch, count, SIZE[0] // 2, SIZE[1] // 2, generator=generator) * 4
    logits[:, 2] = -9
    return logits


def test_boxes_by_hand() -> None:
    inside = torch.zeros(3, 5, 7, dtype=torch.bool)
    inside[0, 1, 2] = inside[0, 3, 5] = True
    inside[1] = True
    inside[2, 4, 6] = True
    assert boxes_of(inside).tolist() == [[2, 1, 6, 4], [0, 0, 7, 5], [6, 4, 7, 5]]


def test_expanded_boxes_by_hand() -> None:
    # 10 wide about 15, 4 high about 4: 14 wide from 8 to 22, 5.6 high from 1.2 to 6.8, truncated.
    assert expand_boxes(torch.tensor([[10, 2, 20, 6]]), 1.4, 30, 40).tolist() == [[8, 1, 22, 6]]
    assert expand_boxes(torch.tensor([[0, 2, 20, 30]]), 2.0, 30, 25).tolist() == [[0, 0, 25, 30]]
    boxes = torch.tensor([[1, 2, 3, 4]])
    assert expand_boxes(boxes, 1.0, 30, 40) is boxes


@torch.no_grad()
def test_what_is_blanked_is_the_mean_colour_and_the_box_fills_the_square() -> None:
    images, embedder = pictures(1), MaskedCrops(Tower())
    logits = torch.full((1, 1, *SIZE), -9.0)
    logits[0, 0, 3:11, 5:13] = 9  # a box of 8 x 8, the side of the tower: nothing is resized
    logits[0, 0, 3, 5] = logits[0, 0, 4, 6] = -9
    ((row, crop),) = embedder.crops_of(images, 0, logits[0])
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (UNIT_MEAN, UNIT_STD))
    expected = (images.pixels[0, :, 3:11, 5:13] - mean) / std
    expected[:, 0, 0] = expected[:, 1, 1] = ((torch.tensor(CLIP_MEAN)[:, None, None] - mean) / std)[:, 0, 0]
    assert row == 0
    torch.testing.assert_close(crop.pixels, expected, rtol=0, atol=1e-5)
    assert crop.mask.dtype == torch.bool and crop.mask.sum() == 62 and not crop.mask[0, 0]
    ((_, black),) = MaskedCrops(Tower(), fill="zero").crops_of(images, 0, logits[0])
    torch.testing.assert_close(black.pixels[:, 0, 0], (-mean / std)[:, 0, 0])


@torch.no_grad()
def test_matting_blends_by_the_soft_mask() -> None:
    images = pictures(1)
    logits = torch.full((1, 1, *SIZE), 2.0)
    ((_, crop),) = MaskedCrops(Tower(), matting=True).crops_of(images, 0, logits[0])
    torch.testing.assert_close(crop.mask, torch.full((8, 8), 2.0).sigmoid())
    ((_, hard),) = MaskedCrops(Tower()).crops_of(images, 0, logits[0])
    torch.testing.assert_close(crop.pixels, hard.pixels * torch.tensor(2.0).sigmoid(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_threshold_is_strict_and_boxes_stay_inside_the_picture() -> None:
    images = pictures(2)
    at_half = torch.zeros(2, 1, *SIZE)
    assert not MaskedCrops(Tower())(images, None, at_half).valid.any()
    assert MaskedCrops(Tower(), threshold=0.4)(images, None, at_half).valid.all()
    below = torch.full((2, 1, *SIZE), -9.0)
    below[1, 0, SIZE[0] - 4 :] = 9  # only in the padding of the second picture
    assert not MaskedCrops(Tower())(images, None, below).valid.any()


@torch.no_grad()
def test_rows_keep_their_place_whatever_is_computed_together() -> None:
    images, logits = pictures(), masks()
    whole = MaskedCrops(Tower(), at_once=100)
    regions = whole(images, None, logits)
    assert regions.embeds.shape == (2, 5, 4) and whole.tower.calls == [8]
    assert regions.valid.tolist() == [[True, True, False, True, True]] * 2
    assert not regions.embeds[:, 2].any()
    few = MaskedCrops(Tower(), at_once=3)
    again = few(images, None, logits)
    assert few.tower.calls == [3, 3, 2]
    torch.testing.assert_close(again.embeds, regions.embeds)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(whole(images, None, logits[:, order]).embeds, regions.embeds[:, order])
    alone = Images(images.pixels[1:], images.sizes_hw[1:], images.original_hw[1:])
    torch.testing.assert_close(whole(alone, None, logits[1:]).embeds, regions.embeds[1:])


@torch.no_grad()
@pytest.mark.parametrize("count", [0, 1, 3])
def test_any_number_of_visible_masks(count: int) -> None:
    images, logits = pictures(1), masks(1)[:, [0, 1, 3]]
    logits[:, count:] = -9
    logits[:, :count] += 5
    regions = MaskedCrops(Tower())(images, None, logits)
    assert regions.valid.sum() == count
    assert regions.embeds.isfinite().all()


def test_gradients_reach_the_tower_and_not_the_masks() -> None:
    logits = masks().requires_grad_()
    embedder = MaskedCrops(Tower())
    embedder(pictures(), None, logits).embeds.sum().backward()
    assert embedder.tower.gain.grad != 0
    assert logits.grad is None


def test_a_box_smaller_than_its_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="expansion"):
        MaskedCrops(Tower(), expansion=0.5)


@torch.no_grad()
def test_crops_of_different_canvases_are_read_together() -> None:
    tower = Tower()
    embedder = MaskedCrops(tower, at_once=64)
    batches = [(pictures(2), masks(2)), (pictures(1), masks(1, 3))]
    together = embedder.together(batches)
    assert tower.calls == [2 * 4 + 2]
    for found, (images, logits) in zip(together, batches, strict=True):
        alone = MaskedCrops(Tower(), at_once=3)(images, None, logits)
        assert torch.equal(found.valid, alone.valid)
        torch.testing.assert_close(found.embeds, alone.embeds)
    assert embedder.together([]) == []


@torch.no_grad()
def test_equal_masks_of_a_picture_are_read_once() -> None:
    tower, images, logits = Tower(), pictures(2), masks(2)
    logits = torch.cat((logits, logits[:, 1:3], logits[:, :1] * 0.5), dim=1)  # the last one is on where the first is
    found = MaskedCrops(tower)(images, None, logits)
    assert tower.calls == [8]  # two of the four are the same in both pictures, but pictures are apart
    torch.testing.assert_close(found.embeds[:, 5:], found.embeds[:, [1, 2, 0]])
    assert found.valid.tolist() == [[True, True, False, True, True, True, False, True]] * 2
    soft = Tower()
    MaskedCrops(soft, matting=True)(images, None, logits)
    assert soft.calls == [10]  # the softer mask is another one there

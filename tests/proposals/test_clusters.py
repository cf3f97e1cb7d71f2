import pytest
import torch

from lexiseg.proposals.clusters import ClusterProposals
from lexiseg.types import Features, Images


def make_images(sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int]) -> Images:
    pixels = torch.zeros(len(sizes_hw), 3, *canvas_hw)
    return Images(pixels=pixels, sizes_hw=tuple(sizes_hw), original_hw=tuple(sizes_hw))


def make_features(dense: torch.Tensor) -> Features:
    return Features(maps=(dense,) * 4, dense=dense)


def two_tones(height: int = 16, width: int = 16, edge: int = 6) -> torch.Tensor:
    """[1, 4, height, width]: one direction left of `edge`, another one from there on, of any length."""
    dense = torch.zeros(1, 4, height, width)
    dense[:, 0, :, :edge] = 3.0
    dense[:, 1, :, edge:] = 0.1
    return dense


def test_two_tones_are_two_regions() -> None:
    proposals = ClusterProposals(count=2)(make_images([(64, 64)], (64, 64)), make_features(two_tones()))
    assert proposals.class_logits is None
    masks = proposals.mask_logits[0] > 0
    assert masks.shape == (2, 16, 16)
    right = torch.zeros(16, 16, dtype=torch.bool)
    right[:, 6:] = True
    assert torch.equal(masks[0], right), "the larger region comes first"
    assert torch.equal(masks[1], ~right)


def test_one_cluster_in_two_places_is_two_regions() -> None:
    dense = two_tones(edge=6)
    dense[:, :, :, 12:] = dense[:, :, :, :1]
    masks = ClusterProposals(count=2, position_weight=0.0)(make_images([(64, 64)], (64, 64)), make_features(dense))
    assert [int(mask.sum()) for mask in masks.mask_logits[0] > 0] == [96, 96, 64]


def test_every_cell_of_the_picture_in_one_mask_and_none_of_the_padding() -> None:
    dense = torch.randn(2, 8, 16, 24, generator=torch.Generator().manual_seed(0))
    dense = torch.nn.functional.avg_pool2d(dense, 5, stride=1, padding=2)
    images = make_images([(64, 50), (33, 96)], (64, 96))  # stride 4: 16 x 13 and 9 x 24 cells
    masks = ClusterProposals(count=12)(images, make_features(dense)).mask_logits > 0
    owners = masks.sum(1)  # [B, h, w]
    expected = torch.zeros(2, 16, 24, dtype=torch.int64)
    expected[0, :, :13] = 1
    expected[1, :9, :] = 1
    assert torch.equal(owners, expected)
    assert (~masks.flatten(2).any(2)).any(), "the picture with fewer regions has empty rows at the end"


def test_padding_changes_nothing() -> None:
    dense = torch.randn(1, 8, 10, 12, generator=torch.Generator().manual_seed(1))
    generator = ClusterProposals(count=6)
    alone = generator(make_images([(40, 48)], (40, 48)), make_features(dense)).mask_logits
    padded = torch.nn.functional.pad(dense, (0, 4, 0, 6), value=7.0)
    beside = generator(make_images([(40, 48)], (64, 64)), make_features(padded)).mask_logits
    assert torch.equal(beside[..., :10, :12], alone)


def test_deterministic() -> None:
    dense = torch.randn(1, 8, 20, 20, generator=torch.Generator().manual_seed(2))
    images = make_images([(80, 80)], (80, 80))
    first, second = (ClusterProposals(count=9, fitted_cells=100)(images, make_features(dense)) for _ in range(2))
    assert torch.equal(first.mask_logits, second.mask_logits)


@pytest.mark.parametrize(("share", "most", "limit"), [(0.05, 200, 20), (0.0, 7, 7), (2.0, 200, 1)])
def test_small_regions_are_given_away(share: float, most: int, limit: int) -> None:
    dense = torch.randn(1, 8, 20, 20, generator=torch.Generator().manual_seed(3))
    generator = ClusterProposals(count=9, smallest_share=share, most=most)
    masks = generator(make_images([(80, 80)], (80, 80)), make_features(dense)).mask_logits[0] > 0
    assert 1 <= len(masks) <= limit
    assert (masks.sum(0) == 1).all()


def test_a_blank_picture_is_one_region() -> None:
    generator = ClusterProposals(position_weight=0.0)
    masks = generator(make_images([(8, 8)], (32, 32)), make_features(torch.ones(1, 4, 8, 8))).mask_logits
    assert masks.shape == (1, 1, 8, 8)
    assert (masks[0, 0] > 0).sum() == 4

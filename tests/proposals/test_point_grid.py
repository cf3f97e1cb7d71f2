import pytest
import torch

from lexiseg.proposals import point_grid
from lexiseg.proposals.point_grid import distinct, mask_ious, stability_scores


def box(top: int, left: int, bottom: int, right: int, size: int = 8) -> torch.Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def test_points_are_centres_of_cells_row_by_row() -> None:
    assert point_grid.point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid.point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]


def test_stability_by_hand() -> None:
    logits = torch.tensor(
        [
            [[3.0, 1.5, 0.5, -0.5]],  # 2 above 1, 4 above -1
            [[3.0, 2.0, -2.0, -3.0]],  # edges as steep as can be
            [[0.5, 0.5, -0.5, -2.0]],  # nothing above 1
            [[-5.0, -5.0, -5.0, -5.0]],  # nothing at all
        ]
    )
    assert stability_scores(logits, 1.0).tolist() == [0.5, 1.0, 0.0, 0.0]
    assert stability_scores(logits, 0.5)[0].item() == pytest.approx(2 / 3)  # above, not at


def test_overlaps_by_hand() -> None:
    masks = torch.stack((box(0, 0, 4, 4), box(0, 2, 4, 6), box(6, 6, 8, 8), box(0, 0, 0, 0)))
    expected = [[1, 8 / 24, 0, 0], [8 / 24, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(mask_ious(masks), torch.tensor(expected))


def test_overlaps_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(5, 9, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    whole = mask_ious(masks)
    monkeypatch.setattr(point_grid, "BLOCK_FLOATS", 50)
    assert torch.equal(mask_ious(masks), whole)


def test_of_two_with_one_box_the_better_stays() -> None:
    """A ring and its filled square: the same box, little in common."""
    ring = box(0, 0, 6, 6) & ~box(1, 1, 5, 5)
    masks = torch.stack((ring, box(0, 0, 6, 6)))
    assert distinct(masks, torch.tensor([0.6, 0.9]), 0.7, 1.0).tolist() == [1]
    assert distinct(masks, torch.tensor([0.6, 0.9]), 1.0, 0.9).tolist() == [1, 0]


def test_one_thing_with_a_speck_far_away_is_found_twice() -> None:
    """Boxes of 36 and 64 cells, IoU 0.56; masks of 36 and 37, IoU 0.97."""
    masks = torch.stack((box(0, 0, 6, 6), box(0, 0, 6, 6) | box(7, 7, 8, 8)))
    quality = torch.tensor([0.9, 0.8])
    assert distinct(masks, quality, 0.7, 1.0).tolist() == [0, 1]
    assert distinct(masks, quality, 0.7, 0.9).tolist() == [0]


def test_who_is_gone_removes_nobody() -> None:
    """Three shifted copies: the second is like both others, which are unlike each other."""
    masks = torch.stack((box(0, 0, 8, 4, 16), box(0, 1, 8, 5, 16), box(0, 2, 8, 6, 16)))  # IoU 3/5 and 2/6
    assert distinct(masks, torch.tensor([0.9, 0.8, 0.7]), 1.0, 0.5).tolist() == [0, 2]


def test_masks_of_one_pixel_have_boxes() -> None:
    masks = torch.stack((box(0, 0, 1, 1), box(0, 0, 1, 1), box(3, 3, 4, 4)))
    assert distinct(masks, torch.tensor([0.5, 0.7, 0.6]), 0.7, 1.0).tolist() == [1, 2]


def test_no_masks() -> None:
    assert distinct(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0), 0.7, 0.9).tolist() == []

import numpy as np
import pytest
import torch

from lexiseg.proposals.given_masks import GivenMasks, with_given_masks
from lexiseg.types import Images


def pictures(sizes_hw: list[tuple[int, int]], original_hw: list[tuple[int, int]], canvas_hw: tuple[int, int]) -> Images:
    return Images(torch.zeros(len(sizes_hw), 3, *canvas_hw), tuple(sizes_hw), tuple(original_hw))


def test_masks_as_they_are() -> None:
    masks = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    images = pictures([(8, 8)] * 2, [(8, 8)] * 2, (8, 8))
    proposals = GivenMasks()(with_given_masks(images, list(masks)))
    assert proposals.class_logits is None
    assert torch.equal(proposals.mask_logits > 0, masks)
    assert proposals.mask_logits.unique().tolist() == [-10.0, 10.0]


def test_without_masks() -> None:
    with pytest.raises(ValueError, match="none came with the pictures"):
        GivenMasks()(pictures([(8, 8)], [(8, 8)], (8, 8)))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(1, 2, 8, 8), "torch.float32"),
        (torch.zeros(1, 2, 4, 4, dtype=torch.bool), r"needed are bool \[1, Q, 8, 8\]"),
        (torch.zeros(2, 8, 8, dtype=torch.bool), r"needed are bool \[1, Q, 8, 8\]"),
        (torch.zeros(2, 2, 8, 8, dtype=torch.bool), r"needed are bool \[1, Q, 8, 8\]"),
        (torch.zeros(1, 0, 8, 8, dtype=torch.bool), "no row"),
    ],
)
def test_masks_that_are_not_on_the_canvas(masks: torch.Tensor, message: str) -> None:
    images = Images(torch.zeros(1, 3, 8, 8), ((8, 8),), ((8, 8),), given_masks=masks)
    with pytest.raises(ValueError, match=message):
        GivenMasks()(images)


def test_to_a_smaller_canvas_by_hand() -> None:
    """A photo 4 x 6 on a canvas at half its size, with one more column of padding: centres lie in the odd pixels."""
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 1, 3] = True  # row 1 is the centre of canvas row 0, column 3 that of canvas column 1
    mask[0, 2, :] = True  # no centre is in an even row
    placed = with_given_masks(pictures([(2, 3)], [(4, 6)], (2, 4)), [mask]).given_masks
    assert placed is not None
    assert placed[0, 0].int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]


def test_to_a_larger_canvas_by_hand() -> None:
    mask = np.array([[[True, False]]])
    placed = with_given_masks(pictures([(2, 5)], [(1, 2)], (3, 6)), [mask]).given_masks
    assert placed is not None
    # Centres of the five columns in the mask: 0.2, 0.6, 1.0, 1.4, 1.8.
    assert placed[0, 0].int().tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]


def test_rows_keep_their_place() -> None:
    """Pictures with three masks, of which one is empty, and with none."""
    masks = np.ones((3, 4, 4), bool)
    masks[1] = False
    images = pictures([(2, 2), (1, 2)], [(4, 4), (3, 5)], (2, 2))
    placed = with_given_masks(images, [masks, np.zeros((0, 3, 5), bool)]).given_masks
    assert placed is not None
    assert placed.flatten(2).sum(2).tolist() == [[4, 0, 4], [0, 0, 0]]
    none = with_given_masks(images, [masks[:0], np.zeros((0, 3, 5), bool)])
    assert GivenMasks()(none).mask_logits.shape == (2, 1, 2, 2)
    assert not (GivenMasks()(none).mask_logits > 0).any()


def test_a_mask_between_the_pixels_keeps_one() -> None:
    """A photo 8 x 8 on a canvas of 2 x 2, whose centres lie in rows and columns 2 and 6."""
    mask = np.zeros((1, 8, 8), bool)
    mask[0, 3, 4:6] = True  # the middle is at row 3.5, column 5
    placed = with_given_masks(pictures([(2, 2)], [(8, 8)], (3, 3)), [mask]).given_masks
    assert placed is not None
    assert placed[0, 0].int().tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([np.ones((1, 4, 4), bool)], "1 sets of masks for 2 pictures"),
        ([np.ones((1, 4, 4), np.uint8), np.ones((1, 4, 4), bool)], "masks of picture 1 are torch.uint8"),
        ([np.ones((1, 4, 4), bool), np.ones((1, 2, 2), bool)], r"picture 2 .* needed are bool \[Q, 4, 4\]"),
        ([np.ones((1, 4, 4), bool), np.ones((4, 4), bool)], r"picture 2 .* needed are bool \[Q, 4, 4\]"),
    ],
)
def test_masks_that_do_not_fit_their_pictures(masks: list[np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_given_masks(pictures([(2, 2)] * 2, [(4, 4)] * 2, (2, 2)), masks)

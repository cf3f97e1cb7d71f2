"""The bound that masks set, by hand."""

import torch
from torch.nn import functional

from lexiseg.metrics.upper_bound import coarse_iou, true_names


def test_overlaps_are_read_at_every_fourth_pixel() -> None:
    chance = torch.Generator().manual_seed(0)
    masks, truth = torch.rand(3, 14, 21, generator=chance) > 0.5, torch.rand(2, 14, 21, generator=chance) > 0.3
    small, true = (
        functional.interpolate(part[None].float(), scale_factor=0.25, mode="nearest")[0].bool()
        for part in (masks, truth)
    )
    found = coarse_iou(masks, truth)
    for q in range(3):
        for n in range(2):
            expected = (small[q] & true[n]).sum() / ((small[q] | true[n]).sum() + 1e-6)
            torch.testing.assert_close(found[q, n], expected.double(), rtol=1e-5, atol=1e-6)
    assert coarse_iou(torch.zeros(1, 2, 2).bool(), torch.zeros(1, 2, 2).bool()).tolist() == [[0.0]]


def test_each_true_mask_names_one() -> None:
    truth = torch.zeros(2, 8, 32, dtype=torch.bool)
    truth[0, :, :16] = truth[1, :, 16:] = True
    masks = torch.zeros(3, 8, 32, dtype=torch.bool)
    masks[0, :, :12] = True  # the left one, mostly
    masks[1, :, :16] = True  # the left one
    masks[2, :, 8:] = True  # the right one, and more
    names = true_names(masks, truth, torch.tensor([7, 4]))
    assert names.tolist() == [-1, 7, 4]
    assert true_names(masks[:1], truth, torch.tensor([7, 4])).tolist() == [7]

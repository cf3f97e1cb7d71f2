import math

import pytest
import torch
from torch.nn import functional

from lexiseg.train.matcher import Matcher, SegmentTargets, dice_cost, mask_cost
from lexiseg.train.points import uniform

DRAW = uniform(torch.device("cpu"), torch.Generator().manual_seed(0))


def halves() -> SegmentTargets:
    """Left and right half of 8 x 8, classes 0 and 1."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = masks[1, :, 4:] = True
    return SegmentTargets(labels=torch.tensor([0, 1]), masks=masks)


def test_costs_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])  # probabilities 1/2 and 3/4
    targets = torch.tensor([[1.0, 1], [0, 1]])
    first = (math.log(2) + math.log(4 / 3)) / 2
    assert mask_cost(logits, targets)[0].tolist() == pytest.approx([first, first])
    expected = [1 - (2 * 1.25 + 1) / (1.25 + 2 + 1), 1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)]
    assert dice_cost(logits, targets)[0].tolist() == pytest.approx(expected)


def test_mask_cost_is_the_binary_cross_entropy_of_every_pair() -> None:
    logits, targets = torch.randn(3, 50) * 5, torch.rand(4, 50)
    pairs = [[float(functional.binary_cross_entropy_with_logits(row, target)) for target in targets] for row in logits]
    torch.testing.assert_close(mask_cost(logits, targets), torch.tensor(pairs))


def test_masks_decide() -> None:
    targets = halves()
    masks = torch.where(targets.masks, 5.0, -5.0)
    proposals = torch.stack([torch.full((8, 8), -5.0), masks[1], masks[0]])
    matches = Matcher(num_points=50)(proposals, None, targets, DRAW)
    assert matches.proposals.tolist() == [1, 2]  # by increasing proposal
    assert matches.targets.tolist() == [1, 0]


def test_classes_decide_between_equal_masks() -> None:
    targets = SegmentTargets(torch.tensor([2]), torch.ones(1, 8, 8, dtype=torch.bool))
    class_logits = torch.zeros(3, 4)
    class_logits[1, 2] = 3.0
    matches = Matcher(num_points=50)(torch.zeros(3, 4, 4), class_logits, targets, DRAW)
    assert matches.proposals.tolist() == [1]


def test_sizes_that_do_not_fit() -> None:
    match = Matcher(num_points=10)
    more_targets = match(torch.randn(1, 4, 4), torch.randn(1, 3), halves(), DRAW)
    assert len(more_targets.proposals) == len(more_targets.targets) == 1
    nothing = SegmentTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool))
    assert len(match(torch.randn(3, 4, 4), torch.randn(3, 3), nothing, DRAW).targets) == 0

"""Slots, pairs and losses of the adapter's training, by hand."""

import pytest
import torch
from torch import Tensor

from lexiseg.train.mask_adapter import (
    UNLABELLED,
    AdapterCriterion,
    MaskPairs,
    OverlapMatcher,
    SlotPlan,
    consistency_loss,
    label_loss,
    mixed_slots,
    present,
    stack,
    truth_slots,
)
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import uniform

DRAW = uniform(torch.device("cpu"), torch.Generator().manual_seed(0))


def rows(*patterns: str) -> Tensor:
    """Masks of one row: "11.." -> [[[True, True, False, False]]]."""
    return torch.tensor([[[mark == "1" for mark in pattern]] for pattern in patterns])


def test_masks_that_are_gone_are_no_targets() -> None:
    targets = present(SegmentTargets(torch.tensor([3, 1, 2]), rows("1...", "....", "..11")))
    assert targets.labels.tolist() == [3, 2] and targets.masks.shape == (2, 1, 4)


def test_few_masks_are_followed_by_empty_slots() -> None:
    slots = truth_slots(SegmentTargets(torch.tensor([3, 2]), rows("1...", "..11")), 4, DRAW)
    assert slots.labels.tolist() == [3, 2, UNLABELLED, UNLABELLED]
    assert torch.equal(slots.masks, rows("1...", "..11", "....", "...."))


def test_of_too_many_masks_some_are_drawn() -> None:
    masks = torch.eye(40, dtype=torch.bool)[:, None]
    targets = SegmentTargets(torch.arange(40), masks)
    found = [truth_slots(targets, 32, DRAW) for _ in range(3)]
    for slots in found:
        assert len(set(slots.labels.tolist())) == 32
        assert torch.equal(slots.masks, masks[slots.labels])
    assert found[0].labels.tolist() != found[1].labels.tolist()


def test_overlaps_by_hand() -> None:
    logits = torch.tensor([0.4, 0.6]).logit().repeat_interleave(2)[None, None]  # [1, 1, 4]
    masks = rows("..11", "1111", "....")
    matcher = OverlapMatcher(binarisation=0.5)
    torch.testing.assert_close(matcher.overlaps(logits, masks), torch.tensor([[1.0, 0.5, 0.0]]), rtol=0, atol=1e-5)
    loose = OverlapMatcher(binarisation=0.39)
    torch.testing.assert_close(loose.overlaps(logits, masks), torch.tensor([[0.5, 1.0, 0.0]]), rtol=0, atol=1e-5)


def test_any_candidate_may_be_drawn_and_serve_twice() -> None:
    logits = torch.where(rows("111111111.", "1111111111", ".........1", "1111111111"), 5.0, -5.0)
    targets = SegmentTargets(torch.arange(3), rows("1111111111", "11111111..", "1........."))
    matcher = OverlapMatcher()
    drawn = [matcher(logits, targets, DRAW) for _ in range(40)]
    assert all(pairs.targets.tolist() == [0, 1] for pairs in drawn)  # nothing lies on the third
    assert {int(pairs.proposals[0]) for pairs in drawn} == {0, 1, 3}
    assert {int(pairs.proposals[1]) for pairs in drawn} == {0, 1, 3}


def test_no_more_pairs_than_there_is_room_for() -> None:
    masks = torch.eye(12, dtype=torch.bool)[:, None]
    logits = torch.where(masks, 5.0, -5.0)
    pairs = OverlapMatcher(most=8)(logits, SegmentTargets(torch.arange(12), masks), DRAW)
    assert torch.equal(pairs.proposals, pairs.targets) and len(set(pairs.targets.tolist())) == 8


def test_a_picture_without_targets() -> None:
    targets = SegmentTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 4, dtype=torch.bool))
    logits = torch.randn(3, 1, 2)
    pairs = OverlapMatcher()(logits, targets, DRAW)
    assert len(pairs.targets) == len(pairs.proposals) == 0
    slots = mixed_slots(logits, targets, pairs, truth_slots(targets, 16, DRAW), 0.5)
    assert slots.masks.shape == (32, 2, 4) and not slots.masks.any() and (slots.labels == UNLABELLED).all()


@pytest.mark.parametrize(("threshold", "padding"), [(0.5, 0.0), (0.45, 1.0)])
def test_mixed_slots_by_hand(threshold: float, padding: float) -> None:
    """Truth as it is, generated masks hard, their truth soft; a missing pair is full where the threshold is low."""
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    masks[0, :, 0] = True
    targets = SegmentTargets(torch.tensor([7]), masks)
    logits = torch.tensor([[[-3.0, 3.0]], [[3.0, -3.0]]])  # [2, 1, 2]
    plan = SlotPlan(truth=2, pairs=2)
    truth = truth_slots(targets, plan.truth, DRAW)
    slots = mixed_slots(logits, targets, MaskPairs(torch.tensor([1]), torch.tensor([0])), truth, threshold, plan)
    assert slots.labels.tolist() == [7, -1, 7, -1, 7, -1]
    truth_part, generated, paired = (part[0] for part in plan.split(slots.masks[None]))
    assert torch.equal(truth_part[0], masks[0].float()) and not truth_part[1].any()
    assert generated[0, 0].tolist() == [1.0, 0.75, 0.25, 0.0]
    assert (generated[1] == padding).all()
    assert paired[0, 0].tolist() == [0.5, 0.375, 0.125, 0.0]
    assert not paired[1].any()
    stacked, labels = stack([slots, slots])
    assert stacked.shape == (2, 6, 2, 4) and labels.shape == (2, 6)


def test_unlabelled_slots_have_no_class() -> None:
    logits = torch.tensor([[[2.0, 0.0, 1.0], [9.0, 9.0, 9.0]]], requires_grad=True)
    loss = label_loss(logits, torch.tensor([[1, UNLABELLED]]))
    torch.testing.assert_close(loss, torch.logsumexp(logits[0, 0], 0) - 0)
    nothing = label_loss(logits, torch.tensor([[UNLABELLED, UNLABELLED]]))
    assert nothing == 0 and nothing.requires_grad


@pytest.mark.parametrize("detach", [True, False])
def test_consistency_counts_missing_pairs(detach: bool) -> None:
    generated = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], requires_grad=True)
    truth = torch.tensor([[[4.0, 3.0], [0.0, 0.0]]], requires_grad=True)
    loss = consistency_loss(generated, truth, detach)
    torch.testing.assert_close(loss, torch.tensor(1 - 0.96 / 2))
    loss.backward()
    assert torch.isfinite(generated.grad).all() and (truth.grad is None) == detach


def test_the_criterion_reads_the_plan() -> None:
    plan = SlotPlan(truth=1, pairs=1)
    criterion = AdapterCriterion(detach_truth=True, plan=plan)
    embeds = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]]])
    losses = criterion(embeds, torch.zeros(1, 3, 4), torch.tensor([[2, -1, -1]]))
    torch.testing.assert_close(losses["loss_cosine"], torch.tensor(1.0))
    torch.testing.assert_close(losses["loss_ce"], torch.log(torch.tensor(4.0)))
    torch.testing.assert_close(sum(criterion.weighted(losses).values()), 5 + 2 * torch.log(torch.tensor(4.0)))

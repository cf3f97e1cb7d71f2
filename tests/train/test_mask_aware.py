"""The two losses of MAFT+ by hand."""

import pytest
import torch
from torch.nn import functional

from lexiseg.train.mask_aware import (
    compensation_loss,
    distillation_loss,
    mask_aware_loss,
    soft_ious,
    stretched,
    summary,
)
from lexiseg.train.matcher import SegmentTargets

LEFT = torch.zeros(4, 4, dtype=torch.bool)
LEFT[:, :2] = True
NOTHING = SegmentTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4, 4, dtype=torch.bool))


def logits_of(*masks: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.where(mask, 50.0, -50.0) for mask in masks])


def test_overlap() -> None:
    everything = torch.ones(4, 4, dtype=torch.bool)
    ious = soft_ious(logits_of(LEFT, everything, ~LEFT), torch.stack((LEFT, everything)))
    torch.testing.assert_close(ious, torch.tensor([[1, 0.5, 0], [0.5, 1, 0.5]]))
    undecided = soft_ious(torch.zeros(1, 4, 4), LEFT[None])  # 8 of 16 pixels, each half inside
    assert undecided.item() == pytest.approx(4 / (8 + 8 - 4))


def test_probabilities_are_resized_and_not_logits() -> None:
    coarse = torch.tensor([[[100.0, -1.0]]])
    target = torch.ones(1, 1, 4, dtype=torch.bool)
    probs = functional.interpolate(coarse.sigmoid()[None], size=(1, 4), mode="bilinear")
    assert soft_ious(coarse, target).item() == pytest.approx(probs.sum().item() / 4, abs=1e-6)


def test_the_best_proposal_gets_one_and_the_worst_zero() -> None:
    asked = stretched(torch.tensor([[0.02, 0.01, 0.03], [0.4, 0.4, 0.4]]))
    torch.testing.assert_close(asked, torch.tensor([[0.5, 0, 1], [0, 0, 0]]), atol=1e-5, rtol=0)


def test_mask_aware_loss_by_hand() -> None:
    masks = logits_of(LEFT, ~LEFT)[None].repeat(2, 1, 1, 1)
    logits = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]).log().repeat(2, 1, 1)
    target = SegmentTargets(torch.tensor([1]), LEFT[None])
    # Given 0.25 and 0.5 for class 1, asked 1 and 0; the picture without segments does not count.
    expected = (0.75**2 / 2 + 0.5**2 / 2) / 2
    assert mask_aware_loss(logits, masks, [target, NOTHING]).item() == pytest.approx(expected, abs=1e-5)


def test_gradient_reaches_the_logits_alone() -> None:
    masks = torch.randn(1, 3, 4, 4).requires_grad_()
    logits = torch.randn(1, 3, 2).requires_grad_()
    mask_aware_loss(logits, masks, [SegmentTargets(torch.tensor([0]), LEFT[None])]).backward()
    assert masks.grad is None and logits.grad.any()


def test_no_segments_at_all() -> None:
    logits = torch.randn(2, 3, 5).requires_grad_()
    loss = mask_aware_loss(logits, torch.randn(2, 3, 4, 4), [NOTHING, NOTHING])
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_summary_by_hand() -> None:
    dense = torch.arange(16.0).view(1, 1, 4, 4) - 2  # -2 and -1 count as 0
    rectified = dense.relu()[0, 0]
    expected = [rectified.mean(), rectified.mean()]
    halves = rectified.view(2, 2, 2, 2).mean((1, 3))
    expected += [*halves.sum(0), *halves.sum(1), *rectified.sum(0), *rectified.sum(1)]
    torch.testing.assert_close(summary(dense)[0], torch.stack(expected))


def test_pools_follow_the_width_before_the_map_was_made_square() -> None:
    assert summary(torch.rand(1, 1, 9, 6)).shape == (1, 2 * (1 + 3 + 9))  # kernels 6, 3, 1 on 9 x 9
    assert summary(torch.rand(1, 1, 6, 9)).shape == (1, 2 * (1 + 2 + 4))  # kernels 9, 4, 2 on 9 x 9
    with pytest.raises(ValueError, match="3 columns"):
        summary(torch.rand(1, 1, 9, 3))


def test_compensation_holds_the_student_only() -> None:
    student, teacher = torch.rand(2, 3, 4, 5).requires_grad_(), torch.rand(2, 3, 4, 5).requires_grad_()
    assert compensation_loss(student, student).item() == 0
    compensation_loss(student, teacher).backward()
    assert student.grad.any() and teacher.grad is None


def test_distillation_by_hand() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 3.0]]).log()
    # Half and half against nothing and all: 0.5 * 0.5 ** 2 for both.
    loss = distillation_loss(student, teacher)
    assert float(loss.detach()) == pytest.approx(0.125)
    loss.backward()
    assert student.grad is not None and student.grad[0, 0] > 0 > student.grad[0, 1]
    assert float(distillation_loss(teacher, teacher)) == 0

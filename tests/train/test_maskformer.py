"""MaskFormer's criterion: by hand, against torchvision's focal loss, and its schedule."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from lexiseg.train.maskformer import PixelCriterion, PixelMatcher, focal_cost, focal_loss, schedule
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import uniform
from lexiseg.types import Proposals


def test_focal_loss_equals_torchvision() -> None:
    logits, targets = torch.randn(3, 50), (torch.rand(3, 50) > 0.5).float()
    expected = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2).mean(1).sum() / 4
    torch.testing.assert_close(focal_loss(logits, targets, 4), expected)
    pairs = torch.stack([focal_loss(row[None], target[None], 1) for row in logits for target in targets])
    torch.testing.assert_close(focal_cost(logits, targets), pairs.view(3, 3))


def targets() -> SegmentTargets:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, 4:] = True, True
    return SegmentTargets(torch.tensor([1, 0]), masks)


def fitting(target: SegmentTargets) -> Proposals:
    """Three proposals on a grid of half the size: the targets in the other order, and nothing."""
    small = target.masks[:, ::2, ::2].float() * 20 - 10
    logits = torch.full((3, 3), -5.0)
    logits[0, target.labels[1]] = logits[1, target.labels[0]] = logits[2, 2] = 5.0
    return Proposals(torch.cat((small.flip(0), torch.full((1, 4, 4), -10.0)))[None], logits[None])


def test_matches_and_losses_of_a_perfect_prediction() -> None:
    target = targets()
    prediction = fitting(target)
    criterion = PixelCriterion()
    assert prediction.class_logits is not None
    draw = uniform(torch.device("cpu"))
    matches = criterion.matcher(prediction.mask_logits[0], prediction.class_logits[0], target, draw)
    assert matches.proposals.tolist() == [0, 1] and matches.targets.tolist() == [1, 0]
    losses = criterion([prediction, prediction], [target])
    assert set(losses) == {f"loss_{name}{end}" for name in ("ce", "mask", "dice") for end in ("", "_0")}
    # The border blurs when the masks are enlarged; nothing else is wrong.
    assert losses["loss_mask"] < 0.1 and losses["loss_dice"] < 0.2 and losses["loss_ce"] < 0.01
    assert criterion.weighted(losses)["loss_mask"] == 20 * losses["loss_mask"]


def test_pictures_without_targets_and_gradients() -> None:
    none = SegmentTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool))
    one = fitting(targets())
    assert one.class_logits is not None
    masks = one.mask_logits.repeat(2, 1, 1, 1).requires_grad_()
    prediction = Proposals(masks, one.class_logits.repeat(2, 1, 1))
    losses = PixelCriterion()([prediction], [none, targets()])
    (losses["loss_mask"] + losses["loss_dice"]).backward()
    assert masks.grad is not None and not masks.grad[0].any() and masks.grad[1, :2].any() and not masks.grad[1, 2].any()
    alone = PixelCriterion()([Proposals(masks[:1], prediction.class_logits[:1])], [none])
    assert alone["loss_mask"] == 0 and alone["loss_dice"] == 0 and alone["loss_ce"] > 0


def test_targets_come_to_the_size_of_the_prediction_by_the_nearest_pixel() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.bool)
    masks[0, 0, 0] = True
    target = SegmentTargets(torch.tensor([0]), masks)
    cost = PixelMatcher(0.0, 0.0, 1.0).cost(torch.tensor([[[9.0, -9.0], [-9.0, -9.0]]]), None, target)
    assert cost.item() == pytest.approx(0, abs=1e-3)


def test_schedule_by_hand() -> None:
    assert schedule(0, 120_000) == pytest.approx(1e-6)
    assert schedule(750, 120_000) == pytest.approx(0.5000005 * (1 - 750 / 120_000) ** 0.9)
    assert schedule(1500, 120_000) == pytest.approx((1 - 1500 / 120_000) ** 0.9)
    assert schedule(119_999, 120_000) < 1e-4 and math.isfinite(schedule(120_000, 120_000))

import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch import distributed

from lexiseg.train.losses import Criterion, dice_loss, mask_loss, objectness
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import Draw, uniform
from lexiseg.types import Proposals

NOTHING = SegmentTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.bool))


def halves() -> SegmentTargets:
    """Left and right half of 8 x 8, classes 0 and 1."""
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = masks[1, :, 4:] = True
    return SegmentTargets(labels=torch.tensor([0, 1]), masks=masks)


def seeded() -> Draw:
    return uniform(torch.device("cpu"), torch.Generator().manual_seed(0))


def random_proposals(batch: int = 2, seed: int = 0) -> Proposals:
    generator = torch.Generator().manual_seed(seed)
    return Proposals(
        mask_logits=torch.randn(batch, 5, 8, 8, generator=generator).requires_grad_(),
        class_logits=torch.randn(batch, 5, 4, generator=generator).requires_grad_(),
    )


def test_point_losses_by_hand() -> None:
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    assert float(mask_loss(logits, labels, 2.0)) == pytest.approx((math.log(2) + math.log(4)) / 2 / 2)
    assert float(dice_loss(logits, labels, 2.0)) == pytest.approx((1 - (2 * 0.5 + 1) / (1.25 + 1 + 1)) / 2)


def test_right_answer_costs_next_to_nothing() -> None:
    targets = halves()
    masks = torch.cat([torch.where(targets.masks, 30.0, -30.0), torch.full((1, 8, 8), -30.0)])[None]
    classes = torch.tensor([[[30.0, 0, 0], [0, 30, 0], [0, 0, 30]]])
    criterion = Criterion(num_points=500, importance=0.0)  # points everywhere, not crowded along the borders
    right = criterion([Proposals(masks, classes)], [targets], seeded())
    wrong = criterion([Proposals(torch.full_like(masks, -30.0), classes)], [targets], seeded())
    assert set(right) == {"loss_ce", "loss_mask", "loss_dice"}
    assert float(right["loss_ce"]) < 1e-6
    # Not zero: between the pixels of a border labels are fractional, and the answer is not.
    assert float(right["loss_mask"]) < 2
    assert float(right["loss_dice"]) < 0.1
    assert float(wrong["loss_mask"]) > 10
    assert float(wrong["loss_dice"]) > 0.5


def test_void_counts_a_tenth() -> None:
    proposals = Proposals(torch.zeros(1, 2, 8, 8), torch.tensor([[[0.0, 2.0], [0.0, 2.0]]]))
    target = SegmentTargets(torch.tensor([0]), torch.ones(1, 8, 8, dtype=torch.bool))
    as_class, as_void = math.log(1 + math.e**2), math.log(1 + math.e**-2)
    losses = Criterion(num_points=10)([proposals], [target])
    assert float(losses["loss_ce"]) == pytest.approx((as_class + 0.1 * as_void) / 1.1)


def test_names_weights_and_order_of_the_draws() -> None:
    criterion = Criterion(num_points=8)
    shapes = []

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        shapes.append(shape)
        return torch.rand(shape)

    predictions = [random_proposals(seed=seed) for seed in range(3)]
    losses = criterion(predictions, [halves(), NOTHING], draw)
    kinds = ("loss_ce", "loss_mask", "loss_dice")
    assert list(losses) == [name + suffix for suffix in ("", "_0", "_1") for name in kinds]
    assert shapes == [(1, 8, 2), (1, 8, 2), (2, 24, 2), (2, 2, 2)] * 3
    weighted = criterion.weighted(losses)
    for name, weight in zip(kinds, (2, 5, 5), strict=True):
        assert float(weighted[name + "_1"].detach()) == pytest.approx(weight * float(losses[name + "_1"].detach()))


def test_the_last_prediction_is_the_output() -> None:
    first, last = random_proposals(seed=1), random_proposals(seed=2)
    targets = [halves(), halves()]
    both = Criterion(num_points=8)([first, last], targets, seeded())
    alone = Criterion(num_points=8)([last], targets, seeded())
    assert all(float(both[name].detach()) == float(loss.detach()) for name, loss in alone.items())


def test_no_targets_at_all() -> None:
    proposals = random_proposals()
    losses = Criterion(num_points=8)([proposals], [NOTHING, NOTHING])
    assert float(losses["loss_mask"].detach()) == float(losses["loss_dice"].detach()) == 0
    sum(losses.values()).backward()
    assert proposals.class_logits.grad[..., -1].max() < 0  # everything is pulled to void
    assert not proposals.mask_logits.grad.any()


def test_targets_of_different_sizes() -> None:
    """A smaller target stands in the top left corner of the larger canvas."""
    small = SegmentTargets(torch.tensor([0]), torch.ones(1, 8, 4, dtype=torch.bool))
    wide = torch.zeros(1, 8, 8, dtype=torch.bool)
    wide[:, :, :4] = True
    proposals = random_proposals()
    alike = Proposals(proposals.mask_logits[:, :1].expand(-1, 2, -1, -1).detach())  # any assignment is as good
    given, padded = (
        Criterion(num_points=8)([alike], [target, halves()], seeded())
        for target in (small, SegmentTargets(torch.tensor([0]), wide))
    )
    assert float(padded["loss_mask"]) == float(given["loss_mask"])


def test_without_class_logits_there_is_no_class_loss() -> None:
    losses = Criterion(num_points=8)([Proposals(random_proposals().mask_logits)], [halves(), NOTHING])
    assert set(losses) == {"loss_mask", "loss_dice"}


def test_class_agnostic_asks_for_something_or_void() -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert objectness(logits).flatten().tolist() == pytest.approx([1 + math.log(2), 0])
    criterion = Criterion(num_points=8, class_agnostic=True)
    proposals = random_proposals()
    swapped = SegmentTargets(torch.tensor([1, 0]), halves().masks)
    one, other = (criterion([proposals], [target, NOTHING], seeded()) for target in (halves(), swapped))
    assert float(one["loss_ce"].detach()) == float(other["loss_ce"].detach())


def test_gradients_reach_masks_and_classes() -> None:
    proposals = random_proposals()
    criterion = Criterion(num_points=32)
    sum(criterion.weighted(criterion([proposals], [halves(), halves()])).values()).backward()
    for x in (proposals.mask_logits, proposals.class_logits):
        assert x.grad.isfinite().all()
        assert x.grad.any()


def _worker(rank: int, meeting: str, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)
    targets = [halves()] if rank == 0 else [NOTHING]
    losses = Criterion(num_points=8)([random_proposals(batch=1)], targets)
    torch.save({name: loss.detach() for name, loss in losses.items()}, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_masks_are_counted_over_all_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path / "meeting"), str(tmp_path)), nprocs=2)
    shared = torch.load(tmp_path / "0.pt", weights_only=True)
    torch.manual_seed(0)
    alone = Criterion(num_points=8)([random_proposals(batch=1)], [halves()])
    # Two masks in two processes: one on average, where the process alone divides by two.
    assert float(shared["loss_mask"]) == pytest.approx(2 * float(alone["loss_mask"].detach()))
    assert float(shared["loss_ce"]) == pytest.approx(float(alone["loss_ce"].detach()))

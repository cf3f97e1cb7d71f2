"""Fusion: hand-worked numbers and the edges."""

import math

import pytest
import torch

from lexiseg.scoring.fusion import GeometricEnsemble, PowerProduct, RegionOnly, RegionWithVoid
from lexiseg.types import Proposals, TextBank


def bank(seen: list[bool]) -> TextBank:
    rows = torch.zeros(len(seen), 1, 2)
    return TextBank(query=rows, region=rows, class_of=torch.arange(len(seen)), seen=torch.tensor(seen))


def proposals(probs: list[float]) -> Proposals:
    return Proposals(torch.zeros(1, 1, 2, 2), torch.tensor(probs).log()[None, None])


def test_geometric_mean_of_both_branches_times_not_void() -> None:
    # In: 0.48 / 0.32 of 0.8 -> 0.6 / 0.4; out 0.1 / 0.9; equal weights: sqrt(0.06) to sqrt(0.36).
    region_logits = torch.tensor([0.1, 0.9]).log()[None, None]
    scores = GeometricEnsemble(0.5, 0.5)(
        proposals([0.48, 0.32, 0.2]), region_logits, torch.ones(1, 1).bool(), bank([True, False])
    )
    first = math.sqrt(0.06) / (math.sqrt(0.06) + math.sqrt(0.36))
    assert scores.void_prob[0, 0].item() == pytest.approx(0.2, abs=1e-6)
    assert scores.class_probs[0, 0].tolist() == pytest.approx([0.8 * first, 0.8 * (1 - first)], abs=1e-6)


def test_seen_classes_weigh_clip_by_alpha_and_unseen_ones_by_beta() -> None:
    region_logits = torch.tensor([0.1, 0.9]).log()[None, None]
    scores = GeometricEnsemble(0.0, 1.0)(
        proposals([0.6, 0.4, 1e-9]), region_logits, torch.ones(1, 1).bool(), bank([True, False])
    )
    assert scores.class_probs[0, 0].tolist() == pytest.approx([0.6 / 1.5, 0.9 / 1.5], abs=1e-6)


def test_a_floor_is_added_to_the_mean() -> None:
    region_logits = torch.tensor([0.2, 0.8]).log()[None, None]
    fuse = GeometricEnsemble(0.5, 0.5, floor=0.1)
    inner, outer = torch.tensor([0.8, 0.2]).log(), torch.tensor([0.2, 0.8]).log()
    seen = torch.tensor([True, True])
    torch.testing.assert_close(fuse.mean(inner, outer, seen).exp(), torch.tensor([0.5, 0.5]))  # sqrt(0.16) + 0.1
    scores = fuse(proposals([0.8, 0.2, 1e-9]), region_logits, torch.ones(1, 1).bool(), bank([False, True]))
    assert scores.class_probs[0, 0].tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_an_empty_mask_is_left_to_the_generator_even_when_clip_gives_nan() -> None:
    region_logits = torch.full((1, 1, 2), torch.nan)
    fuse = GeometricEnsemble(0.4, 0.8, only_valid=True)
    scores = fuse(proposals([0.48, 0.32, 0.2]), region_logits, torch.zeros(1, 1).bool(), bank([True, False]))
    assert scores.class_probs[0, 0].tolist() == pytest.approx([0.48, 0.32], abs=1e-6)


def test_scores_sum_to_one() -> None:
    torch.manual_seed(0)
    fuse = GeometricEnsemble(0.4, 0.8)
    scores = fuse(
        Proposals(torch.zeros(2, 5, 2, 2), torch.randn(2, 5, 8) * 9),
        torch.randn(2, 5, 7) * 30,
        torch.ones(2, 5).bool(),
        bank([True, False, True, True, False, False, True]),
    )
    total = scores.class_probs.sum(-1) + scores.void_prob
    torch.testing.assert_close(total, torch.ones(2, 5))


def test_ensemble_refuses_a_generator_without_classes() -> None:
    with pytest.raises(ValueError, match="RegionOnly"):
        GeometricEnsemble(0.4, 0.8)(
            Proposals(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2), torch.ones(1, 1).bool(), bank([True, True])
        )


def test_region_only_makes_void_of_what_clip_cannot_see() -> None:
    scores = RegionOnly()(
        Proposals(torch.zeros(1, 2, 2, 2)),
        torch.tensor([[[0.0, 0.0], [torch.nan, torch.nan]]]),
        torch.tensor([[True, False]]),
        bank([True, False]),
    )
    assert scores.class_probs.tolist() == [[[0.5, 0.5], [0.0, 0.0]]]
    assert scores.void_prob.tolist() == [[0.0, 1.0]]


def test_region_with_void_takes_nothing_but_void_from_the_generator() -> None:
    region_logits = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    found = Proposals(torch.zeros(1, 2, 2, 2), torch.tensor([[[0.79, 0.01, 0.2], [0.01, 0.09, 0.9]]]).log())
    seen = torch.tensor([[True, False]])  # a mask CLIP cannot see is scored all the same
    scores = RegionWithVoid()(found, region_logits, seen, bank([True, False]))
    torch.testing.assert_close(scores.class_probs, torch.tensor([[[0.2, 0.6], [0.05, 0.05]]]))
    torch.testing.assert_close(scores.void_prob, torch.tensor([[0.2, 0.9]]))
    with pytest.raises(ValueError, match="RegionOnly"):
        RegionWithVoid()(Proposals(found.mask_logits), region_logits, seen, bank([True, False]))


def test_power_product_by_hand() -> None:
    # Void is part of the generator's softmax and not of CLIP's; nothing is normalised again.
    region_logits = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    two = Proposals(torch.zeros(1, 2, 2, 2), torch.tensor([[[0.36, 0.16, 0.48]] * 2]).log())
    scores = PowerProduct(0.5)(two, region_logits, torch.tensor([[True, False]]), bank([True, False]))
    assert scores.class_probs[0, 0].tolist() == pytest.approx([0.3, math.sqrt(0.16 * 0.75)], abs=1e-6)
    assert scores.class_probs[0, 1].tolist() == pytest.approx([0.6, 0.4], abs=1e-6)  # CLIP cannot see it
    assert scores.void_prob[0].tolist() == pytest.approx([0.48, 0.48], abs=1e-6)
    alone = PowerProduct(0.0)(two, region_logits, torch.tensor([[True, True]]), bank([True, False]))
    assert alone.class_probs[0, 0].tolist() == pytest.approx([0.36, 0.16], abs=1e-6)


def test_power_product_refuses_a_generator_without_classes() -> None:
    with pytest.raises(ValueError, match="RegionOnly"):
        PowerProduct(0.7)(
            Proposals(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 1), torch.ones(1, 1).bool(), bank([True])
        )


def test_masks_that_clip_cannot_see_have_a_vote_where_it_is_asked_for() -> None:
    logits, valid = torch.randn(1, 3, 4), torch.tensor([[True, False, True]])
    text = TextBank(logits, logits, torch.arange(4), torch.ones(4, dtype=torch.bool))
    proposals = Proposals(torch.zeros(1, 3, 2, 2))
    scores = RegionOnly(only_valid=False)(proposals, logits, valid, text)
    torch.testing.assert_close(scores.class_probs, logits.softmax(-1))
    assert not scores.void_prob.any()
    assert not RegionOnly()(proposals, logits, valid, text).class_probs[0, 1].any()


def test_another_exponent_for_seen_classes() -> None:
    """FreeSeg: seen classes are the generator's affair, the others CLIP's."""
    torch.manual_seed(0)
    inner, outer = torch.randn(1, 3, 5), torch.randn(1, 3, 4)
    seen, valid = torch.tensor([True, False, True, False]), torch.tensor([[True, False, True]])
    text = TextBank(outer, outer, torch.arange(4), seen)
    scores = PowerProduct(0.8, seen_weight=0.2)(Proposals(torch.zeros(1, 3, 2, 2), inner), outer, valid, text)
    own, clip = inner.softmax(-1)[..., :-1], outer.softmax(-1)
    clip[0, 1] = 1.0
    torch.testing.assert_close(scores.class_probs[..., seen], (own**0.8 * clip**0.2)[..., seen])
    torch.testing.assert_close(scores.class_probs[..., ~seen], (own**0.2 * clip**0.8)[..., ~seen])

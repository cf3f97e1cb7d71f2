"""Generators with classes of their own behind other words."""

import pytest
import torch
from torch import nn

from lexiseg.proposals.closed_set import ClosedSet, move_classes
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.types import Features, Images, Proposals, TextBank

IMAGES = Images(torch.zeros(1, 3, 8, 8), ((8, 8),), ((8, 8),))


def bank(own_class: list[int] | None, num_classes: int = 3) -> TextBank:
    rows = torch.eye(num_classes)[:, None]
    moved = None if own_class is None else torch.tensor(own_class)
    return TextBank(rows, rows, torch.arange(num_classes), torch.ones(num_classes, dtype=torch.bool), moved)


class Four(nn.Module):
    """Two masks with four classes and void."""

    logits = torch.tensor([[[1.0, 3.0, -2.0, 0.5, 0.7], [0.0, 0.0, 4.0, -1.0, 2.0]]])

    def forward(self, images: Images, features: Features | None, text: TextBank) -> Proposals:
        return Proposals(torch.zeros(1, 2, 2, 2), self.logits)


def test_classes_move_and_void_stays() -> None:
    found = ClosedSet(Four())(IMAGES, None, bank([1, 1, 3, 0])).class_logits
    # Two classes go to the second word, one to the first, one to none; nothing goes to the third.
    torch.testing.assert_close(found[..., :3], torch.tensor([[[0.5, 2.0, 0.0], [-1.0, 0.0, 0.0]]]))
    torch.testing.assert_close(found.softmax(-1)[..., -1], Four.logits.softmax(-1)[..., -1])


def test_words_that_nobody_told_are_all_the_same() -> None:
    found = ClosedSet(Four())(IMAGES, None, bank(None)).class_logits
    assert found[..., :3].unique().tolist() == [0.0]
    torch.testing.assert_close(found.softmax(-1)[..., -1], Four.logits.softmax(-1)[..., -1])


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[[300.0, -300.0, -300.0]]])
    moved = move_classes(logits, torch.tensor([1, 1]), 1)
    assert torch.isfinite(moved).all()


def test_a_generator_without_classes_is_refused() -> None:
    class Blind(nn.Module):
        def forward(self, images: Images, features: Features | None, text: TextBank) -> Proposals:
            return Proposals(torch.zeros(1, 2, 2, 2))

    with pytest.raises(ValueError, match="class scores"):
        ClosedSet(Blind())(IMAGES, None, bank([0]))


def test_a_backbone_of_its_own() -> None:
    class Backbone(nn.Module):
        def forward(self, images: Images) -> Features:
            return Features(maps=(), dense=images.pixels + 1)

    class Head(nn.Module):
        def forward(self, images: Images, features: Features, text: TextBank) -> Proposals:
            return Proposals(features.dense)

    others = Features(maps=(), dense=torch.full((1, 3, 8, 8), 9.0))
    generator = OwnBackbone(Backbone(), Head())
    assert generator(IMAGES, others, bank(None)).mask_logits.unique().tolist() == [1.0]

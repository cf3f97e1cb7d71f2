"""Regions against words."""

import math

import torch

from lexiseg.scoring.cosine import Cosine
from lexiseg.types import Regions, TextBank


def bank(rows: torch.Tensor) -> TextBank:
    class_of = torch.tensor([0, 0, 1])
    return TextBank(query=rows, region=rows, class_of=class_of, seen=torch.zeros(2, dtype=torch.bool))


def test_the_best_phrase_counts_and_length_does_not() -> None:
    rows = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]], [[0.0, -1.0]]])  # [3, 1, 2]
    embeds = torch.tensor([[[0.0, 5.0], [2.0, 0.0], [0.0, 0.0]]])
    regions = Regions(embeds=embeds, valid=torch.tensor([[True, True, False]]))
    logits = Cosine(math.log(10))(regions, bank(rows))
    torch.testing.assert_close(logits, torch.tensor([[[8.0, -10.0], [10.0, 0.0], [0.0, 0.0]]]))
    limited = Cosine(math.log(1000))(regions, bank(rows))
    torch.testing.assert_close(limited, logits * 10)


def test_templates_kept_apart_are_averaged() -> None:
    rows = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).repeat(3, 1, 1)  # [3, 2, 2]
    regions = Regions(embeds=torch.tensor([[[1.0, 1.0]]]), valid=torch.tensor([[True]]))
    torch.testing.assert_close(Cosine(0.0)(regions, bank(rows)), torch.ones(1, 1, 2))


def test_the_scale_is_a_frozen_weight_of_the_model() -> None:
    scorer = Cosine()
    assert set(scorer.state_dict()) == {"logit_scale"}
    assert not scorer.logit_scale.requires_grad
    torch.testing.assert_close(scorer.logit_scale.exp(), torch.tensor(1 / 0.07))


def test_a_constant_scale_is_in_no_checkpoint() -> None:
    rows = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]], [[0.0, -1.0]]])
    regions = Regions(embeds=torch.tensor([[[3.0, 0.0]]]), valid=torch.tensor([[True]]))
    constant = Cosine(math.log(100), stored=False)
    assert not constant.state_dict()
    torch.testing.assert_close(constant(regions, bank(rows)), torch.tensor([[[100.0, 0.0]]]))

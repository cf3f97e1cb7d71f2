"""Similarity modelling: the folded forms against the long ones."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from lexiseg.layers.text_logits import best_of_phrases
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.scoring.template_mix import TemplateMean, TemplateMix
from lexiseg.types import Regions, TextBank

WIDTH, TEMPLATES = 16, 3


def bank(templates: int = TEMPLATES) -> TextBank:
    torch.manual_seed(1)
    rows = functional.normalize(torch.randn(5, templates, WIDTH), dim=-1)
    return TextBank(rows, rows, torch.tensor([0, 0, 1, 2, 2]), torch.ones(3, dtype=torch.bool))


def regions(dense: bool = False) -> Regions:
    torch.manual_seed(2)
    embeds = torch.randn(2, 4, WIDTH) * 3
    return Regions(embeds, torch.ones(2, 4, dtype=torch.bool), torch.randn(2, WIDTH, 3, 5) if dense else None)


def similarities(found: Regions, text: TextBank) -> torch.Tensor:
    """[B, Q, A, T]."""
    return torch.einsum("bqd,atd->bqat", functional.normalize(found.embeds, dim=-1), text.region)


def test_templates_are_mixed_into_one_row_per_phrase() -> None:
    scorer, text, found = TemplateMix(TEMPLATES, width=32, logit_scale=math.log(50.0)), bank(), regions()
    long = scorer.mix_out(scorer.mix_in(50.0 * similarities(found, text)))[..., 0]
    expected = best_of_phrases(long, text.class_of, 3)
    torch.testing.assert_close(scorer(found, text), expected, rtol=1e-4, atol=1e-4)
    assert scorer.logit_scale.requires_grad is False
    scorer(found, text).sum().backward()  # all of the long form trains
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in (*scorer.mix_in.parameters(), *scorer.mix_out.parameters())
    )


def test_the_scale_is_limited() -> None:
    text, found = bank(), regions()
    at_most, beyond = (TemplateMean(logit_scale=math.log(factor))(found, text) for factor in (100.0, 5000.0))
    torch.testing.assert_close(at_most, beyond)


def test_the_number_of_templates_must_be_the_models_own() -> None:
    with pytest.raises(ValueError, match="weighs 3 templates, the words come with 1"):
        TemplateMix(TEMPLATES)(regions(), bank(1))


def test_the_plain_mean() -> None:
    text, found = bank(), regions()
    expected = best_of_phrases(20.0 * similarities(found, text).mean(-1), text.class_of, 3)
    torch.testing.assert_close(TemplateMean(math.log(20.0))(found, text), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("normalise", [True, False])
def test_pseudo_text_as_torch_does_it(normalise: bool) -> None:
    scorer, text, found = PseudoText(WIDTH, heads=4, normalise_picture=normalise).eval(), bank(), regions(dense=True)
    picture = found.dense_embeds.flatten(2).transpose(1, 2)
    picture = scorer.picture_proj(functional.normalize(picture, dim=-1) if normalise else picture)
    attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    attention.load_state_dict(scorer.attention.state_dict())
    words = functional.normalize(text.region.mean(1), dim=-1).expand(2, -1, -1)
    rows = scorer.norm(words + attention(words, picture, picture)[0])
    long = torch.einsum("bqd,bad->bqa", functional.normalize(found.embeds, dim=-1), rows)
    expected = best_of_phrases(long, text.class_of, 3)
    torch.testing.assert_close(scorer(found, text), expected, rtol=1e-4, atol=1e-5)


def test_pseudo_text_with_its_options() -> None:
    """Both parts are compared with the same vector, so one row holds them."""
    residual = TemplateMix(TEMPLATES, width=8, logit_scale=0.0)
    plain = PseudoText(WIDTH, heads=4).eval()
    scorer = PseudoText(WIDTH, heads=4, scaled=True, residual=residual).eval()
    scorer.load_state_dict(plain.state_dict(), strict=False)
    text, found = bank(), regions(dense=True)
    long = residual.mix_out(residual.mix_in(similarities(found, text)))[..., 0]
    rows = plain.rows(text.region, found.dense_embeds)
    long = long + torch.einsum("bqd,bad->bqa", functional.normalize(found.embeds, dim=-1), rows) / 0.07
    torch.testing.assert_close(scorer(found, text), best_of_phrases(long, text.class_of, 3), rtol=1e-4, atol=1e-4)


def test_pseudo_text_needs_the_picture() -> None:
    with pytest.raises(ValueError, match="dense_embeds"):
        PseudoText(WIDTH)(regions(), bank())


def test_attention_is_dropped_in_training_alone() -> None:
    scorer, text, found = PseudoText(WIDTH, heads=4, dropout=0.5), bank(), regions(dense=True)
    assert not torch.equal(scorer.train()(found, text), scorer(found, text))
    assert torch.equal(scorer.eval()(found, text), scorer(found, text))

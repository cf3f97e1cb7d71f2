import math

import pytest
import torch

from lexiseg.layers.text_logits import template_mean, text_logits

ROWS = torch.tensor([[1.0, 0], [0, 1], [0.6, 0.8]])


def test_best_phrase_of_a_class_by_hand() -> None:
    embeds = torch.tensor([[3.0, 4.0]])  # normalised: 0.6, 0.8
    logits = text_logits(embeds, ROWS, torch.tensor([0, 0, 1]), 2, torch.tensor(math.log(10)))
    torch.testing.assert_close(logits, torch.tensor([[8.0, 10.0]]))


def test_one_phrase_per_class() -> None:
    logits = text_logits(torch.tensor([[3.0, 4.0]]), ROWS, torch.arange(3), 3, torch.tensor(0.0))
    torch.testing.assert_close(logits, torch.tensor([[0.6, 0.8, 1.0]]))


def test_factor_is_at_most_100() -> None:
    logits = text_logits(torch.tensor([[0.0, 2.0]]), ROWS, torch.arange(3), 3, torch.tensor(9.0))
    torch.testing.assert_close(logits, torch.tensor([[0.0, 100.0, 80.0]]))


def test_equals_a_loop_over_classes_with_gradients() -> None:
    sizes = [3, 1, 4, 2]
    class_of = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    rows = torch.nn.functional.normalize(torch.randn(10, 6), dim=-1)
    embeds, scale = torch.randn(2, 5, 6, requires_grad=True), torch.tensor(1.5, requires_grad=True)
    upstream = torch.randn(2, 5, 4)
    logits = text_logits(embeds, rows, class_of, 4, scale)
    gradients = torch.autograd.grad((logits * upstream).sum(), (embeds, scale))
    all_scores = scale.exp() * torch.nn.functional.normalize(embeds, dim=-1) @ rows.T
    looped = torch.stack([part.amax(-1) for part in all_scores.split(sizes, -1)], -1)
    torch.testing.assert_close(logits, looped)
    for ours, expected in zip(gradients, torch.autograd.grad((looped * upstream).sum(), (embeds, scale)), strict=True):
        torch.testing.assert_close(ours, expected)


def test_mean_of_templates_is_a_unit_row() -> None:
    rows = torch.tensor([[[1.0, 0], [0, 1]]])
    torch.testing.assert_close(template_mean(rows), torch.full((1, 2), 0.5**0.5))
    assert template_mean(rows[:, :1]).tolist() == [[1, 0]]


@pytest.mark.parametrize("classes", [1, 2])
def test_zero_embedding_scores_zero(classes: int) -> None:
    rows, class_of = ROWS[:2], torch.arange(2) * (classes - 1)
    assert not text_logits(torch.zeros(1, 2), rows, class_of, classes, torch.tensor(1.0)).any()


def test_rows_of_each_picture_count_by_their_length() -> None:
    rows = torch.stack((ROWS, 2 * ROWS.flip(0)))  # [2, 3, 2]
    embeds = torch.tensor([[[3.0, 4.0]], [[5.0, 0.0]]])
    class_of = torch.tensor([0, 0, 1])
    logits = text_logits(embeds, rows, class_of, 2, torch.tensor(0.0))
    torch.testing.assert_close(logits, torch.tensor([[[0.8, 1.0]], [[1.2, 2.0]]]))

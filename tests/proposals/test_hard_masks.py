import torch

from lexiseg.proposals.hard_masks import hard_logits, stack_rows


def test_hard_logits() -> None:
    assert hard_logits(torch.tensor([[True, False]])).tolist() == [[10.0, -10.0]]


def test_rows_are_added_below() -> None:
    two, one = torch.ones(2, 3, 4), 2 * torch.ones(1, 3, 4)
    stacked = stack_rows([two, one])
    assert stacked.shape == (2, 2, 3, 4)
    assert stacked[:, :, 0, 0].tolist() == [[1.0, 1.0], [2.0, -10.0]]


def test_there_is_always_a_row() -> None:
    stacked = stack_rows([torch.zeros(0, 3, 4)])
    assert stacked.shape == (1, 1, 3, 4)
    assert (stacked < 0).all()

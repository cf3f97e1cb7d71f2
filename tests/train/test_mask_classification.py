"""The loss of classifying given masks, by hand."""

import torch
from torch.nn import functional

from lexiseg.train.mask_classification import mask_classification_loss


def test_pictures_classes_and_masks_count_the_same() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 4)
    labels, image_of = torch.tensor([1, 1, 3, 0, 2]), torch.tensor([0, 0, 0, 7, 7])
    losses = functional.cross_entropy(logits, labels, reduction="none")
    first = ((losses[0] + losses[1]) / 2 + losses[2]) / 2
    second = (losses[3] + losses[4]) / 2
    torch.testing.assert_close(mask_classification_loss(logits, labels, image_of), (first + second) / 2)
    plain = (losses[:3].mean() + losses[3:].mean()) / 2
    torch.testing.assert_close(mask_classification_loss(logits, labels, image_of, balanced=False), plain)
    warm = functional.cross_entropy(logits[:1] / 0.5, labels[:1])
    torch.testing.assert_close(mask_classification_loss(logits[:1], labels[:1], image_of[:1], temperature=0.5), warm)


def test_no_masks_give_a_zero_that_can_be_trained_on() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = mask_classification_loss(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None

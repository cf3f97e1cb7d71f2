"""Generators that were trained on a fixed list of classes, behind whatever words are asked for."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from lexiseg.types import Features, Images, Proposals, TextBank


class ClosedSet(nn.Module):
    """A generator with classes of its own, which become those of the vocabulary where they share a word.

    MaskCLIP++ (arXiv 2412.11464), behind Mask2Former. `TextBank.own_class` says which class of the vocabulary each
    of the generator's own is, if any; without it only the probability of void is kept and all classes are equal.
    """

    def __init__(self, generator: nn.Module) -> None:
        """generator(images, features, text) -> Proposals with class_logits [B, Q, N + 1], N its own classes."""
        super().__init__()
        self.generator = generator

    def forward(self, images: Images, features: Features | None, text: TextBank) -> Proposals:
        """Masks as they are, class_logits [B, Q, K + 1] of the vocabulary."""
        proposals = self.generator(images, features, text)
        if proposals.class_logits is None:
            raise ValueError("ClosedSet needs a generator with class scores")
        own_class = text.own_class
        if own_class is None:
            own_class = torch.full_like(proposals.class_logits[0, 0, :-1], text.num_classes, dtype=torch.int64)
        return replace(proposals, class_logits=move_classes(proposals.class_logits, own_class, text.num_classes))


def move_classes(class_logits: Tensor, own_class: Tensor, num_classes: int) -> Tensor:
    """class_logits [B, Q, N + 1] void last, own_class [N] in 0..K -> [B, Q, K + 1] void last.

    Logits that go to one class are averaged; a class that gets none has a logit of zero, as in the released code. The
    probability of void stays what it was among the generator's own classes: the logit of void is moved with the sum
    of the others.
    """
    own, void = class_logits[..., :-1], class_logits[..., -1:]
    index = own_class.expand_as(own)
    moved = own.new_zeros(*own.shape[:-1], num_classes + 1)
    moved = moved.scatter_reduce(-1, index, own, reduce="mean", include_self=False)[..., :num_classes]
    shift = moved.logsumexp(-1, keepdim=True) - own.logsumexp(-1, keepdim=True)
    return torch.cat((moved, void + shift), dim=-1)

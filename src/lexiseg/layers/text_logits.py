"""Cosine similarity of embeddings with the phrases of a vocabulary, the best phrase of a class counting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.types import TextBank


def text_logits(embeds: Tensor, rows: Tensor, class_of: Tensor, num_classes: int, logit_scale: Tensor) -> Tensor:
    """embeds [..., D], unit rows [A, D], class_of [A] non-decreasing -> [..., num_classes].

    Rows may differ from picture to picture, [B, A, D] with embeds [B, Q, D]. They are taken as they are: rows that a
    model has changed and not normalised again count by their length, too.

    FC-CLIP, `get_classification_logits`. A class scores as its best phrase does: phrases are never
    averaged. `logit_scale` is the logarithm of the factor, which is at most 100. Every class has at
    least one row; a void row is one more class for this function.
    """
    scores = logit_scale.exp().clamp(max=100.0) * functional.normalize(embeds, dim=-1) @ rows.mT  # [..., A]
    return best_of_phrases(scores, class_of, num_classes)


def best_of_phrases(scores: Tensor, class_of: Tensor, num_classes: int) -> Tensor:
    """scores [..., A], class_of [A] -> [..., num_classes]: of each class the score of its best phrase."""
    if scores.shape[-1] == num_classes:  # one phrase per class: the columns are the classes
        return scores
    index = class_of.expand_as(scores)
    best = scores.new_full((*scores.shape[:-1], num_classes), -torch.inf)
    return best.scatter_reduce(-1, index, scores, reduce="amax", include_self=False)


def template_mean(rows: Tensor) -> Tensor:
    """rows [A, T, D], unit length -> [A, D], unit length: the mean over the templates."""
    if rows.shape[1] == 1:
        return rows[:, 0]
    return functional.normalize(rows.mean(dim=1), dim=-1)


@dataclass(frozen=True)
class QueryText:
    """The text rows that a generator's queries are compared with, void among them."""

    rows: Tensor
    """[A + 1, D] unit rows, void last."""
    class_of: Tensor
    """[A + 1] int64, non-decreasing; void is class K."""
    num_classes: int
    """K + 1."""


def query_text(text: TextBank, void: Tensor) -> QueryText:
    """The phrases of `text.query`, templates averaged, and a learned void row [1, D] of any length."""
    return QueryText(
        rows=torch.cat((template_mean(text.query), functional.normalize(void, dim=-1))),
        class_of=torch.cat((text.class_of, text.class_of.new_full((1,), text.num_classes))),
        num_classes=text.num_classes + 1,
    )

"""What the generators around models of transformers share."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from lexiseg.proposals.transformers_view import Look


class TransformersGenerator(nn.Module):
    """A frozen model of transformers, and how it looks at pictures.

    Pictures go through it one at a time, each without the padding of the canvas, so neither their neighbours in the
    batch nor the size of the canvas changes their masks.
    """

    def __init__(self, model: nn.Module, look: Look) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.look = look
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever is around it."""
        return super().train(False)

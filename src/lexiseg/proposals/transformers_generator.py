"""What the generators around models of transformers share."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from lexiseg.proposals.hard_masks import stack_rows
from lexiseg.types import Features, Images, Proposals, Size, TextBank


class TransformersGenerator(nn.Module):
    """A frozen model of transformers that draws masks from the pixels alone.

    Pictures go through it one at a time, each without the padding of the canvas, so neither their neighbours in the
    batch nor the size of the canvas changes their masks. A subclass says what `masks` are.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever is around it."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Images, features: Features | None = None, text: TextBank | None = None) -> Proposals:
        """pixels [B, 3, H, W], 0..255 -> mask_logits [B, Q, h, w] at stride 4; no class logits.

        Neither the features nor the words are read. Where pictures have different numbers of masks, and where one has
        none at all, rows of empty masks are added.
        """
        pictures = zip(images.pixels, images.sizes_hw, strict=True)
        return Proposals(
            mask_logits=stack_rows([self.masks(pixels[:, :h, :w], images.canvas_hw) for pixels, (h, w) in pictures])
        )

    def masks(self, picture: Tensor, canvas_hw: Size) -> Tensor:
        """picture [3, h, w], 0..255 -> [Q, h', w'] at stride 4 of its canvas."""
        raise NotImplementedError

"""Regions compared with words: the classification rule of CLIP."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lexiseg.layers.text_logits import template_mean, text_logits
from lexiseg.types import Regions, TextBank


class Cosine(nn.Module):
    """Scaled cosine similarity of a region with each class; a class scores as its best phrase does.

    FC-CLIP, section 3.2. The scale is CLIP's own, stored as a logarithm and limited to a factor of 100. A region that
    CLIP could not look at gets finite logits like any other: `Regions.valid` is for the fusion to judge.
    """

    def __init__(self, logit_scale: float = math.log(1 / 0.07), stored: bool = True) -> None:
        """stored: the scale is a tensor of the checkpoint; otherwise it is what is given here, whatever the weights."""
        super().__init__()
        self.logit_scale: Tensor | float = logit_scale
        if stored:
            self.logit_scale = nn.Parameter(torch.tensor(logit_scale), requires_grad=False)

    def forward(self, regions: Regions, text: TextBank) -> Tensor:
        """embeds [B, Q, D] -> region_logits [B, Q, K]. Templates kept apart in `text` are averaged."""
        rows = template_mean(text.region)  # [A, D]
        scale = torch.as_tensor(self.logit_scale, dtype=rows.dtype, device=rows.device)
        return text_logits(regions.embeds, rows, text.class_of, text.num_classes, scale)

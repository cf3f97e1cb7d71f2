"""Similarity modelling by templates: how much the similarity with each wording counts.

MaskCLIP++ (arXiv 2412.11464), parameterised similarity modelling in its linear form. Parameter names below the scorer;
the official ones are `psm.corr_proj_in.0.*` and `psm.corr_proj_out.0.*`:

    logit_scale
    mix_in.{weight, bias}
    mix_out.{weight, bias}
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lexiseg.layers.text_logits import text_logits
from lexiseg.types import Regions, TextBank


class TemplateMix(nn.Module):
    """Two linear maps over the T scaled similarities of a region with the templates of a phrase, shared by all phrases.

    There is no activation between them, so a score is sum_t a_t r_t + c for a few numbers a and c: the rows of the
    templates are mixed with a once per vocabulary, and regions are compared with one row per phrase. Training has the
    many parameters of the long form, as in the paper.
    """

    def __init__(self, num_templates: int, width: int = 768, logit_scale: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.mix_in = nn.Linear(num_templates, width)
        self.mix_out = nn.Linear(width, 1)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale), requires_grad=False)

    @torch.no_grad()
    def begin_as_mean(self) -> None:
        """Sets the second map so that both together are the mean of the templates: what `TemplateMean` gives.

        A start for training from a CLIP as it came. The first map stays as it was drawn.
        """
        weight = self.mix_in.weight.double()
        wanted = torch.full((1, weight.shape[1]), 1 / weight.shape[1], dtype=weight.dtype, device=weight.device)
        self.mix_out.weight.copy_(wanted @ torch.linalg.pinv(weight))
        self.mix_out.bias.copy_(-(self.mix_out.weight @ self.mix_in.bias))

    def folded(self) -> tuple[Tensor, Tensor]:
        """a [T] and c []: what both maps make of the similarities together."""
        weights = (self.mix_out.weight @ self.mix_in.weight)[0]
        return weights, self.mix_out(self.mix_in.bias)[0]

    def rows(self, region: Tensor) -> Tensor:
        """region [A, T, D] of `TextBank` -> [A, D], scale and weights of the templates in their lengths."""
        weights, _ = self.folded()
        if len(weights) != region.shape[1]:
            raise ValueError(
                f"this scorer weighs {len(weights)} templates, the words come with {region.shape[1]}: encode them with "
                "the model's own templates, kept apart"
            )
        return self.logit_scale.exp().clamp(max=100.0) * torch.einsum("t,atd->ad", weights, region)

    def forward(self, regions: Regions, text: TextBank) -> Tensor:
        """embeds [B, Q, D] -> region_logits [B, Q, K]."""
        rows, (_, offset) = self.rows(text.region), self.folded()
        return text_logits(regions.embeds, rows, text.class_of, text.num_classes, rows.new_zeros(())) + offset


class TemplateMean(nn.Module):
    """The mean of the scaled similarities of a region with the templates of a phrase: a CLIP as it came.

    Unlike in `Cosine` the mean of the templates is not brought to unit length again. MaskCLIP++ measures the CLIPs it
    starts from in this way.
    """

    def __init__(self, logit_scale: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale), requires_grad=False)

    def forward(self, regions: Regions, text: TextBank) -> Tensor:
        """embeds [B, Q, D] -> region_logits [B, Q, K]."""
        rows = text.region.mean(dim=1)
        return text_logits(regions.embeds, rows, text.class_of, text.num_classes, self.logit_scale)

"""Similarity modelling by the picture: words shifted towards what the picture shows before regions are compared.

MaskCLIP++ (arXiv 2412.11464), parameterised similarity modelling with pseudo-text. Parameter names below the scorer;
the official ones are `psm.img_proj.*`, `psm.img2text.*`, `psm.ln_1.*`:

    picture_proj.weight
    attention.{in_proj_weight, in_proj_bias, out_proj.weight, out_proj.bias}
    norm.{weight, bias}
    own_scale                    only where it is asked for
    residual.*                   only where it is asked for, see `scoring.template_mix`
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.attention import MultiheadAttention
from lexiseg.layers.text_logits import template_mean, text_logits
from lexiseg.scoring.template_mix import TemplateMix
from lexiseg.types import Regions, TextBank


class PseudoText(nn.Module):
    """Every phrase looks once at the whole picture; the norm after it sets its length, and with it the scale of logits.

    The picture comes through `Regions.dense_embeds`, padding included. There is no temperature: a row leaves the norm
    with a length of about sqrt(D) times its gain. A class scores as its best phrase does.

    The options are those of the released code; no released model uses them.
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        picture_width: int | None = None,
        *,
        normalise_picture: bool = True,
        scaled: bool = False,
        residual: TemplateMix | None = None,
        dropout: float = 0.1,
    ) -> None:
        """width D; picture_width: of the dense embeddings, D unless given. normalise_picture: each position to unit
        length first. scaled: a learned temperature. residual: scores to be added. dropout: of the attention, in
        training."""
        super().__init__()
        self.normalise_picture = normalise_picture
        self.picture_proj = nn.Linear(picture_width or width, width, bias=False)
        self.attention = MultiheadAttention(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.own_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07))) if scaled else None
        self.residual = residual

    @torch.no_grad()
    def begin_as_words(self, scale: float = 100.0) -> None:
        """Sets the attention to add nothing and the norm to give every row a length of `scale`, CLIP's temperature.

        A start for training from a CLIP as it came: nearly its own cosines, for the norm still takes the mean of a row
        out of it.
        """
        for tensor in self.attention.out_proj.parameters():
            tensor.zero_()
        self.norm.weight.fill_(scale / math.sqrt(len(self.norm.weight)))
        self.norm.bias.zero_()

    def rows(self, region: Tensor, dense_embeds: Tensor) -> Tensor:
        """region [A, T, D] of `TextBank`, dense_embeds [B, C, h, w] -> [B, A, D], the words of each picture."""
        picture = dense_embeds.flatten(2).transpose(1, 2)  # [B, h w, C]
        if self.normalise_picture:
            picture = functional.normalize(picture, dim=-1)
        picture = self.picture_proj(picture)
        words = template_mean(region).to(picture).expand(len(picture), -1, -1)
        rows = self.norm(words + self.attention(words, picture, picture))
        return rows if self.own_scale is None else self.own_scale.exp().clamp(max=100.0) * rows

    def forward(self, regions: Regions, text: TextBank) -> Tensor:
        """embeds [B, Q, D] and dense_embeds [B, C, h, w] -> region_logits [B, Q, K]."""
        if regions.dense_embeds is None:
            raise ValueError("PseudoText reads Regions.dense_embeds: build the embedder so that it gives them")
        rows = self.rows(text.region, regions.dense_embeds)
        if self.residual is not None:
            rows = rows + self.residual.rows(text.region)  # both are compared with the same unit vector
        logits = text_logits(regions.embeds, rows, text.class_of, text.num_classes, rows.new_zeros(()))
        return logits if self.residual is None else logits + self.residual.folded()[1]

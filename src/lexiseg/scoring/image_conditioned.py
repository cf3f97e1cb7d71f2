"""Words rewritten for every picture before regions are compared with them: the scorer of MAFT+.

Collaborative Vision-Text Representation Optimizing for Open-Vocabulary Segmentation (ECCV 2024, arXiv 2408.00744),
"content-dependent transfer". The picture reaches the scorer through `Regions.dense_embeds`: the map is made with the
embedder's own projection, and the five lines of `System` stay as they are.

Parameter names below the scorer; the official ones are `cdt.cross_atten.*` with `MLP` for `linear`:

    logit_scale
    transfer.multihead_attn.{in_proj_weight, in_proj_bias, out_proj.weight, out_proj.bias}
    transfer.linear.{weight, bias}
    transfer.norm.{weight, bias}
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lexiseg.layers.attention import MultiheadAttention
from lexiseg.layers.positions import sine_positions
from lexiseg.layers.text_logits import template_mean, text_logits
from lexiseg.types import Regions, TextBank

NormOrder = Literal["after_sum", "before_sum"]
"""Where the norm of the transfer stands; see `ContentDependentTransfer`."""


class ContentDependentTransfer(nn.Module):
    """Every row of text looks once at the whole picture and takes something over from it.

    `norm_order` is a property of the weights. "after_sum", LN(rows + update): the released semantic models, whose rows
    leave with a length of about sqrt(D) times the gain of the norm. "before_sum", rows + LN(update): the released
    panoptic model. In neither form are the rows normalised again.
    """

    def __init__(self, width: int, heads: int = 8, norm_order: NormOrder = "after_sum") -> None:
        super().__init__()
        self.norm_order: NormOrder = norm_order
        self.multihead_attn = MultiheadAttention(width, heads)
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, dense_embeds: Tensor) -> Tensor:
        """rows [A, D] of unit length, dense_embeds [B, D, h, w] -> [B, A, D].

        Rows do not look at each other: leaving one out, such as void, changes none of the others. The keys carry a
        code of their position, which tells little where the map is in memory order. Padding is looked at.
        """
        batch, width, h, w = dense_embeds.shape
        values = dense_embeds.flatten(2).transpose(1, 2)  # [B, h w, D]
        keys = values + sine_positions((h, w), width, values.device).flatten(0, 1).to(values)
        update = self.linear(self.multihead_attn(rows.to(values).expand(batch, -1, -1), keys, values))
        return self.norm(rows + update) if self.norm_order == "after_sum" else rows + self.norm(update)


class ImageConditioned(nn.Module):
    """Scaled similarity of a region with each class, whose rows have first been fitted to the picture.

    A region is normalised, a row is not: its length counts, and logits reach a hundred times of it. They are float32
    whatever the autocast state. A class scores as its best phrase does. The scale is CLIP's own, as in `Cosine`.
    """

    def __init__(self, transfer: ContentDependentTransfer, logit_scale: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.transfer = transfer
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale), requires_grad=False)

    def forward(self, regions: Regions, text: TextBank) -> Tensor:
        """embeds [B, Q, D] and dense_embeds [B, D, h, w] -> region_logits [B, Q, K]."""
        if regions.dense_embeds is None:
            raise ValueError("ImageConditioned reads Regions.dense_embeds: build the embedder with a dense_order")
        rows = self.transfer(template_mean(text.region), regions.dense_embeds)  # [B, A, D]
        with torch.autocast(rows.device.type, enabled=False):
            return text_logits(
                regions.embeds.float(), rows.float(), text.class_of, text.num_classes, self.logit_scale.float()
            )

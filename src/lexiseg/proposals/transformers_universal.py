"""Masks of closed-set universal segmenters: all queries of a Mask2Former or an EoMT."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from lexiseg.proposals.transformers_generator import TransformersGenerator
from lexiseg.proposals.transformers_view import Look
from lexiseg.types import Features, Images, Proposals, TextBank


class UniversalGenerator(TransformersGenerator):
    """Every query's mask, whatever class the model itself gives it.

    Mask2Former (arXiv 2112.01527) and EoMT (arXiv 2503.19108) were trained on a closed list of classes, `class_names`.
    Here only their masks are proposals. Their verdict on their own classes is in `closed_set`, and comes with the
    proposals if `own_classes` is set, for a generator around this one that makes something of it.
    """

    def __init__(
        self, model: nn.Module, look: Look, class_names: tuple[str, ...], *, own_classes: bool = False
    ) -> None:
        super().__init__(model, look)
        self.class_names = class_names
        self.own_classes = own_classes

    def forward(self, images: Images, features: Features | None = None, text: TextBank | None = None) -> Proposals:
        """pixels [B, 3, H, W], 0..255 -> mask_logits [B, Q, h, w] at stride 4. Features and words are not read."""
        proposals = self.closed_set(images)
        return proposals if self.own_classes else replace(proposals, class_logits=None)

    @torch.no_grad()
    def closed_set(self, images: Images) -> Proposals:
        """The same masks with the model's verdict on `class_names`: class_logits [B, Q, C + 1], void last."""
        masks, classes = [], []
        for view in self.look(images):
            out = self.model(pixel_values=view.pixels.to(self.model.dtype))
            masks.append(view.to_canvas(out.masks_queries_logits[0]))
            classes.append(out.class_queries_logits[0].float())
        return Proposals(mask_logits=torch.stack(masks), class_logits=torch.stack(classes))

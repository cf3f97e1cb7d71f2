"""Masks of closed-set universal segmenters: all queries of a Mask2Former or an EoMT."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lexiseg.proposals.transformers_generator import TransformersGenerator
from lexiseg.proposals.transformers_view import PixelScale, View
from lexiseg.types import Images, Proposals, Size


class UniversalGenerator(TransformersGenerator):
    """Every query's mask, whatever class the model itself gives it.

    Mask2Former (arXiv 2112.01527) and EoMT (arXiv 2503.19108) were trained on a closed list of classes, `class_names`.
    Here only their masks are proposals; their verdict on their own classes is in `closed_set`.
    """

    def __init__(
        self,
        model: nn.Module,
        class_names: tuple[str, ...],
        scale: PixelScale,
        view: Callable[[Size], View],
        *,
        black_padding: bool = False,
    ) -> None:
        """view: from the size of a picture on its canvas to how the model sees it."""
        super().__init__(model)
        self.class_names = class_names
        self.scale = scale
        self.view = view
        self.black_padding = black_padding

    def masks(self, picture: Tensor, canvas_hw: Size) -> Tensor:
        return self._predict(picture, canvas_hw)[0]

    @torch.no_grad()
    def closed_set(self, images: Images) -> Proposals:
        """The same masks with the model's verdict on `class_names`: class_logits [B, Q, C + 1], void last."""
        pairs = [
            self._predict(pixels[:, :h, :w], images.canvas_hw)
            for pixels, (h, w) in zip(images.pixels, images.sizes_hw, strict=True)
        ]
        masks, classes = zip(*pairs, strict=True)
        return Proposals(mask_logits=torch.stack(masks), class_logits=torch.stack(classes))

    def _predict(self, picture: Tensor, canvas_hw: Size) -> tuple[Tensor, Tensor]:
        """picture [3, h, w] -> mask logits [Q, h', w'] at stride 4 of the canvas, class logits [Q, C + 1]."""
        view = self.view((picture.shape[-2], picture.shape[-1]))
        out = self.model(pixel_values=view.pixels(picture, self.scale, self.black_padding))
        return view.to_canvas(out.masks_queries_logits[0], canvas_hw), out.class_queries_logits[0]

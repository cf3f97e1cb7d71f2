"""Each proposal cut out of the picture, the rest blanked, and shown to CLIP on its own: the embedder of OVSeg.

Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150), section 3.

Parameter names below the embedder; the official ones are `clip_adapter.clip_model.visual.*`:

    tower.{CLIP's own names}
    tower.mask_embedding                    prompts in the place of blank patches, for towers that have them
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.geometry import resize
from lexiseg.layers.normalise import CLIP_MEAN
from lexiseg.types import Features, Images, Regions

Fill = Literal["mean", "zero"]
"""What is shown in the place of the background: CLIP's mean colour, or black."""

UNIT_MEAN = (0.48145466, 0.4578275, 0.40821073)
UNIT_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's constants for photos in 0..1. The regions of the released models are normalised with these times 255 in single
precision, the background is filled with `CLIP_MEAN`: normalised it is of the order of 1e-7, not zero."""

CHUNK_FLOATS = 64_000_000
"""Numbers of the masks that are looked at together, on the canvas: 256 MB in float32."""


@dataclass(frozen=True)
class Crop:
    """A proposal as it is shown to CLIP."""

    pixels: Tensor
    """[3, S, S], normalised."""
    mask: Tensor
    """[S, S]: what of it is shown; bool, or in 0..1 with matting."""


def boxes_of(inside: Tensor) -> Tensor:
    """inside bool [N, H, W], none empty -> int64 [N, 4]: x0, y0 inclusive, x1, y1 exclusive."""
    columns, rows = inside.any(dim=1), inside.any(dim=2)  # [N, W], [N, H]
    x0, y0 = columns.int().argmax(dim=1), rows.int().argmax(dim=1)
    x1 = inside.shape[2] - columns.flip(1).int().argmax(dim=1)
    y1 = inside.shape[1] - rows.flip(1).int().argmax(dim=1)
    return torch.stack((x0, y0, x1, y1), dim=1)


def expand_boxes(boxes_xyxy: Tensor, ratio: float, height: int, width: int) -> Tensor:
    """int64 [N, 4], each as many times as large about its centre and cut to the picture.

    In single precision, the corners truncated towards zero: the released rule.
    """
    if ratio == 1.0:
        return boxes_xyxy
    x0, y0, x1, y1 = boxes_xyxy.float().unbind(dim=1)
    half_w, half_h = (x1 - x0) * ratio / 2, (y1 - y0) * ratio / 2
    centre_x, centre_y = (x0 + x1) / 2, (y0 + y1) / 2
    corners = torch.stack((centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h), dim=1)
    return corners.long().clamp_(min=0).minimum(corners.new_tensor([width, height, width, height]).long())


class MaskedCrops(nn.Module):
    """A region is what CLIP makes of the proposal's box with everything else in it blanked.

    Boxes are cut from the canvas. They are brought to CLIP's square without regard to their aspect, bicubically and
    without antialiasing, the masks by the nearest pixel: so the released models were scored. A proposal whose
    probability is above `threshold` nowhere keeps its row with `valid` false, a zero embedding, and costs nothing; the
    others cost one pass of the tower each, `at_once` of them together, across the pictures of a batch.
    """

    def __init__(
        self,
        tower: Any,
        *,
        threshold: float = 0.5,
        fill: Fill = "mean",
        matting: bool = False,
        expansion: float = 1.0,
        at_once: int = 32,
    ) -> None:
        """tower(pixels [N, 3, S, S], keep) -> [N, D], with `embed_dim` D, `image_size` S and `keep(masks)`: a CLIP
        transformer. fill: of the background. matting: the soft mask blends in the place of the hard one. expansion: of
        the boxes, at least 1.
        """
        super().__init__()
        if expansion < 1:
            raise ValueError(f"expansion {expansion}: a box smaller than its mask may have no pixels")
        self.tower = tower
        self.threshold, self.fill, self.matting, self.expansion = threshold, fill, matting, expansion
        self.at_once = at_once

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h, w] on the canvas of `images` -> embeds [B, Q, D]. features: not looked at."""
        valid = torch.zeros(mask_logits.shape[:2], dtype=torch.bool, device=mask_logits.device)
        found, waiting = [], []
        for index in range(len(mask_logits)):
            for query, crop in self.crops_of(images, index, mask_logits[index]):
                valid[index, query] = True
                waiting.append(crop)
                if len(waiting) == self.at_once:
                    found.append(self.embed(waiting))
                    waiting = []
        if waiting:
            found.append(self.embed(waiting))
        embeds = mask_logits.new_zeros(*valid.shape, self.tower.embed_dim)
        if found:
            embeds = embeds.masked_scatter(valid[..., None], torch.cat(found).to(embeds))
        return Regions(embeds=embeds, valid=valid)

    def crops_of(self, images: Images, index: int, mask_logits: Tensor) -> Iterator[tuple[int, Crop]]:
        """mask_logits [Q, h, w] of picture `index` -> its crops with their rows, in order; none for empty masks."""
        picture, probs_of = images.pixels[index], self.probs(images, index, mask_logits.detach())
        for start, probs in probs_of:
            inside = probs > self.threshold
            rows = inside.flatten(1).any(dim=1).nonzero().flatten()
            boxes = expand_boxes(boxes_of(inside[rows]), self.expansion, *probs.shape[-2:])
            for row, box in zip(rows.tolist(), boxes.tolist(), strict=True):
                shown = probs[row] if self.matting else inside[row]
                yield start + row, self.crop(picture, shown, box)

    def probs(self, images: Images, index: int, mask_logits: Tensor) -> Iterator[tuple[int, Tensor]]:
        """mask_logits [Q, h, w] -> (first row, probabilities [n, H, W] on the picture), some masks at a time."""
        height, width = images.sizes_hw[index]
        canvas_hw = images.canvas_hw
        step = max(1, CHUNK_FLOATS // (canvas_hw[0] * canvas_hw[1]))
        for start in range(0, len(mask_logits), step):
            whole = resize(mask_logits[None, start : start + step], canvas_hw)[0]
            yield start, whole[:, :height, :width].sigmoid()

    def crop(self, picture: Tensor, shown: Tensor, box_xyxy: list[int]) -> Crop:
        """picture [3, H, W] in 0..255, shown [h, w] bool or in 0..1 -> what CLIP gets to see of the box."""
        x0, y0, x1, y1 = box_xyxy
        mask = shown[y0:y1, x0:x1]
        pixels = picture[:, y0:y1, x0:x1]
        fill = pixels.new_tensor(CLIP_MEAN if self.fill == "mean" else (0.0, 0.0, 0.0))[:, None, None]
        weight = mask.to(pixels)
        pixels = pixels * weight + (1 - weight) * fill
        mean, std = (pixels.new_tensor(values)[:, None, None] * 255.0 for values in (UNIT_MEAN, UNIT_STD))
        side = (self.tower.image_size,) * 2
        pixels = functional.interpolate(((pixels - mean) / std)[None], size=side, mode="bicubic", align_corners=False)
        mask = functional.interpolate(weight[None, None], size=side, mode="nearest")[0, 0]
        return Crop(pixels=pixels[0], mask=mask if self.matting else mask > 0)

    def embed(self, crops: list[Crop]) -> Tensor:
        """N crops -> [N, D]."""
        pixels, masks = torch.stack([crop.pixels for crop in crops]), torch.stack([crop.mask for crop in crops])
        return self.tower(pixels, self.tower.keep(masks))

"""Each proposal cut out of the picture, the rest blanked, and shown to CLIP on its own: the embedder of OVSeg.

Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150), section 3.

Parameter names below the embedder; the official ones are `clip_adapter.clip_model.visual.*`:

    tower.{CLIP's own names}
    tower.mask_embedding                    prompts in the place of blank patches, for towers that have them
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def mask_probs(images: Images, index: int, mask_logits: Tensor) -> Tensor:
    """mask_logits [n, h, w] of picture `index` -> their probabilities [n, H, W] on it, without the padding."""
    height, width = images.sizes_hw[index]
    return resize(mask_logits[None], images.canvas_hw)[0, :, :height, :width].sigmoid()


class MaskedCrops(nn.Module):
    """A region is what CLIP makes of the proposal's box with everything else in it blanked.

    Boxes are cut from the canvas. They are brought to CLIP's square without regard to their aspect, bicubically and
    without antialiasing, the masks by the nearest pixel: so the released models were scored. A proposal whose
    probability is above `threshold` nowhere keeps its row with `valid` false, a zero embedding, and costs nothing; the
    others cost one pass of the tower each, `at_once` of them together, across the pictures of a batch. Masks of a
    picture that are equal pixel by pixel cost one pass together.
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
        return self.together([(images, mask_logits)])[0]

    def together(self, batches: Sequence[tuple[Images, Tensor]]) -> list[Regions]:
        """(images, mask_logits [B, Q, h, w] on their canvas) -> the regions of each, as if each came alone.

        Crops fill the tower's batches whatever canvas they come from: pictures that would change if they were padded to
        a common one share them too.
        """
        found: list[Tensor] = []
        waiting: list[Crop] = []
        places = [torch.full(masks.shape[:2], -1, dtype=torch.int64) for _, masks in batches]
        """Which crop each mask is shown as; -1 for none."""
        count = 0
        for (images, masks), place in zip(batches, places, strict=True):
            for index in range(len(masks)):
                normal = self.normalised(images.pixels[index])
                shown_before: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
                for row, shown, box in self.visible(images, index, masks[index]):
                    alike = shown_before.setdefault(tuple(box), [])
                    known = next((other for other, mask in alike if torch.equal(mask, shown)), None)
                    if known is not None:  # the same pixels again
                        place[index, row] = place[index, known]
                        continue
                    alike.append((row, shown))
                    place[index, row] = count
                    count += 1
                    waiting.append(self.crop(images.pixels[index], shown, box, normal))
                    if len(waiting) == self.at_once:
                        found.append(self.embed(waiting))
                        waiting = []
        if waiting:
            found.append(self.embed(waiting))
        embeds = torch.cat(found) if found else None
        return [self._regions(masks, place, embeds) for (_, masks), place in zip(batches, places, strict=True)]

    def _regions(self, masks: Tensor, place: Tensor, embeds: Tensor | None) -> Regions:
        """place [B, Q]: the row of each mask in embeds [N, D], -1 for none."""
        place = place.to(masks.device)
        valid = place >= 0
        own = masks.new_zeros(*valid.shape, self.tower.embed_dim)
        if embeds is not None:
            own = own.masked_scatter(valid[..., None], embeds[place[valid]].to(own))
        return Regions(embeds=own, valid=valid)

    def crops_of(self, images: Images, index: int, mask_logits: Tensor) -> Iterator[tuple[int, Crop]]:
        """mask_logits [Q, h, w] of picture `index` -> its crops with their rows, in order; none for empty masks."""
        picture = images.pixels[index]
        normal = self.normalised(picture)
        for row, shown, box in self.visible(images, index, mask_logits):
            yield row, self.crop(picture, shown, box, normal)

    def visible(self, images: Images, index: int, mask_logits: Tensor) -> Iterator[tuple[int, Tensor, list[int]]]:
        """mask_logits [Q, h, w] of picture `index` -> row, what is shown [H, W], box of each mask that is not empty."""
        for start, probs in self.probs(images, index, mask_logits.detach()):
            inside = probs > self.threshold
            rows = inside.flatten(1).any(dim=1).nonzero().flatten()
            boxes = expand_boxes(boxes_of(inside[rows]), self.expansion, *probs.shape[-2:])
            for row, box in zip(rows.tolist(), boxes.tolist(), strict=True):
                yield start + row, (probs if self.matting else inside)[row], box

    def probs(self, images: Images, index: int, mask_logits: Tensor) -> Iterator[tuple[int, Tensor]]:
        """mask_logits [Q, h, w] -> (first row, probabilities [n, H, W] on the picture), some masks at a time."""
        step = max(1, CHUNK_FLOATS // (images.canvas_hw[0] * images.canvas_hw[1]))
        for start in range(0, len(mask_logits), step):
            yield start, mask_probs(images, index, mask_logits[start : start + step])

    def normalised(self, picture: Tensor) -> Tensor:
        """picture [3, H, W] in 0..255 -> the same as CLIP wants it."""
        mean, std = (picture.new_tensor(values)[:, None, None] * 255.0 for values in (UNIT_MEAN, UNIT_STD))
        return (picture - mean) / std

    def crop(self, picture: Tensor, shown: Tensor, box_xyxy: list[int], normal: Tensor | None = None) -> Crop:
        """picture [3, H, W] in 0..255, shown [H, W] bool or in 0..1 -> what CLIP gets to see of the box.

        normal: `picture` normalised, where several crops of it are made. A hard mask takes each pixel from the one or
        the other, before or after the normalisation alike; a soft one blends colours.
        """
        x0, y0, x1, y1 = box_xyxy
        weight = shown[y0:y1, x0:x1].to(picture)
        fill = picture.new_tensor(CLIP_MEAN if self.fill == "mean" else (0.0, 0.0, 0.0))[:, None, None]
        if self.matting:
            pixels = self.normalised(picture[:, y0:y1, x0:x1] * weight + (1 - weight) * fill)
        else:
            normal = self.normalised(picture) if normal is None else normal
            pixels = torch.where(weight > 0, normal[:, y0:y1, x0:x1], self.normalised(fill))
        side = (self.tower.image_size,) * 2
        pixels = functional.interpolate(pixels[None], size=side, mode="bicubic", align_corners=False)
        mask = functional.interpolate(weight[None, None], size=side, mode="nearest")[0, 0]
        return Crop(pixels=pixels[0], mask=mask if self.matting else mask > 0)

    def embed(self, crops: list[Crop]) -> Tensor:
        """N crops -> [N, D]."""
        pixels, masks = torch.stack([crop.pixels for crop in crops]), torch.stack([crop.mask for crop in crops])
        return self.tower(pixels, self.tower.keep(masks))

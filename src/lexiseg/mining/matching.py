"""A region for every noun of a photo: the proposal that CLIP finds most like the word.

OVSeg, section 3.2: one pair per noun, nothing rejected. What may be rejected beyond that is told in `Filters`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lexiseg.data.pairs import Pair, blanked
from lexiseg.images import Photo
from lexiseg.regions.crops import MaskedCrops, boxes_of, mask_probs
from lexiseg.types import Images, Proposals, Regions, TextBank
from lexiseg.zoo.model_folder import Model

THRESHOLD = 0.5
"""Of masks that are not read from crops, whose reader has a threshold of its own."""


@dataclass(frozen=True)
class Filters:
    """Which pairs are left out. Every one of them is counted under its reason."""

    min_area: float = 0.0
    """Share of the photo a region covers at least."""
    max_area: float = 1.0
    """The same at most."""
    mutual: bool = False
    """The region must be most like that word, too, among the nouns of its photo."""


@dataclass(frozen=True)
class Matched:
    """The pairs of one photo."""

    pairs: tuple[Pair, ...]
    """Names of regions are those of `regions`."""
    regions: dict[str, NDArray[np.uint8]]
    left_out: Counter[str]
    """Reason -> number of nouns."""


class Words:
    """The encoded nouns of a whole run, one row each."""

    def __init__(self, words: Sequence[str], encoded: TextBank) -> None:
        """encoded: of the words, each a class of its own."""
        self.number = {word: number for number, word in enumerate(words)}
        self.encoded = encoded

    def bank(self, words: Sequence[str]) -> TextBank:
        """Those of a photo. A generator with classes of its own finds none of them among these."""
        rows = torch.tensor([self.number[word] for word in words])
        own = self.encoded.own_class
        return TextBank(
            query=self.encoded.query[rows],
            region=self.encoded.region[rows],
            class_of=torch.arange(len(words)),
            seen=torch.zeros(len(words), dtype=torch.bool),
            own_class=None if own is None else torch.full_like(own, len(words)),
        )


class Matcher:
    """Photos with nouns in, pairs out. Crops of several photos are read together; every photo has its own canvas."""

    def __init__(self, model: Model, words: Words, filters: Filters, device: str | torch.device = "cpu") -> None:
        """model: on that device; its generator draws the masks and its embedder and scorer compare them with words."""
        self.model, self.words, self.filters = model, words, filters
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, photos: Sequence[tuple[str, Photo, Mapping[str, int]]]) -> Iterator[Matched]:
        """(id, photo, noun -> number of its caption), each with a noun -> the pairs of each, in the same order."""
        seen, masks, features = [], [], []
        for _, photo, nouns in photos:
            images = self.model.canvas([photo]).to(self.device)
            text = self.words.bank(tuple(nouns)).to(self.device)
            encoder = self.model.system.encoder
            features.append(encoder(images) if encoder is not None else None)
            proposals: Proposals = self.model.system.generator(images, features[-1], text)
            seen.append((images, text))
            masks.append(proposals.mask_logits)
        embedder = self.model.system.embedder
        regions: Sequence[Regions]
        if isinstance(embedder, MaskedCrops):
            regions = embedder.together([(images, own) for (images, _), own in zip(seen, masks, strict=True)])
        else:
            regions = [embedder(i, f, m) for (i, _), f, m in zip(seen, features, masks, strict=True)]
        for (id, _, nouns), (images, text), own, found in zip(photos, seen, masks, regions, strict=True):
            yield self.match(id, nouns, images, own[0], found, text)

    def match(
        self, id: str, nouns: Mapping[str, int], images: Images, mask_logits: Tensor, regions: Regions, text: TextBank
    ) -> Matched:
        """One photo: mask_logits [Q, h, w] on its canvas, regions [1, Q, D]."""
        left_out: Counter[str] = Counter()
        logits = self.model.system.scorer(regions, text)[0]  # [Q, K]
        logits = logits.masked_fill(~regions.valid[0][:, None], -torch.inf)
        if not regions.valid.any():
            return Matched((), {}, Counter({"no region": len(nouns)}))
        embeds, rows = functional.normalize(regions.embeds[0], dim=-1), text.region.mean(1)
        pairs: list[Pair] = []
        pixels: dict[str, NDArray[np.uint8]] = {}
        for column, (word, caption) in enumerate(nouns.items()):
            query = int(logits[:, column].argmax())
            if self.filters.mutual and int(logits[query].argmax()) != column:
                left_out["region is more like another word"] += 1
                continue
            cut = self.cut(images, mask_logits[query])
            if cut is None:
                left_out["no region"] += 1
                continue
            region, area = cut
            if not self.filters.min_area <= area <= self.filters.max_area:
                left_out["region too small" if area < self.filters.min_area else "region too large"] += 1
                continue
            name = f"{id}-{query:03}"
            pixels[name] = region
            similarity = float(embeds[query] @ functional.normalize(rows[column], dim=-1))
            pairs.append(Pair(name, word, id, caption, round(similarity, 4), round(area, 5)))
        return Matched(tuple(pairs), pixels, left_out)

    def cut(self, images: Images, mask_logits: Tensor) -> tuple[NDArray[np.uint8], float] | None:
        """mask_logits [h, w] -> its blanked box [h', w', 3] as it is stored, and the share of the photo inside.

        None for a mask that is on nowhere at the size of the canvas.
        """
        reader = self.model.system.embedder
        threshold = reader.threshold if isinstance(reader, MaskedCrops) else THRESHOLD
        inside = mask_probs(images, 0, mask_logits[None])[0] > threshold  # [H, W]
        if not inside.any():
            return None
        x0, y0, x1, y1 = boxes_of(inside[None])[0].tolist()
        picture = images.pixels[0, :, y0:y1, x0:x1].round().clamp(0, 255).to(torch.uint8)
        region = blanked(picture.permute(1, 2, 0).cpu().numpy(), inside[y0:y1, x0:x1].cpu().numpy())
        return region, float(inside.float().mean())

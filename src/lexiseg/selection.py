"""Only those proposals are scored that can matter for an output, where every single one of them is expensive.

That is so with a Mask-Adapter and with masked crops, the most expensive parts of their models; yet before they run, the
generator has told how much of each proposal is void, or how much it is of any class, which bounds every class score the
proposal can have. Of the proposals that are left, `postprocess` makes what it makes of all: the same panoptic and
instance results, and the same labels of a semantic one. What a semantic result says about the scores of a segment is
told from those left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexiseg.postprocess import BLOCK_FLOATS, Frame, mask_strips
from lexiseg.regions.crops import MaskedCrops
from lexiseg.regions.mask_adapter import MaskAdapterPool
from lexiseg.scoring.fusion import GeometricEnsemble, PowerProduct, RegionWithVoid
from lexiseg.system import System
from lexiseg.types import Images, Proposals, Regions, Scores, SigmoidAt, TextBank

SLACK = 1e-5
"""Added to every bound: scores are sums of rounded numbers, and computing fewer masks at once rounds differently.
Results are the same but for pixels whose two best classes are closer than that rounding."""

STEP = 16
"""Proposals computed at least at a time."""

LEAST_PART = 0.25
"""Of the proposals that are left, computed at a time for a semantic result."""


def can_select(system: System) -> bool:
    """Whether proposals of this system can be computed one by one, under bounds that the generator gives."""
    bounded = isinstance(system.fuse, GeometricEnsemble | RegionWithVoid | PowerProduct)
    return isinstance(system.embedder, MaskAdapterPool | MaskedCrops) and bounded


def bounds_of(fuse: Any, class_probs: Tensor) -> Tensor:
    """class_probs [Q, K + 1] of the generator, void last -> [Q]: no class score of a proposal is larger.

    Products of powers may sum to more: a region classifier counts as certain of every class where it sees nothing.
    """
    if isinstance(fuse, PowerProduct):
        return class_probs[:, :-1].amax(-1) ** (1 - max(fuse.weight, fuse.seen_weight))
    return 1 - class_probs[:, -1]


@dataclass(frozen=True)
class Selection:
    """The proposals of one picture that were scored, in their own order."""

    mask_logits: Tensor
    """[n, h, w]."""
    class_probs: Tensor
    """[n, K]."""
    void_prob: Tensor
    """[n]."""
    computed: Tensor
    """[n] int64, increasing: which they are."""
    count: int
    """Q: how many there are in all."""


class Selector:
    """Scores proposals of one picture on demand."""

    def __init__(self, system: System, images: Images, text: TextBank) -> None:
        """images: a single one."""
        if not can_select(system):
            raise ValueError(
                "proposals can be selected only where an adapter or crops read them and the generator tells void"
            )
        self.system, self.images, self.text = system, images, text
        self.features = system.encoder(images) if system.encoder is not None else None
        self.proposals: Proposals = system.generator(images, self.features, text)
        if self.proposals.class_logits is None:
            raise ValueError("proposals can be selected only where the generator tells void")
        masks, logits = self.proposals.mask_logits[0], self.proposals.class_logits[0]
        self.masks = masks  # [Q, h, w]
        probs = logits.softmax(-1)
        self.bounds = bounds_of(system.fuse, probs) + SLACK
        """[Q]: no class score of a proposal is larger."""
        self.void = probs[:, -1]
        """[Q]: what a class score must reach in a panoptic result."""
        self.class_probs = masks.new_zeros(len(masks), text.num_classes)
        """[Q, K], zero where nothing has been computed."""
        self.done = torch.zeros(len(masks), dtype=torch.bool, device=masks.device)
        """[Q]: what has been computed."""
        self._void_prob = masks.new_zeros(len(masks))

    def score(self, rows: Tensor) -> None:
        """Computes the proposals rows [n] that have not been computed yet."""
        rows = rows[~self.done[rows]]
        if len(rows) == 0:
            return
        proposals, system = self.proposals, self.system
        assert proposals.class_logits is not None  # checked when made; for the reader of types
        chosen = Proposals(proposals.mask_logits[:, rows], proposals.class_logits[:, rows])
        regions: Regions = system.embedder(self.images, self.features, chosen.mask_logits)
        scores: Scores = system.fuse(chosen, system.scorer(regions, self.text), regions.valid, self.text)
        self.class_probs[rows] = scores.class_probs[0]
        self._void_prob[rows] = scores.void_prob[0]
        self.done[rows] = True

    def selection(self) -> Selection:
        """What has been computed so far."""
        rows = self.done.nonzero().flatten()
        return Selection(self.masks[rows], self.class_probs[rows], self._void_prob[rows], rows, len(self.masks))


def for_panoptic(selector: Selector, object_mask_threshold: float = 0.0) -> Selection:
    """Without the proposals that are void, or below the threshold, whatever their classes are."""
    bounds = selector.bounds
    selector.score(((bounds >= selector.void) & (bounds > object_mask_threshold)).nonzero().flatten())
    return selector.selection()


def for_instances(selector: Selector, top: int = 100) -> Selection:
    """The proposals that may have one of the `top` best scores: by falling bound, until no bound is good enough."""
    order = selector.bounds.argsort(descending=True, stable=True)
    for rows in order.split(STEP):
        scores = selector.class_probs.flatten()
        if len(scores) >= top and scores.topk(top).values[-1] > selector.bounds[rows[0]]:
            break
        selector.score(rows)
    return selector.selection()


def for_semantic(selector: Selector, frame: Frame, sigmoid_at: SigmoidAt = "canvas") -> Selection:
    """Proposals enough to tell the best class of every pixel.

    What is left out adds at most its bounds times its mask probabilities to any class. Where the best class leads by
    more it is certain. The proposals with the largest share in what is uncertain are computed next, and only
    uncertain pixels are looked at again. The more of them there are, the more proposals are taken at once: where
    nothing is certain after the first quarter, looking again and again would cost more than it could save.
    """
    masks, bounds = selector.masks, selector.bounds
    shares = bounds * masks.sigmoid().flatten(1).sum(1)
    uncertain = torch.ones(frame.output_hw, dtype=torch.bool, device=masks.device)
    part = LEAST_PART
    while len(left := (~selector.done).nonzero().flatten()):
        step = min(max(STEP, math.ceil(part * len(left))), len(left))
        selector.score(left[shares[left].topk(step).indices])
        if step == len(left):
            break
        shares = _uncertain_shares(selector, frame, sigmoid_at, uncertain)
        if not uncertain.any():
            break
        part = max(LEAST_PART, float(uncertain.float().mean()))
    return selector.selection()


def _uncertain_shares(selector: Selector, frame: Frame, sigmoid_at: SigmoidAt, uncertain: Tensor) -> Tensor:
    """[Q]: the bound of each proposal summed over the pixels that stay uncertain; `uncertain` [H, W] is updated."""
    weights = selector.class_probs.T.contiguous()  # [K, Q], zero for what is left out
    left = torch.where(selector.done, 0.0, selector.bounds)
    shares = torch.zeros_like(left)
    block = max(1, BLOCK_FLOATS // len(weights))
    for start, strip in mask_strips(selector.masks, frame, sigmoid_at):
        rows = uncertain[start : start + strip.shape[1]]  # a view
        pixels = strip[:, rows]  # [Q, P]
        open_pixels = torch.zeros(pixels.shape[1], dtype=torch.bool, device=pixels.device)
        for first in range(0, pixels.shape[1], block):
            part = pixels[:, first : first + block]
            scores = weights @ part
            best = scores.topk(min(2, len(scores)), dim=0).values  # a vocabulary may have one class
            lead = best[0] - best[1] if len(best) == 2 else torch.full_like(best[0], torch.inf)
            open_pixels[first : first + block] = lead <= (left @ part) + SLACK * (1 + best[0])
        shares += left * pixels[:, open_pixels].sum(1)
        rows[rows.clone()] = open_pixels
    return shares

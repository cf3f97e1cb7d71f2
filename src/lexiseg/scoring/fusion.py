"""Fusion of what the generator and CLIP say about each proposal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lexiseg.types import Proposals, Scores, TextBank

# The released models were scored on log(p + 1e-8), softmaxed once more: every class keeps a floor.
FLOOR = 1e-8


def scores_from_probs(class_probs: Tensor, void_prob: Tensor) -> Scores:
    """class_probs [B, Q, K] and void_prob [B, Q], summing to one, lifted by the floor and normalised again."""
    total = 1.0 + (class_probs.shape[-1] + 1) * FLOOR
    return Scores(class_probs=(class_probs + FLOOR) / total, void_prob=(void_prob + FLOOR) / total)


class GeometricEnsemble(nn.Module):
    """Weighted geometric mean of the generator's class scores and CLIP's, then the generator's void.

    FC-CLIP, section 3.2 (its released code takes logs and normalises over the classes again, so these are
    renormalised geometric means). `alpha` weighs CLIP for classes seen in training, `beta` for the others.
    With `only_valid`, a proposal that covers no position of CLIP's map is left to the generator alone:
    needed by towers whose pooling is undefined for an empty mask (the CLIP ResNets). `floor` is added to the mean
    before it is normalised (MaskCLIP++: 1e-8).
    """

    def __init__(self, alpha: float, beta: float, only_valid: bool = False, floor: float = 0.0) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.only_valid = only_valid
        self.floor = floor

    def forward(self, proposals: Proposals, region_logits: Tensor, valid: Tensor, text: TextBank) -> Scores:
        """region_logits [B, Q, K], valid [B, Q] -> Scores. Proposals must carry class logits [B, Q, K + 1]."""
        if proposals.class_logits is None:
            raise ValueError("GeometricEnsemble needs a generator with class scores; use RegionOnly for this one")
        inner = proposals.class_logits[..., :-1].log_softmax(-1)
        mixed = self.mean(inner, region_logits.log_softmax(-1), text.seen)
        # Selected, not multiplied: what an empty mask leaves in CLIP's part may be NaN, and 0 * NaN is NaN.
        if self.only_valid:
            mixed = torch.where(valid[..., None], mixed, inner)
        void_prob = proposals.class_logits.softmax(-1)[..., -1]
        return scores_from_probs(mixed.softmax(-1) * (1 - void_prob[..., None]), void_prob)

    def mean(self, inner: Tensor, outer: Tensor, seen: Tensor) -> Tensor:
        """Log probabilities of the generator and of CLIP [..., K] -> their weighted mean, not normalised."""
        weight = torch.where(seen, self.alpha, self.beta).to(inner)  # [K]
        mixed = (1 - weight) * inner + weight * outer
        if self.alpha == 0 or self.beta == 0:  # 0 * NaN is NaN here too
            mixed = torch.where(weight == 0, inner, mixed)
        return torch.logaddexp(mixed, mixed.new_tensor(self.floor).log()) if self.floor else mixed


class RegionOnly(nn.Module):
    """CLIP's verdict alone, for generators without class scores. A proposal CLIP cannot see is void.

    With `only_valid` false it is scored like any other, as MAFT (arXiv 2310.00240) does: its embedder has an answer for
    what it cannot see too, and no mask is void.
    """

    def __init__(self, only_valid: bool = True) -> None:
        super().__init__()
        self.only_valid = only_valid

    def forward(self, proposals: Proposals, region_logits: Tensor, valid: Tensor, text: TextBank) -> Scores:
        """region_logits [B, Q, K], valid [B, Q] -> Scores."""
        if not self.only_valid:
            probs = region_logits.softmax(-1)
            return Scores(class_probs=probs, void_prob=torch.zeros_like(probs[..., 0]))
        probs = torch.where(valid[..., None], region_logits.softmax(-1), 0.0)
        return Scores(class_probs=probs, void_prob=(~valid).to(probs))


class RegionWithVoid(nn.Module):
    """CLIP's verdict on the classes, the generator's on whether there is anything at all.

    MAFT+ (arXiv 2408.00744): of the generator's class logits only the probability of void is used, and CLIP's classes
    share the rest. A mask that covers no position of CLIP's map is scored like any other, as in the released models.
    """

    def forward(self, proposals: Proposals, region_logits: Tensor, valid: Tensor, text: TextBank) -> Scores:
        """region_logits [B, Q, K], valid [B, Q] -> Scores. Proposals must carry class logits [B, Q, K + 1]."""
        if proposals.class_logits is None:
            raise ValueError("RegionWithVoid needs a generator that tells void; use RegionOnly for this one")
        void_prob = proposals.class_logits.softmax(-1)[..., -1]
        return scores_from_probs(region_logits.softmax(-1) * (1 - void_prob[..., None]), void_prob)


class PowerProduct(nn.Module):
    """Product of powers of the generator's class scores and CLIP's, as it is: what a proposal loses to void is lost.

    OVSeg (arXiv 2210.04150), section 3.4 and its released code. Void takes part in the generator's softmax, where a
    proposal that is probably nothing fades, and not in CLIP's. A proposal CLIP cannot see counts as certain of every
    class there, so that its scores are powers of the generator's alone and may sum to more than one.
    """

    def __init__(self, weight: float, seen_weight: float | None = None) -> None:
        """weight: exponent of CLIP's scores, 0..1; that of the generator's is the rest of one. seen_weight: the same
        for classes seen in training, as in FreeSeg (arXiv 2303.17225); None for the same number."""
        super().__init__()
        self.weight = weight
        self.seen_weight = weight if seen_weight is None else seen_weight

    def forward(self, proposals: Proposals, region_logits: Tensor, valid: Tensor, text: TextBank) -> Scores:
        """region_logits [B, Q, K], valid [B, Q] -> Scores. Proposals must carry class logits [B, Q, K + 1]."""
        if proposals.class_logits is None:
            raise ValueError("PowerProduct needs a generator with class scores; use RegionOnly for this one")
        inner = proposals.class_logits.softmax(-1)
        outer = torch.where(valid[..., None], region_logits.softmax(-1), 1.0)
        weight: Tensor | float = self.weight
        if self.seen_weight != self.weight:
            weight = torch.where(text.seen, self.seen_weight, self.weight).to(outer)  # [K]
        return Scores(inner[..., :-1] ** (1 - weight) * outer**weight, inner[..., -1])

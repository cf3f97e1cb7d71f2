"""What a Mask-Adapter is trained with: slots of masks, a matcher by overlap, and two losses.

Mask-Adapter (CVPR 2025, arXiv 2412.04533), section 3.3, and its released code where the paper is silent. Both stages
show the adapter the same number of masks per picture, labelled or not, so that pictures can be stacked. The warm-up
shows true masks only; the second stage mixes true masks, masks of the generator that lie on a true one, and those
true ones again, blurred as the generator's grid blurs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.geometry import resize
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import Draw

UNLABELLED = -1
"""Label of a slot that says nothing about classes."""

WARMUP_SLOTS = 32


@dataclass(frozen=True)
class SlotPlan:
    """How the masks of one picture are laid out in the second stage: truth, then generated, then their truth."""

    truth: int = 16
    pairs: int = 8

    def split(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, ...] -> true masks [B, truth, ...], generated and paired true ones [B, pairs, ...] each."""
        truth, generated, paired = slots.split((self.truth, self.pairs, self.pairs), dim=1)
        return truth, generated, paired


@dataclass(frozen=True)
class Slots:
    """The masks of one picture that the adapter is shown, on the canvas."""

    masks: Tensor
    """[S, H, W] bool or in 0..1."""
    labels: Tensor
    """[S] int64 class indices, or UNLABELLED."""


@dataclass(frozen=True)
class MaskPairs:
    """Generated masks and the true ones they lie on, by increasing target unless some were drawn from too many."""

    proposals: Tensor
    """[M] int64; one proposal may lie on several targets."""
    targets: Tensor
    """[M] int64, each at most once."""


def present(targets: SegmentTargets) -> SegmentTargets:
    """The targets of which something is left on the picture."""
    kept = targets.masks.flatten(1).any(dim=1)
    return SegmentTargets(targets.labels[kept], targets.masks[kept], targets.known)


def truth_slots(targets: SegmentTargets, count: int, draw: Draw) -> Slots:
    """`count` true masks: all of them and empty, unlabelled slots after them, or as many drawn at random."""
    labels, masks = targets.labels, targets.masks
    if len(labels) > count:
        chosen = draw((len(labels),)).argsort()[:count].to(labels.device)
        labels, masks = labels[chosen], masks[chosen]
    missing = count - len(labels)
    return Slots(
        masks=functional.pad(masks, (0, 0, 0, 0, 0, missing)),
        labels=functional.pad(labels, (0, missing), value=UNLABELLED),
    )


@dataclass(frozen=True)
class OverlapMatcher:
    """Pairs each target with one of the proposals that cover it, whatever their classes.

    Any proposal above the threshold may be drawn, not the best one; a proposal may serve several targets.
    """

    threshold: float = 0.7
    """A proposal covers a target where their intersection over union is above it."""
    binarisation: float = 0.5
    """A pixel belongs to a proposal from this probability on. The released FC-CLIP adapter was trained with 0.4."""
    most: int = 8
    """Pairs of one picture; of more, as many are drawn."""

    @torch.no_grad()
    def __call__(self, mask_logits: Tensor, targets: SegmentTargets, draw: Draw) -> MaskPairs:
        """mask_logits [Q, h, w] of one picture -> its pairs. One draw over the targets, a second if too many match."""
        covers = self.overlaps(mask_logits, targets.masks) > self.threshold  # [Q, N]
        count = covers.sum(dim=0)  # [N]
        matched = count.nonzero().flatten()
        place = (draw((len(count),)).to(count.device) * count).long().clamp(max=count - 1)  # which of the candidates
        ranks = covers.cumsum(dim=0) - 1  # rank of each candidate among those of its target
        proposals = (covers & (ranks == place)).int().argmax(dim=0)[matched]
        if len(matched) > self.most:
            kept = draw((len(matched),)).argsort()[: self.most].to(matched.device)
            matched, proposals = matched[kept], proposals[kept]
        return MaskPairs(proposals=proposals, targets=matched)

    def overlaps(self, mask_logits: Tensor, masks: Tensor) -> Tensor:
        """mask_logits [Q, h, w], masks [N, H, W] -> intersection over union [Q, N], at the size of the proposals."""
        proposed = (mask_logits.sigmoid() >= self.binarisation).flatten(1).float()
        true = (at_size_of(mask_logits, masks) > 0.5).flatten(1).float()
        common = proposed @ true.T
        return common / (proposed.sum(dim=1)[:, None] + true.sum(dim=1) - common + 1e-6)


def at_size_of(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """masks [N, H, W] -> [N, h, w] in 0..1, as mask_logits [Q, h, w] would see them."""
    return resize(masks.to(mask_logits)[:, None], (mask_logits.shape[-2], mask_logits.shape[-1]))[:, 0]  # N may be 0


@torch.no_grad()
def mixed_slots(
    mask_logits: Tensor,
    targets: SegmentTargets,
    pairs: MaskPairs,
    truth: Slots,
    mask_threshold: float,
    plan: SlotPlan | None = None,
) -> Slots:
    """mask_logits [Q, h, w] of one picture, its pairs, and its slots of true masks -> the slots of the second stage.

    Generated masks are hard at `mask_threshold`, as in use, and then resized to the canvas. A pair that is missing is
    an unlabelled one of a logit of zero and an empty mask: with a threshold below 0.5 that is a full mask, and the
    released models were trained so.
    """
    plan = plan or SlotPlan()
    missing = plan.pairs - len(pairs.targets)
    canvas_hw = (truth.masks.shape[-2], truth.masks.shape[-1])
    generated = functional.pad(mask_logits[pairs.proposals], (0, 0, 0, 0, 0, missing)).sigmoid() > mask_threshold
    paired = functional.pad(at_size_of(mask_logits, targets.masks[pairs.targets]), (0, 0, 0, 0, 0, missing))
    coarse = torch.cat((generated.to(paired), paired))  # [2 pairs, h, w]
    labels = functional.pad(targets.labels[pairs.targets], (0, missing), value=UNLABELLED)
    return Slots(
        masks=torch.cat((truth.masks.to(coarse), resize(coarse[None], canvas_hw)[0])),
        labels=torch.cat((truth.labels, labels, labels)),
    )


def stack(slots: Sequence[Slots]) -> tuple[Tensor, Tensor]:
    """The slots of several pictures -> masks [B, S, H, W] in 0..1, labels [B, S]."""
    return torch.stack([one.masks.float() for one in slots]), torch.stack([one.labels for one in slots])


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """logits [B, S, K + 1], labels [B, S] -> cross-entropy, mean over the labelled slots; zero without any.

    Void is a column and never a label: it is only pushed away.
    """
    if bool((labels == UNLABELLED).all()):
        return logits.sum() * 0.0  # keeps every parameter in the graph, which data-parallel training needs
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=UNLABELLED)


def consistency_loss(generated: Tensor, truth: Tensor, detach_truth: bool) -> Tensor:
    """generated and truth [B, pairs, D], embeddings of paired masks -> one minus their mean cosine.

    Missing pairs count. detach_truth: only the generated side learns.
    """
    if detach_truth:
        truth = truth.detach()
    return 1 - functional.cosine_similarity(generated.float(), truth.float(), dim=-1, eps=1e-8).mean()


@dataclass(frozen=True)
class AdapterCriterion:
    """The losses of the second stage; the warm-up has `label_loss` alone, at the same weight."""

    detach_truth: bool
    """The released adapter on FC-CLIP was trained so, those on MAFT+ were not."""
    class_weight: float = 2.0
    consistency_weight: float = 5.0
    plan: SlotPlan = SlotPlan()

    def __call__(self, embeds: Tensor, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """embeds [B, S, D], logits [B, S, K + 1], labels [B, S] -> unweighted loss_ce and loss_cosine."""
        _, generated, paired = self.plan.split(embeds)
        return {
            "loss_ce": label_loss(logits, labels),
            "loss_cosine": consistency_loss(generated, paired, self.detach_truth),
        }

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses times their weights; their sum is what training minimises."""
        weights = {"loss_ce": self.class_weight, "loss_cosine": self.consistency_weight}
        return {name: weights[name] * loss for name, loss in losses.items()}

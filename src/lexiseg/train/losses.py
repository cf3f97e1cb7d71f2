"""The set criterion of Mask2Former and FC-CLIP: matched masks, their classes, and all else void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional

from lexiseg.train.matcher import Matcher, Matches, SegmentTargets
from lexiseg.train.points import Draw, sample_points, uncertain_points, uniform
from lexiseg.types import Proposals


def mask_loss(logits: Tensor, targets: Tensor, num_masks: Tensor | float, known: Tensor | None = None) -> Tensor:
    """logits and targets [M, P] -> binary cross-entropy: mean over points, summed over masks, / num_masks.

    known: [M, P] in 0..1, the points that count; None for all.
    """
    per_point = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if known is not None:
        return ((per_point * known).sum(dim=1) / known.sum(dim=1).clamp(min=1.0)).sum() / num_masks
    return per_point.mean(dim=1).sum() / num_masks


def dice_loss(logits: Tensor, targets: Tensor, num_masks: Tensor | float, known: Tensor | None = None) -> Tensor:
    """logits and targets [M, P] -> 1 - Dice coefficient smoothed by one point, summed over masks, / num_masks."""
    probs = logits.sigmoid()
    if known is not None:
        probs, targets = probs * known, targets * known
    overlap = 2 * (probs * targets).sum(dim=1)
    total = probs.sum(dim=1) + targets.sum(dim=1)
    return (1 - (overlap + 1) / (total + 1)).sum() / num_masks


def objectness(class_logits: Tensor) -> Tensor:
    """class_logits [B, Q, K + 1], void last -> [B, Q, 2]: any class at all against void."""
    return torch.stack((class_logits[..., :-1].logsumexp(dim=-1), class_logits[..., -1]), dim=-1)


@dataclass(frozen=True)
class Criterion:
    """Classification and mask losses of every prediction of a decoder.

    Each prediction has its own assignment and its own points. Proposals without class logits have no
    class loss. `class_agnostic` asks only whether a proposal is something or void: labels are ignored,
    in the assignment as in the loss.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    void_weight: float = 0.1
    """Weight of the class loss of unmatched proposals, which are the great majority."""
    num_points: int = 12544
    """112 * 112 points per mask."""
    oversample: float = 3.0
    importance: float = 0.75
    class_agnostic: bool = False

    @property
    def matcher(self) -> Matcher:
        """The assignment, whose cost weighs classes and masks as the losses do."""
        return Matcher(self.class_weight, self.mask_weight, self.dice_weight, self.num_points)

    def __call__(
        self, predictions: Sequence[Proposals], targets: Sequence[SegmentTargets], draw: Draw | None = None
    ) -> dict[str, Tensor]:
        """Unweighted losses by name: loss_ce, loss_mask and loss_dice of the last prediction, which is the
        output, and loss_ce_0, ... of the others, in order.

        Random numbers are drawn for the last prediction first, then for the others in order; for each one,
        the matcher's points picture by picture, the candidates of all matched masks of the batch, and their
        uniform points. All are on the device of the logits unless `draw` says otherwise.
        """
        device = predictions[-1].mask_logits.device
        draw = draw or uniform(device)
        num_masks = _mean_over_processes(sum(len(t.labels) for t in targets), device)
        losses = self._losses(predictions[-1], targets, num_masks, draw)
        for index, prediction in enumerate(predictions[:-1]):
            auxiliary = self._losses(prediction, targets, num_masks, draw)
            losses |= {f"{name}_{index}": loss for name, loss in auxiliary.items()}
        return losses

    def weighted(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses times their weights; their sum is what training minimises."""
        weights = {"ce": self.class_weight, "mask": self.mask_weight, "dice": self.dice_weight}
        return {name: weights[name.split("_")[1]] * loss for name, loss in losses.items()}

    def _losses(
        self, prediction: Proposals, targets: Sequence[SegmentTargets], num_masks: Tensor, draw: Draw
    ) -> dict[str, Tensor]:
        class_logits = prediction.class_logits
        if self.class_agnostic and class_logits is not None:
            class_logits = objectness(class_logits)
            targets = [SegmentTargets(torch.zeros_like(t.labels), t.masks, t.known) for t in targets]
        matches = [
            self.matcher(masks, None if class_logits is None else class_logits[index], target, draw)
            for index, (masks, target) in enumerate(zip(prediction.mask_logits, targets, strict=True))
        ]
        losses = {}
        if class_logits is not None:
            losses["loss_ce"] = self._class_loss(class_logits, targets, matches)
        losses |= self._mask_losses(prediction.mask_logits, targets, matches, num_masks, draw)
        return losses

    def _class_loss(self, class_logits: Tensor, targets: Sequence[SegmentTargets], matches: list[Matches]) -> Tensor:
        void = class_logits.shape[-1] - 1
        labels = torch.full(class_logits.shape[:2], void, dtype=torch.int64, device=class_logits.device)
        for row, target, match in zip(labels, targets, matches, strict=True):
            row[match.proposals] = target.labels[match.targets]
        weights = torch.ones(void + 1, device=class_logits.device)
        weights[void] = self.void_weight
        return functional.cross_entropy(class_logits.float().flatten(0, 1), labels.flatten(), weights)

    def _mask_losses(
        self,
        mask_logits: Tensor,
        targets: Sequence[SegmentTargets],
        matches: list[Matches],
        num_masks: Tensor,
        draw: Draw,
    ) -> dict[str, Tensor]:
        matched = torch.cat(
            [masks[match.proposals] for masks, match in zip(mask_logits, matches, strict=True)]
        ).float()  # [M, h, w]
        if len(matched) == 0:
            zero = mask_logits.sum() * 0.0  # keeps every parameter in the graph, which data-parallel training needs
            return {"loss_mask": zero, "loss_dice": zero}
        points = uncertain_points(matched.detach(), self.num_points, draw, self.oversample, self.importance)
        logits = sample_points(matched[:, None], points)[:, 0]  # [M, P]
        labels = _sample_targets(targets, matches, points)
        known = _sample_known(targets, matches, points)
        return {
            "loss_mask": mask_loss(logits, labels, num_masks, known),
            "loss_dice": dice_loss(logits, labels, num_masks, known),
        }


@torch.no_grad()
def _sample_targets(targets: Sequence[SegmentTargets], matches: list[Matches], points: Tensor) -> Tensor:
    """The matched target masks at points [M, P, 2]: [M, P] in 0..1, fractional at borders."""
    height = max(t.masks.shape[-2] for t in targets)
    width = max(t.masks.shape[-1] for t in targets)
    sampled = []
    for target, match, own_points in zip(
        targets, matches, points.split([len(m.targets) for m in matches]), strict=True
    ):
        masks = target.masks[match.targets].to(points)
        padding = (0, width - masks.shape[-1], 0, height - masks.shape[-2])
        sampled.append(sample_points(functional.pad(masks, padding)[:, None], own_points)[:, 0])
    return torch.cat(sampled)


@torch.no_grad()
def _sample_known(targets: Sequence[SegmentTargets], matches: list[Matches], points: Tensor) -> Tensor | None:
    """Whether points [M, P, 2] are where the truth is known: 0 or 1 [M, P], or None where all of it is."""
    if all(target.known is None for target in targets):
        return None
    height = max(t.masks.shape[-2] for t in targets)
    width = max(t.masks.shape[-1] for t in targets)
    sampled = []
    for target, own_points in zip(targets, points.split([len(match.targets) for match in matches]), strict=True):
        if target.known is None or len(own_points) == 0:
            sampled.append(own_points.new_ones(own_points.shape[:2]))
            continue
        padding = (0, width - target.known.shape[-1], 0, height - target.known.shape[-2])
        known = functional.pad(target.known.to(points), padding)[None, None]
        here = sample_points(known, own_points.flatten(0, 1)[None])[0, 0]
        sampled.append((here > 0.5).to(points).view(own_points.shape[:2]))
    return torch.cat(sampled)


def _mean_over_processes(count: int, device: torch.device) -> Tensor:
    """The mean of `count` over all processes, at least 1: losses are normalised alike in every process."""
    total = torch.tensor(float(count), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(total)
        total = total / distributed.get_world_size()
    return total.clamp(min=1.0)

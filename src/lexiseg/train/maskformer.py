"""How OVSeg's generators were trained: MaskFormer's set criterion (arXiv 2107.06278), and the schedule.

The criterion is like that of Mask2Former, on all pixels and with a focal loss. What nobody has labelled is outside of
every mask: `SegmentTargets.known` is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from lexiseg.geometry import resize
from lexiseg.train.losses import Criterion, dice_loss
from lexiseg.train.matcher import Matches, SegmentTargets, dice_cost
from lexiseg.train.points import Draw

WARMUP, WARMUP_FACTOR, POWER = 1500, 1e-6, 0.9
"""Of the schedule."""

INSIDE, GAMMA = 0.25, 2.0
"""Focal loss: the weight of pixels inside a mask, against 1 - INSIDE of those outside; how little easy ones count."""


def schedule(step: int, total_steps: int, warmup: int = WARMUP) -> float:
    """Factor on the learning rate: a linear rise, times a fall to zero that is nearly straight and begins at once."""
    rise = 1.0 if step >= warmup else WARMUP_FACTOR * (1 - step / warmup) + step / warmup
    return rise * (1 - step / total_steps) ** POWER


def focal_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What every pixel costs if it is inside, and if it is outside."""
    probs = logits.sigmoid()
    inside = INSIDE * (1 - probs) ** GAMMA * functional.softplus(-logits)
    return inside, (1 - INSIDE) * probs**GAMMA * functional.softplus(logits)


def focal_loss(logits: Tensor, targets: Tensor, num_masks: Tensor | float) -> Tensor:
    """logits and targets [M, P] -> mean over pixels, summed over masks, / num_masks."""
    inside, outside = focal_terms(logits)
    return (inside * targets + outside * (1 - targets)).mean(dim=1).sum() / num_masks


def focal_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [Q, P], targets [N, P] -> [Q, N]: mean over pixels."""
    inside, outside = focal_terms(logits)
    return (inside @ targets.T + outside @ (1 - targets).T) / logits.shape[1]


@dataclass(frozen=True)
class PixelMatcher:
    """Hungarian assignment at the size of the prediction; the fields weigh the parts of the cost."""

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0

    @torch.no_grad()
    def __call__(
        self, mask_logits: Tensor, class_logits: Tensor | None, targets: SegmentTargets, draw: Draw
    ) -> Matches:
        """mask_logits [Q, h, w], class_logits [Q, K + 1] of one picture -> min(Q, N) pairs. Nothing is drawn."""
        cost = self.cost(mask_logits, class_logits, targets).cpu().numpy()
        proposals, chosen = (torch.from_numpy(rows.astype(np.int64)) for rows in linear_sum_assignment(cost))
        return Matches(proposals.to(mask_logits.device), chosen.to(mask_logits.device))

    def cost(self, mask_logits: Tensor, class_logits: Tensor | None, targets: SegmentTargets) -> Tensor:
        """[Q, N]. Targets come to the size of the prediction by the nearest pixel."""
        masks = functional.interpolate(targets.masks[:, None].float(), size=mask_logits.shape[-2:], mode="nearest")
        logits, inside = mask_logits.float().flatten(1), masks.flatten(1)
        cost = self.mask_weight * focal_cost(logits, inside) + self.dice_weight * dice_cost(logits, inside)
        if class_logits is not None:
            cost = cost - self.class_weight * class_logits.float().softmax(dim=-1)[:, targets.labels]
        return cost


@dataclass(frozen=True)
class PixelCriterion(Criterion):
    """Classification and mask losses of every prediction of a decoder, as the released OVSeg models were trained."""

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0

    @property
    def matcher(self) -> PixelMatcher:  # type: ignore[override]  # it is called like the other, and draws nothing
        return PixelMatcher(self.class_weight, self.mask_weight, self.dice_weight)

    def _mask_losses(
        self,
        mask_logits: Tensor,
        targets: Sequence[SegmentTargets],
        matches: list[Matches],
        num_masks: Tensor,
        draw: Draw,
    ) -> dict[str, Tensor]:
        """At the size of the targets. Those of different pictures are padded to one size, with what is outside."""
        height, width = (max(target.masks.shape[axis] for target in targets) for axis in (-2, -1))
        losses = {"loss_mask": mask_logits.sum() * 0.0, "loss_dice": mask_logits.sum() * 0.0}
        for masks, target, match in zip(mask_logits, targets, matches, strict=True):
            if len(match.proposals) == 0:
                continue
            logits = resize(masks[match.proposals][None].float(), (height, width))[0].flatten(1)
            true = target.masks[match.targets].to(logits)
            true = functional.pad(true, (0, width - true.shape[-1], 0, height - true.shape[-2])).flatten(1)
            losses["loss_mask"] = losses["loss_mask"] + focal_loss(logits, true, num_masks)
            losses["loss_dice"] = losses["loss_dice"] + dice_loss(logits, true, num_masks)
        return losses

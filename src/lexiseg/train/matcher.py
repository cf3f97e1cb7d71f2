"""One-to-one assignment of proposals to ground-truth segments, by the cost of Mask2Former (arXiv 2112.01527)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from lexiseg.train.points import Draw, sample_points


@dataclass(frozen=True)
class SegmentTargets:
    """The ground-truth segments of one picture."""

    labels: Tensor
    """[N] int64 class indices, 0..K-1."""
    masks: Tensor
    """[N, H, W] bool on the canvas, false in the padding; they need not cover it."""
    known: Tensor | None = None
    """[H, W] bool: false where nobody has said what is there: nothing is asked of any mask. None: all is known."""


@dataclass(frozen=True)
class Matches:
    """Pairs of one picture, by increasing proposal index."""

    proposals: Tensor
    """[M] int64."""
    targets: Tensor
    """[M] int64."""


@dataclass(frozen=True)
class Matcher:
    """Hungarian assignment; the fields weigh the parts of the cost."""

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    num_points: int = 12544

    @torch.no_grad()
    def __call__(
        self, mask_logits: Tensor, class_logits: Tensor | None, targets: SegmentTargets, draw: Draw
    ) -> Matches:
        """mask_logits [Q, h, w], class_logits [Q, K + 1] of one picture -> min(Q, N) pairs.

        One draw, [1, num_points, 2]: all masks of the picture are compared at the same points.
        """
        points = draw((1, self.num_points, 2)).to(mask_logits.device)
        cost = self.cost(mask_logits, class_logits, targets, points).cpu().numpy()
        proposals, chosen = linear_sum_assignment(cost)
        return Matches(
            proposals=torch.from_numpy(proposals.astype(np.int64)).to(mask_logits.device),
            targets=torch.from_numpy(chosen.astype(np.int64)).to(mask_logits.device),
        )

    def cost(self, mask_logits: Tensor, class_logits: Tensor | None, targets: SegmentTargets, points: Tensor) -> Tensor:
        """[Q, N] float32 at points [1, P, 2]. Without class logits the masks alone decide."""
        with torch.autocast(mask_logits.device.type, enabled=False):
            logits = sample_points(mask_logits[None].float(), points)[0]  # [Q, P]
            inside = sample_points(targets.masks[None].to(logits), points)[0]  # [N, P], fractional at borders
            if targets.known is not None:
                told = sample_points(targets.known[None, None].to(logits), points)[0, 0] > 0.5  # [P]
                logits, inside = logits[:, told], inside[:, told]
            cost = self.mask_weight * mask_cost(logits, inside) + self.dice_weight * dice_cost(logits, inside)
            if class_logits is not None:
                cost = cost - self.class_weight * class_logits.float().softmax(dim=-1)[:, targets.labels]
        return cost


def mask_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [Q, P], targets [N, P] in 0..1 -> [Q, N]: binary cross-entropy, mean over the points."""
    inside = functional.softplus(-logits) @ targets.T
    outside = functional.softplus(logits) @ (1 - targets).T
    return (inside + outside) / max(1, logits.shape[1])


def dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [Q, P], targets [N, P] in 0..1 -> [Q, N]: 1 - Dice coefficient, smoothed by one point."""
    probs = logits.sigmoid()
    overlap = 2 * probs @ targets.T
    total = probs.sum(dim=1)[:, None] + targets.sum(dim=1)
    return 1 - (overlap + 1) / (total + 1)

"""What a generator of masks could reach if all its masks were called by their right names.

MaskCLIP++, proposal upper bound: each true mask is given to one mask of the generator, so that the sum of overlaps is
the largest there is, and names it; the usual measures then tell what is left to the generator alone.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

NO_CLASS = -1
"""The name of a mask that no true one was given to."""


def coarse_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """masks [Q, H, W] bool, truth [N, H, W] bool -> IoU [Q, N] float64, read at every fourth row and column."""
    first, second = (_every_fourth(part).flatten(1).double() for part in (masks, truth))
    common = first @ second.T
    union = first.sum(1)[:, None] + second.sum(1) - common
    return common / (union + 1e-6)


def true_names(masks: Tensor, truth: Tensor, classes: Tensor) -> Tensor:
    """masks [Q, H, W] bool, truth [N, H, W] bool of classes [N] -> [Q] int64, `NO_CLASS` for masks that get none."""
    rows, columns = linear_sum_assignment(coarse_iou(masks, truth).cpu().numpy(), maximize=True)
    names = torch.full((len(masks),), NO_CLASS, dtype=torch.int64, device=classes.device)
    names[torch.from_numpy(rows)] = classes[torch.from_numpy(columns)]
    return names


def _every_fourth(masks: Tensor) -> Tensor:
    height, width = (max(1, side // 4) for side in masks.shape[-2:])
    return masks[:, ::4, ::4][:, :height, :width]

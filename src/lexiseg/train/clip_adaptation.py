"""What OVSeg trains its CLIP on: masked regions with words. The loss, and how a stored region is looked at.

Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150), section 3.2 and 3.3.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

AREA, RATIO = (0.9, 1.0), (3 / 4, 4 / 3)
"""Of the part of a region that is looked at in training: its share of the region, and its width by its height."""
TRIES = 10
"""Parts drawn before the largest possible one in the middle is taken."""


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, factor: Tensor) -> Tensor:
    """Unit rows [N, D] of regions and of their words -> mean of the cross-entropies in both directions.

    factor: of the similarities, no logarithm. All other rows of the batch count as wrong, even those with its word.
    """
    logits = factor * image_embeds @ text_embeds.T
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def of_all_processes(rows: Tensor) -> Tensor:
    """Rows [n, D] of this process -> [N, D] of all, in the order of their ranks. Only its own have a gradient."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    parts[dist.get_rank()] = rows
    return torch.cat(parts)


def random_view(rng: random.Random, region: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """region [H, W, 3] -> [side, side, 3]: most of it, stretched to a square bicubically.

    The mask is read off the result by its colours: the rim, where colours are mixed, counts as shown.
    """
    height, width = region.shape[:2]
    for _ in range(TRIES):
        area = height * width * rng.uniform(*AREA)
        ratio = math.exp(rng.uniform(*map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    part = Image.fromarray(np.ascontiguousarray(region[top : top + h, left : left + w]))
    return np.asarray(part.resize((side, side), Image.Resampling.BICUBIC))


def centre_view(region: Image.Image, side: int) -> NDArray[np.uint8]:
    """RGB -> [side, side, 3]: the short edge resized to `side`, bicubically, and the middle cut out.

    As for evaluation: its mask is read off it, whose rim is a little wider than that of the stored one.
    """
    width, height = (int(side * edge / min(region.size)) for edge in region.size)
    resized = region.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))

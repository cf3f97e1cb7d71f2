"""What OVSeg trains its CLIP on: masked regions with words. The loss, the mask that a stored region carries, its view.

Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150), section 3.2 and 3.3.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

FILL = (124, 116, 103)
"""The colour of the background in stored regions: by it the mask is known again, so files must be lossless."""


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, factor: Tensor) -> Tensor:
    """Unit rows [N, D] of regions and of their words -> mean of the cross-entropies in both directions.

    factor: of the similarities, no logarithm. All other rows of the batch count as wrong, even those with its word.
    """
    logits = factor * image_embeds @ text_embeds.T
    labels = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def shown_part(region: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """region [H, W, 3] -> [H, W]: all that is not exactly of the background's colour."""
    return (region != np.array(FILL, np.uint8)).any(axis=-1)


def centre_view(region: Image.Image, side: int) -> NDArray[np.uint8]:
    """RGB -> [side, side, 3]: the short edge resized to `side`, bicubically, and the middle cut out.

    As for evaluation: its mask is read off it, whose rim is a little wider than that of the stored one.
    """
    width, height = (int(side * edge / min(region.size)) for edge in region.size)
    resized = region.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return np.asarray(resized.crop((left, top, left + side, top + side)))

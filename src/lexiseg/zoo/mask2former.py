"""Mask2Former's generators with a Swin backbone, trained on the 133 classes of COCO panoptic.

Paper: Masked-attention Mask Transformer for Universal Image Segmentation (CVPR 2022, arXiv 2112.01527). Code licence of
the original: MIT, some parts Apache-2.0; this is an implementation from the paper and a specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lexiseg.backbones.swin import Swin
from lexiseg.proposals.mask2former import mask2former_generator
from lexiseg.proposals.own_backbone import OwnBackbone

SWIN: dict[str, dict[str, Any]] = {
    "swin_tiny": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": 7},
    "swin_base": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "window": 12},
    "swin_large": {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48), "window": 12},
}
"""Name -> the arguments of `Swin`; windows as in the released segmentation models."""


def build_swin(swin: str | Mapping[str, Any]) -> Swin:
    """A Swin backbone by its name in SWIN, or by the arguments of `Swin`."""
    if isinstance(swin, str) and swin not in SWIN:
        raise ValueError(f"no Swin is called {swin!r}: choose one of {', '.join(SWIN)}, or give its sizes")
    return Swin(**(SWIN[swin] if isinstance(swin, str) else swin))


def mask2former(
    swin: str | Mapping[str, Any],
    *,
    num_classes: int = 133,
    num_queries: int = 100,
    device: str | torch.device = "meta",
    **generator: int,
) -> OwnBackbone:
    """A generator of masks with classes of its own; its backbone looks at the canvas as it is.

    swin: a name of SWIN or the arguments of `Swin`. num_queries: 100 for the released tiny model, 200 for the large.
    generator: arguments of `mask2former_generator`. On the meta device nothing is allocated; on a real one the weights
    are random.
    """
    with torch.device(device):
        backbone = build_swin(swin)
        head = mask2former_generator(backbone.channels, num_classes, num_queries=num_queries, **generator)
        return OwnBackbone(backbone, head)

"""Mask-Adapter on FC-CLIP and on MAFT+: the same systems, with a network that tells where to look for each mask.

Paper: Mask-Adapter: The Devil is in the Masks for Open-Vocabulary Segmentation (CVPR 2025, arXiv 2412.04533). Code
licence of the original: Apache-2.0; this is an implementation from the paper and a specification.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lexiseg.clip.open_clip import clip_config
from lexiseg.images import Canvas
from lexiseg.layers.dense_projection import DenseOrder
from lexiseg.regions.mask_adapter import MaskAdapter, MaskAdapterPool
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.scoring.image_conditioned import NormOrder
from lexiseg.system import System
from lexiseg.zoo.fcclip import fcclip
from lexiseg.zoo.maftplus import maftplus

CANVAS = Canvas(short_edge=896, long_edge=896)
"""The long edge becomes 896: unlike the models it stands on, the adapter was scored so on every benchmark."""

FCCLIP_OVERLAP_THRESHOLD, MAFTPLUS_OVERLAP_THRESHOLD = 0.8, 0.7
"""Of panoptic results; the object threshold is 0 for both."""


def mask_adapter_fcclip(
    tower: str | dict[str, Any],
    *,
    alpha: float = 0.7,
    beta: float = 0.9,
    mask_threshold: float = 0.5,
    dense_order: DenseOrder = "position",
    adapter_width: int = 768,
    adapter_mask_width: int = 16,
    adapter_maps: int = 16,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """FC-CLIP with an adapter: the released model, or a smaller one by other numbers.

    tower: a name or a configuration of open_clip. alpha, beta: the weight of the adapter's verdict for classes seen in
    training and for the others. mask_threshold: what the adapter is shown as inside. generator: arguments of
    `fcclip_generator`. On the meta device nothing is allocated; on a real one the weights are random.
    """
    base = fcclip(tower, device=device, **generator)
    adapter = _adapter(tower, adapter_width, adapter_mask_width, adapter_maps, device)
    return _with_adapter(base, adapter, mask_threshold, dense_order, GeometricEnsemble(alpha, beta))


def mask_adapter_maftplus(
    tower: str | dict[str, Any],
    *,
    alpha: float = 0.7,
    beta: float = 1.0,
    mask_threshold: float = 0.45,
    norm_order: NormOrder = "after_sum",
    dense_order: DenseOrder = "memory",
    num_queries: int = 100,
    transfer_heads: int = 8,
    adapter_width: int = 768,
    adapter_mask_width: int = 16,
    adapter_maps: int = 16,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """MAFT+ with an adapter: the released base model, or another by other numbers.

    Unlike MAFT+ alone, it asks the generator about classes too. The released large model has alpha 0.8, mask_threshold
    0.4 and norm_order "before_sum". The other arguments are those of `maftplus` and `mask_adapter_fcclip`.
    """
    base = maftplus(
        tower,
        norm_order=norm_order,
        dense_order=dense_order,
        num_queries=num_queries,
        transfer_heads=transfer_heads,
        device=device,
        **generator,
    )
    adapter = _adapter(tower, adapter_width, adapter_mask_width, adapter_maps, device)
    return _with_adapter(base, adapter, mask_threshold, dense_order, GeometricEnsemble(alpha, beta))


def _adapter(
    tower: str | dict[str, Any], width: int, mask_width: int, num_maps: int, device: str | torch.device
) -> MaskAdapter:
    with torch.device(device):
        return MaskAdapter(clip_config(tower)["embed_dim"], width, mask_width, num_maps)


def _with_adapter(
    base: System, adapter: MaskAdapter, mask_threshold: float, dense_order: DenseOrder, fuse: nn.Module
) -> System:
    """`base` with the adapter in the place of its mean inside the masks, under the same CLIP head."""
    if not isinstance(base.embedder, MaskPool):
        raise ValueError("an adapter reads CLIP's map in the joint space; the pooling of a CLIP ResNet has none")
    embedder = MaskAdapterPool(adapter, base.embedder.projection, mask_threshold, dense_order)
    return System(base.encoder, base.generator, embedder, base.scorer, fuse)

"""One CLIP serving a system twice: as the encoder, and as the embedder that reads regions with its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lexiseg.clip.convnet import TimmTrunk
from lexiseg.clip.open_clip import build_image_tower
from lexiseg.clip.resnet import ResNetTrunk
from lexiseg.regions.attention_pool import AttentionPool, MaskedAttention2d
from lexiseg.regions.mask_pool import MaskPool


def encoder_and_embedder(
    tower: str | Mapping[str, Any], device: str | torch.device
) -> tuple[TimmTrunk | ResNetTrunk, MaskPool | AttentionPool]:
    """The trunk of a CLIP, frozen, and the pooling its family needs: attention for the ResNets, else the mean."""
    parts = build_image_tower(tower, device=device)
    embedder: MaskPool | AttentionPool
    with torch.device(device):
        if parts.projection is not None:
            embedder = MaskPool(parts.projection)
        else:
            embedder = AttentionPool(MaskedAttention2d(**(parts.attention_pool or {})))
    return parts.trunk, embedder.requires_grad_(False)

"""Convolutional image trunks of timm: the ConvNeXt of CLIP, and our own pyramid."""

from __future__ import annotations

from typing import Any

from torch import nn

from lexiseg.clip.trunk import Trunk
from lexiseg.types import Features, Images

STRIDES = (4, 8, 16, 32)


class TimmTrunk(Trunk):
    """Any timm trunk with maps at strides 4, 8, 16 and 32, through timm's own `forward_intermediates`.

    The dense map is what timm calls the final features. A ConvNeXt's is its last map, not normalised: its final norm
    is applied after pooling and belongs to the projection, so it is taken out of the trunk. Our pyramid's is at
    stride 4.
    """

    def __init__(self, trunk: Any, **options: Any) -> None:
        """trunk: a timm model; its head is dropped. options: those of `Trunk`."""
        trunk.head = nn.Identity()
        infos = list(trunk.feature_info)
        strides = [info["reduction"] for info in infos]
        if not set(STRIDES) <= set(strides):
            raise ValueError(f"{type(trunk).__name__} has maps at strides {strides}; needed are {list(STRIDES)}")
        # The last map of a stride, should there be two: deeper, at the same price for what reads it.
        indices = [len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES]
        channels = tuple(infos[index]["num_chs"] for index in indices)
        super().__init__(trunk, channels, trunk.num_features, **options)
        self.indices = indices

    def forward(self, images: Images) -> Features:
        """pixels [B, 3, H, W], 0..255 -> maps at strides 4, 8, 16, 32 of the canvas, and the dense map."""
        dense, maps = self.trunk.forward_intermediates(self.normalise(images), indices=self.indices)
        return Features(maps=tuple(maps), dense=dense)

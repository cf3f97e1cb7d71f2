"""Convolutional image trunks of timm: the ConvNeXt of CLIP, and our own pyramid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lexiseg.clip.projection import Projection
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


class MaskPromptedConvNet(nn.Module):
    """A convolutional CLIP tower for square pictures of which only a part is shown: the rest may be learned.

    Our equivalent of OVSeg's mask prompts (arXiv 2210.04150, section 3.3), which are made for transformers: there every
    wholly blank patch is replaced by a learned token of its place before a block. A convolution has no tokens, so here
    every blank pixel is replaced by a learned colour of its place, before the first layer. As there, the prompts are
    looked at like anything else. They begin as zero, which is CLIP's mean colour: what blank pixels show anyway.
    """

    def __init__(self, trunk: Any, projection: Projection, *, image_size: int, prompted: bool = False) -> None:
        """trunk: of timm, its `forward_features` the map that CLIP pools by its mean. image_size S."""
        super().__init__()
        self.trunk, self.projection = trunk, projection
        self.image_size = image_size
        self.embed_dim = projection.embed_dim
        self.mask_embedding = nn.Parameter(torch.zeros(3, image_size, image_size)) if prompted else None

    def keep(self, masks: Tensor) -> Tensor:
        """Region masks [N, S, S], bool or in 0..1 -> bool [N, S, S]: pixels with any foreground."""
        return masks > 0

    def forward(self, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
        """pixels [N, 3, S, S], normalised, keep bool [N, S, S] -> [N, D], not normalised. Without `keep` or without
        prompts it is the plain tower."""
        if keep is not None and self.mask_embedding is not None:
            pixels = torch.where(keep[:, None], pixels, self.mask_embedding)
        dense = self.trunk.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        return self.projection(dense.mean((-2, -1)))

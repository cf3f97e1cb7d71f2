"""The modified ResNets of OpenAI's CLIP."""

from __future__ import annotations

from typing import Any

from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from lexiseg.clip.trunk import Trunk
from lexiseg.types import Features, Images


class ResNetTrunk(Trunk):
    """open_clip's `ModifiedResNet` (Radford et al., arXiv 2103.00020) without its attention pooling.

    The pooling carries the projection as well, so it belongs to the embedder. The dense map is the last one.
    """

    def __init__(self, trunk: ModifiedResNet, **options: Any) -> None:
        """trunk: a ModifiedResNet; its pooling is dropped. options: those of `Trunk`."""
        trunk.attnpool = None
        channels = tuple(getattr(trunk, f"layer{i}")[-1].conv3.out_channels for i in (1, 2, 3, 4))
        super().__init__(trunk, channels, channels[-1], **options)

    def stem(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W], normalised -> [B, C, H/2, W/2], before the average pooling."""
        net = self.trunk
        for i in (1, 2, 3):
            convolution, norm, activation = (getattr(net, f"{part}{i}") for part in ("conv", "bn", "act"))
            pixels = activation(norm(convolution(pixels)))
        return pixels

    def forward(self, images: Images) -> Features:
        """pixels [B, 3, H, W], 0..255 -> maps at strides 4, 8, 16, 32 of the canvas; the last one is the dense map."""
        x = self.trunk.avgpool(self.stem(self.normalise(images)))
        maps = []
        for i in (1, 2, 3, 4):
            x = getattr(self.trunk, f"layer{i}")(x)
            maps.append(x)
        return Features(maps=tuple(maps), dense=x)

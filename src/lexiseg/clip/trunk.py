"""What all image trunks share: their view of a photo, and staying as they were trained."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from lexiseg.types import Images

# CLIP's constants for photos in 0..255, in the digits the released systems were scored with.
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


class Trunk(nn.Module):
    """An image trunk under its own tensor names, `trunk.*`, and how it wants its input.

    A frozen trunk takes no gradients and stays in evaluation mode whatever is around it: batch norm keeps its running
    statistics and no path is dropped.
    """

    def __init__(
        self,
        trunk: Any,
        channels: tuple[int, ...],
        dense_channels: int,
        *,
        frozen: bool = True,
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
    ) -> None:
        """trunk: a module of open_clip or timm. channels: of the four maps. dense_channels: of the map that CLIP pools.
        mean, std: for RGB in 0..255."""
        super().__init__()
        self.trunk: Any = trunk
        self.channels = channels
        self.dense_channels = dense_channels
        self.frozen = frozen
        # Plain numbers, no buffers: they are in no checkpoint, and a trunk built on the meta device must keep them.
        self.mean = mean
        self.std = std
        if frozen:
            trunk.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def normalise(self, images: Images) -> Tensor:
        """[B, 3, H, W] as the trunk wants it: normalised, in its precision, exactly zero in the padding.

        Padding comes after normalisation. The padded canvas takes part in everything, so its value matters.
        """
        pixels = images.pixels
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        out = (pixels - mean) / std
        height, width = images.canvas_hw
        for index, (h, w) in enumerate(images.sizes_hw):
            if h < height:
                out[index, :, h:] = 0
            if w < width:
                out[index, :, :, w:] = 0
        dtype = next(self.trunk.parameters()).dtype
        return out.to(dtype).contiguous(memory_format=torch.channels_last)

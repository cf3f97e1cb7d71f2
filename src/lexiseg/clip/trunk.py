"""What all image trunks share: their view of a photo, and staying as they were trained."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD, Colour, normalise
from lexiseg.types import Images


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
        mean: Colour = CLIP_MEAN,
        std: Colour = CLIP_STD,
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
        """[B, 3, H, W] as the trunk wants it: normalised, in its precision, exactly zero in the padding."""
        dtype = next(self.trunk.parameters()).dtype
        return normalise(images, self.mean, self.std).to(dtype).contiguous(memory_format=torch.channels_last)

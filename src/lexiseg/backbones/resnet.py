"""ResNet-101c: the backbone of the smaller OVSeg model and of FreeSeg.

Deep Residual Learning (arXiv 1512.03385), in the form that DeepLab gave it: three small convolutions in the place of
the first large one, the stride on the 3 x 3 convolutions, and growing dilations in the last stage. No library has all
three together. Its batch norms are frozen: four buffers each, no parameters.

Tensor names are those of the released checkpoints below `backbone.`:

    stem.conv{1, 2, 3}.{weight, norm.*}
    res{2..5}.{block}.{conv1, conv2, conv3, shortcut}.{weight, norm.*}     the shortcut in the first block of a stage
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.normalise import IMAGENET_MEAN, IMAGENET_STD, Colour, normalise
from lexiseg.types import Features, Images

EXPANSION = 4
"""A block is this many times as wide outside as inside."""


class FrozenBatchNorm(nn.Module):
    """Batch norm with statistics, scale and shift that never change."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, h, w] -> the same shape."""
        # One call, not a multiplication and an addition: those move the last bits, and masks at a threshold with them.
        return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class FrozenConv(nn.Conv2d):
    """Convolution without bias, then a frozen batch norm stored as `norm` beside its weight."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False)
        self.norm = FrozenBatchNorm(out_channels)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, h, w] -> [B, out_channels, h / stride, w / stride]."""
        return self.norm(super().forward(x))


class Stem(nn.Module):
    """Three convolutions and a pooling: stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = FrozenConv(3, width, 3, stride=2)
        self.conv2 = FrozenConv(width, width, 3)
        self.conv3 = FrozenConv(width, 2 * width, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W], normalised -> [B, 2 width, H / 4, W / 4]."""
        x = functional.relu(self.conv1(pixels))
        x = functional.relu(self.conv2(x))
        x = functional.relu(self.conv3(x))
        return functional.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolution; residual."""

    def __init__(self, in_channels: int, width: int, stride: int, dilation: int, first: bool) -> None:
        """first: of its stage, whose shortcut is a convolution."""
        super().__init__()
        out_channels = EXPANSION * width
        self.shortcut = FrozenConv(in_channels, out_channels, 1, stride) if first else nn.Identity()
        self.conv1 = FrozenConv(in_channels, width, 1)
        self.conv2 = FrozenConv(width, width, 3, stride, dilation)
        self.conv3 = FrozenConv(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, h, w] -> [B, 4 width, h / stride, w / stride]."""
        y = functional.relu(self.conv1(x))
        y = functional.relu(self.conv2(y))
        return functional.relu(self.conv3(y) + self.shortcut(x))


class ResNet(nn.Module):
    """The released backbone, unless other numbers are given."""

    def __init__(
        self,
        depths: Sequence[int] = (3, 4, 23, 3),
        width: int = 64,
        last_dilations: Sequence[int] = (1, 2, 4),
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        """depths: blocks of each of the four stages. width: of the stem, and of the inside of the first stage; each
        stage has twice that of the one before. last_dilations: one per block of the last stage."""
        super().__init__()
        if len(depths) != 4 or len(last_dilations) != depths[-1]:
            raise ValueError("four stages are needed, and a dilation for each block of the last one")
        self.mean, self.std = mean, std
        self.channels = tuple(EXPANSION * width * 2**index for index in range(4))
        self.stem = Stem(width)
        in_channels = 2 * width
        for index, depth in enumerate(depths):
            dilations = last_dilations if index == 3 else [1] * depth
            blocks = []
            for block, dilation in enumerate(dilations):
                stride = 2 if index > 0 and block == 0 else 1
                blocks.append(Bottleneck(in_channels, width * 2**index, stride, dilation, first=block == 0))
                in_channels = self.channels[index]
            self.add_module(f"res{index + 2}", nn.Sequential(*blocks))

    def forward(self, images: Images) -> Features:
        """pixels [B, 3, H, W], 0..255 -> maps at strides 4, 8, 16 and 32 of the canvas."""
        return self.maps(normalise(images, self.mean, self.std))

    def maps(self, pixels: Tensor) -> Features:
        """pixels [B, 3, H, W], normalised -> the same."""
        x = self.stem(pixels)
        maps = []
        for index in range(4):
            x = self.get_submodule(f"res{index + 2}")(x)
            maps.append(x)
        return Features(maps=tuple(maps), dense=maps[-1])

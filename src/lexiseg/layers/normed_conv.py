"""A convolution that carries its group normalisation."""

from __future__ import annotations

from torch import Tensor, nn


def init_fpn_conv(conv: nn.Conv2d) -> None:
    """Uniform with the variance of one over the fan-in, zero bias: "c2 Xavier" of feature pyramids."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class NormedConv(nn.Conv2d):
    """Convolution without bias, then group normalisation stored as `norm` beside its weight."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels)
        init_fpn_conv(self)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, h, w] -> [B, out_channels, h, w]."""
        return self.norm(super().forward(x))

"""Swin Transformer: the backbone of Mask2Former's large models and of the large OVSeg model.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (arXiv 2103.14030). Written out: the versions in
timm and torchvision are for classification. timm rolls a map before it fills the last windows, these models after it;
torchvision leaves the shift out where a map is no larger than a window; neither has a norm on the maps of a stage.

Tensor names are those of the released checkpoints below `backbone.`, without `attn.relative_position_index`, which
follows from the size of the window:

    patch_embed.{proj, norm}.{weight, bias}
    layers.{stage}.blocks.{block}.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}.{weight, bias}
    layers.{stage}.blocks.{block}.attn.relative_position_bias_table
    layers.{stage}.downsample.{norm.{weight, bias}, reduction.weight}          not in the last stage
    norm{stage}.{weight, bias}
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import StochasticDepth

from lexiseg.layers.normalise import IMAGENET_MEAN, IMAGENET_STD, Colour, normalise
from lexiseg.types import Features, Images

PATCH = 4

APART = -100.0
"""Added to the similarity of positions that only the shift has brought into one window."""


def to_windows(x: Tensor, window: int) -> Tensor:
    """x [B, h, w, C], sides multiples of `window` -> [B h w / window^2, window^2, C], row by row."""
    batch, h, w, channels = x.shape
    x = x.view(batch, h // window, window, w // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: Tensor, window: int, h: int, w: int) -> Tensor:
    """The inverse of `to_windows`: [B h w / window^2, window^2, C] -> [B, h, w, C]."""
    x = windows.view(-1, h // window, w // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, h, w, windows.shape[-1])


def relative_index(window: int, device: torch.device) -> Tensor:
    """[window^2, window^2] int64: the row of the bias table for each pair of positions, query first.

    (dy + window - 1) (2 window - 1) + dx + window - 1, where (dy, dx) is the query's place minus the key's.
    """
    side = torch.arange(window, device=device)
    distance = side[:, None] - side + window - 1  # [window, window]
    index = distance[:, None, :, None] * (2 * window - 1) + distance[:, None]  # [y, x, y', x']
    return index.flatten(2).flatten(0, 1)


def shift_mask(h: int, w: int, window: int, device: torch.device) -> Tensor:
    """[windows, window^2, window^2]: zero for positions that were neighbours before a map [h, w] was rolled.

    Each axis has three regions: what the roll has left in place, what shares the last window with it, and what it has
    brought from the other end.
    """

    def regions(count: int) -> Tensor:
        place = torch.arange(count, device=device)
        return (place >= count - window).int() + (place >= count - window // 2).int()

    region = (3 * regions(h)[:, None] + regions(w))[None, :, :, None]  # [1, h, w, 1]
    region = to_windows(region, window)[..., 0]  # [windows, window^2]
    return (region[:, None] != region[:, :, None]) * APART


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for each relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows [N, L, width], L = window^2; mask [n, L, L] added for n windows at a time -> [N, L, width]."""
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, L, dim]
        index = relative_index(self.window, windows.device)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)  # [heads, L, L]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias  # [N, heads, L, L]
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention inside windows and a feed-forward part; residual, normalised before each."""

    def __init__(self, width: int, heads: int, window: int, shifted: bool, mlp_ratio: float, drop_path: float) -> None:
        """shifted: the windows are displaced by half of their size. drop_path: share of skipped parts in training."""
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        mlp = {"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(mlp))
        self.drop_path = StochasticDepth(drop_path, "row")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, h, w, width], mask of `shift_mask` -> the same shape."""
        x = x + self.drop_path(self.attend(self.norm1(x), mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, h, w, width], normalised -> the same shape. What is added to fill the last windows is looked at."""
        h, w = x.shape[1:3]
        x = functional.pad(x, (0, 0, 0, -w % self.window, 0, -h % self.window))
        padded_h, padded_w = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.attn(to_windows(x, self.window), mask if self.shift else None)
        x = from_windows(windows, self.window, padded_h, padded_w)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :h, :w]


class PatchMerging(nn.Module):
    """Each 2 x 2 positions become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, h, w, width] -> [B, h / 2, w / 2, 2 width], rounded up."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Stage(nn.Module):
    """Blocks of one width; every other one is shifted."""

    def __init__(
        self, width: int, heads: int, window: int, mlp_ratio: float, drop_paths: Sequence[float], last: bool
    ) -> None:
        """drop_paths: one per block."""
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(width, heads, window, index % 2 == 1, mlp_ratio, drop) for index, drop in enumerate(drop_paths)
        )
        self.downsample = nn.Identity() if last else PatchMerging(width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, h, w, width] -> the stage's own output, and what the next stage starts from."""
        h, w = (-(-side // self.window) * self.window for side in x.shape[1:3])
        mask = shift_mask(h, w, self.window, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x, self.downsample(x)


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels to vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W], normalised -> [B, H / 4, W / 4, width], rounded up."""
        pixels = functional.pad(pixels, (0, -pixels.shape[3] % PATCH, 0, -pixels.shape[2] % PATCH))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1).contiguous())


class Swin(nn.Module):
    """Four stages of window attention, each with a norm on the way out.

    Published: T 96, (2, 2, 6, 2), heads (3, 6, 12, 24), window 7; B 128, (2, 2, 18, 2), (4, 8, 16, 32), 12; L 192,
    (2, 2, 18, 2), (6, 12, 24, 48), 12.
    """

    def __init__(
        self,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.3,
        mean: Colour = IMAGENET_MEAN,
        std: Colour = IMAGENET_STD,
    ) -> None:
        """drop_path: of the last block, growing from zero; only in training."""
        super().__init__()
        if len(depths) != 4 or len(heads) != 4:
            raise ValueError("four stages are needed, each with its number of blocks and of heads")
        self.mean, self.std = mean, std
        self.channels = tuple(width * 2**index for index in range(4))
        self.patch_embed = PatchEmbed(width)
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))
        self.layers = nn.ModuleList(
            Stage(channels, own_heads, window, mlp_ratio, rate.tolist(), last=index == 3)
            for index, (channels, own_heads, rate) in enumerate(zip(self.channels, heads, rates, strict=True))
        )
        for index, channels in enumerate(self.channels):
            self.add_module(f"norm{index}", nn.LayerNorm(channels))

    def forward(self, images: Images) -> Features:
        """pixels [B, 3, H, W], 0..255 -> maps at strides 4, 8, 16 and 32 of the canvas."""
        return self.maps(normalise(images, self.mean, self.std))

    def maps(self, pixels: Tensor) -> Features:
        """pixels [B, 3, H, W], normalised -> the same."""
        x = self.patch_embed(pixels)
        maps = []
        for index, stage in enumerate(self.layers):
            own, x = stage(x)
            maps.append(self.get_submodule(f"norm{index}")(own).permute(0, 3, 1, 2).contiguous())
        return Features(maps=tuple(maps), dense=maps[-1])

"""`lexiseg_pyramid_tiny`: the image tower of the embedded models.

A RegNetX-400MF trunk (Radosavovic et al., arXiv 2003.13678; timm's layers, Apache-2.0) and a light top-down
fusion in the manner of feature pyramids (Lin et al., arXiv 1612.03144) that ends in one dense map at stride 4.
Batch norm everywhere: from a random start it learns in a tenth of the steps a ConvNeXt needs, and on a CPU a step
costs half. Written for Lexiseg; no published weights exist.

Registered with timm, so that open_clip builds it from its ordinary config format
(`"timm_model_name": "lexiseg_pyramid_tiny", "timm_pool": "avg", "timm_proj": "linear"`). The projection is linear and
so is the pooling: a pixel, a region and a photo live in the same joint space.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (4, 8, 16, 32)


class Lateral(nn.Sequential):
    """1 x 1 convolution with batch norm: brings a level of the trunk to the width of the pyramid."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))


class Smooth(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU: mixes what was added."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )


def upsample_to(coarse: Tensor, fine: Tensor) -> Tensor:
    return F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)


class Pyramid(nn.Module):
    """Trunk, top-down fusion, dense map.

    `forward_features` returns the dense map [B, num_features, H / 4, W / 4] that CLIP pools and projects;
    `forward_intermediates` the fused levels at strides 4, 8, 16, 32 (the first is the dense map itself).
    """

    def __init__(
        self,
        backbone: str = "regnetx_004",
        channels: int = 128,
        fine_channels: int = 64,
        num_classes: int = 0,
        global_pool: str = "avg",
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        trunk: Any = timm.create_model(backbone, num_classes=0, in_chans=in_chans, drop_path_rate=drop_path_rate)
        widths = [info["num_chs"] for info in trunk.feature_info[1:]]
        self.stem = trunk.stem
        self.stages = nn.ModuleList([trunk.s1, trunk.s2, trunk.s3, trunk.s4])
        self.laterals = nn.ModuleList([Lateral(width, channels) for width in widths[1:]])
        self.smooth = nn.ModuleList([Smooth(channels) for _ in widths[1:]])
        self.fine_lateral = Lateral(widths[0], fine_channels)
        self.fine_reduce = nn.Conv2d(channels, fine_channels, 1, bias=False)
        self.fine_smooth = Smooth(fine_channels)
        self.fine_out = nn.Conv2d(fine_channels, channels, 1, bias=False)
        self.coarse_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

        self.num_features = self.head_hidden_size = channels
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"level{i}"} for i, stride in enumerate(STRIDES)
        ]
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.head = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def levels(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, 3, H, W] normalised -> fused maps [B, num_features, h, w] at strides 4, 8, 16, 32."""
        x = self.stem(x)
        trunk = []
        for stage in self.stages:
            x = stage(x)
            trunk.append(x)
        fine, *rest = trunk
        fused: list[Tensor] = []
        for level, lateral, smooth in zip(reversed(rest), reversed(self.laterals), reversed(self.smooth), strict=True):
            mixed = lateral(level)
            if fused:
                mixed = mixed + upsample_to(fused[0], mixed)
            fused.insert(0, smooth(mixed))
        # The stride-4 detail is narrow (a 3 x 3 at full width there would cost more than the trunk); it returns to
        # full width by addition, so the dense map is not limited to the rank of the narrow one.
        detail = self.fine_lateral(fine)
        detail = self.fine_smooth(detail + upsample_to(self.fine_reduce(fused[0]), detail))
        dense = self.fine_out(detail) + upsample_to(self.coarse_out(fused[0]), detail)
        return F.relu(self.norm(dense)), fused[0], fused[1], fused[2]

    def forward_features(self, x: Tensor) -> Tensor:
        return self.levels(x)[0]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """timm's signature. `indices` are levels, fine to coarse; negative ones and a count of the last count too."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt {output_fmt!r}: only NCHW maps exist here")
        count = len(STRIDES)
        if indices is None:
            chosen = list(range(count))
        elif isinstance(indices, int):
            chosen = list(range(count - indices, count))
        else:
            chosen = [index % count for index in indices]
        levels = self.levels(x)
        intermediates = [levels[index] for index in chosen]
        return intermediates if intermediates_only else (levels[0], intermediates)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x.mean((-2, -1))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def lexiseg_pyramid_tiny(pretrained: bool = False, **kwargs: Any) -> Pyramid:
    """About 5.9 M parameters. timm and open_clip know it once this module is imported."""
    if pretrained:
        raise ValueError("lexiseg_pyramid_tiny has no weights of its own: load an embedded model instead")
    for timm_extra in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(timm_extra, None)
    model: Any = Pyramid(**kwargs)
    model.pretrained_cfg = model.default_cfg = CONFIG
    return model


CONFIG = {
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "num_classes": 0,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "first_conv": "stem.conv",
    "classifier": "head",
}

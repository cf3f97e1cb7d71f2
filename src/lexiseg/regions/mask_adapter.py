"""Mask-Adapter: a small network tells where to look for each mask, in place of the plain mean inside it.

Mask-Adapter: The Devil is in the Masks for Open-Vocabulary Segmentation (CVPR 2025, arXiv 2412.04533), section 3.

Parameter names below the embedder. They are those of the released checkpoints with `mask_adapter.` -> `adapter.`:

    adapter.mask_downscaling.{0 conv, 1 norm, 3 conv, 4 norm, 6 conv}.{weight, bias}
    adapter.fuse.{weight, bias}
    adapter.{cnext1, cnext2, cnext3}.{dwconv, norm, pwconv1, pwconv2}.{weight, bias}
    adapter.{cnext1, cnext2, cnext3}.gamma
    adapter.{norm, final}.{weight, bias}
    projection.{norm, head.*}                                                   CLIP's head, see `clip.projection`
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.geometry import resize
from lexiseg.layers.dense_projection import DenseOrder, project_dense
from lexiseg.types import Features, Images, Regions

STEM_STRIDE = 4
"""The mask stem halves twice: masks enter at four times the size of CLIP's map."""

STEM_REACH = 7
"""Pixels, each way, that a position of the mask stem reads."""

HIDDEN_FLOATS = 64_000_000
"""Most numbers of the widest layer at once, where no gradient is asked for: 256 MB in float32."""


COUNTED_BY = 8
"""Masks are filled up with empty ones to a multiple of this, where no gradient is asked for: oneDNN keeps what it
prepared for every shape it meets, and a number of its own for every photo takes more and more memory."""


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, h, w] -> the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7 x 7 convolution, then two linear layers per position; residual, scaled per channel.

    ConvNeXt (arXiv 2201.03545), without stochastic depth.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))  # ConvNeXt's own start: nearly the identity

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, h, w] -> the same shape."""
        return x + self.update(self.dwconv(x).movedim(1, -1)).movedim(-1, 1)

    def update(self, y: Tensor) -> Tensor:
        """y [..., C], what the convolution made of positions -> what is added to them: nearly all of the work."""
        return self.gamma * self.pwconv2(functional.gelu(self.pwconv1(self.norm(y))))


class MaskAdapter(nn.Module):
    """A mask and CLIP's dense map -> several semantic activation maps, each a way of weighing the positions.

    Masks do not see each other, and nothing is normalised across them. The same numbers as the plain form
    `cnext(fuse(dense + mask_downscaling(mask)))` up to the order of sums, for less: `fuse` is linear, so it is applied
    to the dense map once per image, and to the masks together with the last layer of their stem, whose D channels
    are never made; masks that are equal at the size of the stem are computed once; and where no gradient is asked
    for, a few masks at a time, so that memory does not grow with their number, and only near the edges of each mask:
    elsewhere the maps are those of a mask without any pixel, or of one with all.
    """

    def __init__(self, joint_width: int, width: int = 768, mask_width: int = 16, num_maps: int = 16) -> None:
        """joint_width D: channels of the dense map. mask_width: channels of the mask stem. num_maps M."""
        super().__init__()
        self.num_maps = num_maps
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_width // 4, kernel_size=3, stride=2, padding=1),
            ChannelNorm(mask_width // 4),
            nn.GELU(),
            nn.Conv2d(mask_width // 4, mask_width, kernel_size=3, stride=2, padding=1),
            ChannelNorm(mask_width),
            nn.GELU(),
            nn.Conv2d(mask_width, joint_width, kernel_size=1),
        )
        self.fuse = nn.Conv2d(joint_width, width, kernel_size=1)
        self.cnext1 = ConvNeXtBlock(width)
        self.cnext2 = ConvNeXtBlock(width)
        self.cnext3 = ConvNeXtBlock(width)
        self.norm = nn.LayerNorm(width)
        self.final = nn.Conv2d(width, num_maps, kernel_size=1)

    def forward(self, dense: Tensor, masks: Tensor) -> Tensor:
        """dense [B, D, h, w], masks [B, Q, h', w'] bool or in 0..1 -> map logits [B, Q, M, h, w]."""
        h, w = dense.shape[-2:]
        if masks.shape[1] == 0:
            return dense.new_zeros(len(masks), 0, self.num_maps, h, w)
        masks = resize(masks.to(dense), (STEM_STRIDE * h, STEM_STRIDE * w))
        at_once = max(1, HIDDEN_FLOATS // (self.cnext1.pwconv1.out_features * h * w))
        found = []
        for image, own in zip(self.fuse(dense), masks, strict=True):
            if torch.compiler.is_exporting():  # a traced graph has no way but the plain one
                found.append(self.activate(self.fused(image, own)))
                continue
            distinct, row = own.unique(dim=0, return_inverse=True)  # [U, 4 h, 4 w], [Q]
            if torch.is_grad_enabled():
                maps = self.activate(self.fused(image, distinct))
            else:
                plain = self.plain_stages(image, (4 * h, 4 * w))
                spare = -len(distinct) % COUNTED_BY if at_once > COUNTED_BY else 0
                filled = functional.pad(distinct, (0, 0, 0, 0, 0, spare))
                maps = torch.cat([self.activate_edges(image, chunk, plain) for chunk in filled.split(at_once)])
            found.append(maps[row])
        return torch.stack(found)

    def fused(self, image: Tensor, masks: Tensor) -> Tensor:
        """image [width, h, w], `fuse` of one dense map; masks [N, 4 h, 4 w] -> [N, width, h, w]."""
        *stem, last = self.mask_downscaling.children()
        hidden = nn.Sequential(*stem)(masks[:, None])  # [N, mask_width, h, w]
        fuse = self.fuse.weight.flatten(1)  # [width, D]
        parameters = dict(last.named_parameters())
        weight, bias = fuse @ parameters["weight"].flatten(1), fuse @ parameters["bias"]
        return image + functional.conv2d(hidden, weight[..., None, None], bias)

    def activate(self, x: Tensor) -> Tensor:
        """x [N, width, h, w], map and mask fused -> map logits [N, M, h, w]."""
        for block in self.blocks:
            x = block(x)
        return self.read(x.movedim(1, -1)).movedim(-1, 1)

    @property
    def blocks(self) -> tuple[ConvNeXtBlock, ...]:
        return self.cnext1, self.cnext2, self.cnext3

    def read(self, x: Tensor) -> Tensor:
        """x [..., width], positions behind the blocks -> map logits [..., M]."""
        return functional.linear(self.norm(x), self.final.weight.flatten(1), self.final.bias)

    def plain_stages(self, image: Tensor, stem_hw: tuple[int, int]) -> list[Tensor]:
        """image [width, h, w] -> for masks with no pixel and with all: before, between and after the blocks.

        [2, h, w, width] each, and the map logits [2, h, w, M] at the end.
        """
        x = self.fused(image, torch.stack((image.new_zeros(stem_hw), image.new_ones(stem_hw))))
        stages = [x]
        for block in self.blocks:
            stages.append(block(stages[-1]))
        last_first = [stage.movedim(1, -1) for stage in stages]
        return [*last_first, self.read(last_first[-1])]

    def activate_edges(self, image: Tensor, masks: Tensor, plain: list[Tensor]) -> Tensor:
        """The map logits [N, M, h, w] of masks [N, 4 h, 4 w]: computed near their edges, taken from `plain` elsewhere.

        A position of the stem reads seven pixels each way, and a block three positions to every side. Where all of
        what is read is empty, or all is full, the position is that of the plain mask, the border of the map included.
        """
        full = functional.max_pool2d(1 - masks[:, None], STEM_REACH, STEM_STRIDE, STEM_REACH // 2) == 0
        empty = functional.max_pool2d(masks[:, None], STEM_REACH, STEM_STRIDE, STEM_REACH // 2) == 0
        edge = (~(full | empty)).float()  # [N, 1, h, w]
        kind = full[:, 0, ..., None]  # [N, h, w, 1]
        x = self.fused(image, masks)
        for block, after in zip(self.blocks, plain[1:-1], strict=True):
            reach = block.dwconv.kernel_size[0]
            edge = functional.max_pool2d(edge, reach, 1, reach // 2)
            near = edge[:, 0].bool()  # [N, h, w]
            rows = x.movedim(1, -1)[near] + block.update(block.dwconv(x).movedim(1, -1)[near])
            x = torch.where(kind, after[1], after[0])
            x[near] = rows
            x = x.movedim(-1, 1)
        maps = torch.where(kind, plain[-1][1], plain[-1][0])
        maps[near] = self.read(rows)
        return maps.movedim(-1, 1)


def activation_weights(maps: Tensor) -> Tensor:
    """map logits [..., h, w] -> weights [..., h w] that sum to one: sigmoid(maps) over its sum, from the logarithm."""
    return functional.logsigmoid(maps.flatten(-2)).softmax(dim=-1)


def activation_pool(features: Tensor, maps: Tensor) -> Tensor:
    """features [B, C, h, w], map logits [B, Q, M, h, w] -> weighted means [B, Q, M, C]."""
    weights = activation_weights(maps).flatten(1, 2)  # [B, Q M, h w]
    return (weights @ features.flatten(2).transpose(1, 2)).unflatten(1, maps.shape[1:3])


class MaskAdapterPool(nn.Module):
    """Each proposal as CLIP sees it through its semantic activation maps.

    Mask-Adapter, section 3. CLIP's map is pooled under every activation map of a mask, each pooled vector goes
    through CLIP's head, and the embedding is their mean, not normalised before. The adapter reads the dense map in
    the joint space, in the order it was trained with (see `layers.dense_projection`); the map that is pooled is
    CLIP's own. It gets hard masks, at the size the generator made them. An empty mask is scored like any other, with
    `valid` false: the released models leave it to the void probability.
    """

    def __init__(
        self,
        adapter: MaskAdapter,
        projection: nn.Module,
        mask_threshold: float = 0.5,
        dense_order: DenseOrder = "position",
    ) -> None:
        """projection: [..., C] -> [..., D], the head CLIP applies to its own pooled map. mask_threshold: a pixel is
        inside where its mask probability is above it."""
        super().__init__()
        self.adapter = adapter
        self.projection = projection
        self.mask_threshold = mask_threshold
        self.dense_order: DenseOrder = dense_order

    def forward(self, images: Images, features: Features, mask_logits: Tensor) -> Regions:
        """mask_logits [B, Q, h', w'] on the canvas of `images` -> embeds [B, Q, D]."""
        inside = self.inside(mask_logits)
        dense = self.dense(features)
        embeds = self.embed(features, self.adapter(dense, inside))
        return Regions(embeds=embeds, valid=inside.flatten(2).any(dim=-1), dense_embeds=dense)

    def inside(self, mask_logits: Tensor) -> Tensor:
        """mask_logits [B, Q, h', w'] -> the hard masks the adapter reads, bool."""
        return mask_logits.detach().sigmoid() > self.mask_threshold

    def dense(self, features: Features) -> Tensor:
        """CLIP's map as the adapter reads it: [B, D, h, w] in the joint space."""
        return project_dense(features.dense, self.projection, self.dense_order)

    def embed(self, features: Features, maps: Tensor) -> Tensor:
        """map logits [B, Q, M, h, w] of the adapter -> embeds [B, Q, D]."""
        return self.projection(activation_pool(features.dense, maps)).mean(dim=2)

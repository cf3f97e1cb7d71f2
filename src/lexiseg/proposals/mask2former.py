"""Mask2Former's mask generator: a deformable pixel decoder and a masked-attention decoder over a backbone's maps.

Masked-attention Mask Transformer for Universal Image Segmentation (CVPR 2022, arXiv 2112.01527). The generators of
FC-CLIP and its descendants are made of the same two decoders and differ in how a query is given a class.

Parameter names below the generator. They are those of the released checkpoints with `sem_seg_head.pixel_decoder.` ->
`pixel_decoder.` and `sem_seg_head.predictor.` -> `decoder.`:

    pixel_decoder.input_proj.{level}.{0 conv, 1 norm}.{weight, bias}           level 0 is the coarsest
    pixel_decoder.transformer.level_embed
    pixel_decoder.transformer.encoder.layers.{i}.self_attn.{sampling_offsets, attention_weights, value_proj,
        output_proj}.{weight, bias}
    pixel_decoder.transformer.encoder.layers.{i}.{norm1, linear1, linear2, norm2}.{weight, bias}
    pixel_decoder.{adapter_1, layer_1}.{weight, norm.weight, norm.bias}
    pixel_decoder.mask_features.{weight, bias}
    decoder.{query_feat, query_embed, level_embed}.weight
    decoder.transformer_cross_attention_layers.{i}.multihead_attn.{in_proj_weight, in_proj_bias, out_proj.weight,
        out_proj.bias}
    decoder.transformer_self_attention_layers.{i}.self_attn.{the same four}
    decoder.transformer_{cross_attention, self_attention, ffn}_layers.{i}.norm.{weight, bias}
    decoder.transformer_ffn_layers.{i}.{linear1, linear2}.{weight, bias}
    decoder.decoder_norm.{weight, bias}
    decoder.mask_embed.layers.{0, 1, 2}.{weight, bias}
    decoder.class_embed.{weight, bias}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.geometry import resize
from lexiseg.layers.attention import CrossAttentionBlock, SelfAttentionBlock
from lexiseg.layers.deformable_attention import DeformableEncoder
from lexiseg.layers.mlp import MLP, FeedForwardBlock
from lexiseg.layers.normed_conv import NormedConv, init_fpn_conv
from lexiseg.layers.positions import sine_positions
from lexiseg.types import Features, Images, Proposals, Size, TextBank


class MultiScaleEncoder(nn.Module):
    """Deformable attention across maps of several strides."""

    def __init__(self, width: int, levels: int, encoder: DeformableEncoder) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        self.encoder = encoder

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, width, h, w] of any sizes -> maps of the same sizes."""
        sizes_hw = [_size(x) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # [B, N, width]
        positions = torch.cat(
            [
                sine_positions(size_hw, tokens.shape[-1], tokens.device).flatten(0, 1) + level
                for size_hw, level in zip(sizes_hw, self.level_embed, strict=True)
            ]
        )  # [N, width]
        mixed = self.encoder(tokens, positions, sizes_hw).split([h * w for h, w in sizes_hw], dim=1)
        return tuple(x.transpose(1, 2).unflatten(-1, size_hw) for x, size_hw in zip(mixed, sizes_hw, strict=True))


class PixelDecoder(nn.Module):
    """Four maps -> a fine map for the mask dot product, and three memories for the decoder.

    Runs in float32 whatever the autocast state, as the released models were trained; with `full_precision` false its
    convolutions follow autocast.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        width: int = 256,
        mask_width: int = 256,
        num_layers: int = 6,
        heads: int = 8,
        points: int = 4,
        ffn_width: int = 1024,
        norm_groups: int = 32,
        dropout: float = 0.0,
    ) -> None:
        """in_channels: of `Features.maps`, fine to coarse. The finest map joins after the encoder. dropout: of the
        encoder, in training."""
        super().__init__()
        finest, *mixed = in_channels
        self.input_proj = nn.ModuleList(_input_projection(channels, width, norm_groups) for channels in reversed(mixed))
        levels = len(mixed)
        encoder = DeformableEncoder(width, heads, levels, points, ffn_width, num_layers, dropout)
        self.transformer = MultiScaleEncoder(width, levels, encoder)
        self.adapter_1 = NormedConv(finest, width, 1, norm_groups)
        self.layer_1 = NormedConv(width, width, 3, norm_groups)
        self.mask_features = nn.Conv2d(width, mask_width, kernel_size=1)
        init_fpn_conv(self.mask_features)
        self.full_precision = True

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """maps [B, C, h, w], fine to coarse -> mask features [B, mask_width, h, w] of the finest size,
        memories [B, width, h, w], coarse to fine."""
        device = maps[0].device.type
        allowed = not self.full_precision and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=allowed):
            finest, *mixed = (x.float() for x in maps)
            projected = [project(x) for project, x in zip(self.input_proj, reversed(mixed), strict=True)]
            with torch.autocast(device, enabled=False):  # places between cells need all their digits
                memories = self.transformer([x.float() for x in projected])
            fine = self.adapter_1(finest)
            fine = functional.relu(self.layer_1(fine + resize(memories[-1], _size(fine))))
            return self.mask_features(fine), memories


def _input_projection(in_channels: int, width: int, norm_groups: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, width, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, nn.GroupNorm(norm_groups, width))


def _size(x: Tensor) -> Size:
    return (x.shape[-2], x.shape[-1])


@dataclass(frozen=True)
class DecoderStep:
    """What the queries say after some of the decoder's layers."""

    proposals: Proposals
    """mask_logits [B, Q, h, w] at the size of the mask features, class_logits [B, Q, K + 1]."""
    blocked: Tensor
    """[B, Q, h w] bool: where the next layer may not look, on the next memory. Rows that are all true
    are opened before use."""


class MaskedAttentionDecoder(nn.Module):
    """Learned queries look at the memories in turn, each only inside the mask it has just predicted.

    Two forms with the same weights: `forward` gives the last prediction, `all_steps` every one of them
    for deep supervision. They agree to rounding. `forward` scores the classes once, and takes the masks of
    the attention from mask features resized beforehand to the size of each memory: resizing and the dot
    product commute, and no full-size masks are made on the way.

    What a query says about its class is the part that methods differ in: `classify`, which they write. `text` is
    handed on to it.
    """

    def __init__(
        self,
        width: int = 256,
        mask_width: int = 256,
        num_queries: int = 100,
        num_layers: int = 9,
        heads: int = 8,
        ffn_width: int = 2048,
        levels: int = 3,
    ) -> None:
        super().__init__()
        self.query_feat = nn.Embedding(num_queries, width)
        self.query_embed = nn.Embedding(num_queries, width)
        self.level_embed = nn.Embedding(levels, width)
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionBlock(width, heads) for _ in range(num_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionBlock(width, heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(FeedForwardBlock(width, ffn_width) for _ in range(num_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_embed = MLP(width, width, mask_width, 3)

    def classify(self, state: Tensor, mask_logits: Tensor, mask_features: Tensor, text: Any) -> Tensor:
        """state [B, Q, width] of the queries, normalised, their mask_logits [B, Q, h, w] -> class logits [B, Q, K + 1],
        void last."""
        raise NotImplementedError

    def forward(self, memories: Sequence[Tensor], mask_features: Tensor, text: Any = None) -> Proposals:
        """memories [B, width, h', w'], coarse to fine; mask_features [B, mask_width, h, w] -> the last prediction."""
        sources = self._sources(memories)
        features = [resize(mask_features, _size(memory)) for memory in memories]
        x = self._initial_state(len(mask_features))
        for index in range(len(self.transformer_ffn_layers)):
            level = index % len(memories)
            logits = _masks(self.mask_embed(self.decoder_norm(x)), features[level])
            x = self._layer(index, x, sources[level], logits.flatten(2) < 0)
        return self._predict(x, mask_features, text)

    def all_steps(self, memories: Sequence[Tensor], mask_features: Tensor, text: Any = None) -> tuple[DecoderStep, ...]:
        """The predictions of the initial queries and after every layer; the last one is the output."""
        sources = self._sources(memories)
        x = self._initial_state(len(mask_features))
        steps = [self._step(x, mask_features, text, memories[0])]
        for index in range(len(self.transformer_ffn_layers)):
            x = self._layer(index, x, sources[index % len(memories)], steps[-1].blocked)
            steps.append(self._step(x, mask_features, text, memories[(index + 1) % len(memories)]))
        return tuple(steps)

    def _initial_state(self, batch: int) -> Tensor:
        return self.query_feat.weight.expand(batch, -1, -1)  # [B, Q, width]

    def _sources(self, memories: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, h w, width] of every memory."""
        sources = []
        for memory, level in zip(memories, self.level_embed.weight, strict=True):
            values = memory.flatten(2).transpose(1, 2) + level
            positions = sine_positions(_size(memory), values.shape[-1], values.device).flatten(0, 1)
            sources.append((values + positions, values))
        return sources

    def _layer(self, index: int, x: Tensor, source: tuple[Tensor, Tensor], blocked: Tensor) -> Tensor:
        visible = ~blocked | blocked.all(dim=-1, keepdim=True)  # a query with an empty mask looks everywhere
        positions = self.query_embed.weight
        x = self.transformer_cross_attention_layers[index](x, positions, *source, visible)
        x = self.transformer_self_attention_layers[index](x, positions)
        return self.transformer_ffn_layers[index](x)

    def _predict(self, x: Tensor, mask_features: Tensor, text: Any) -> Proposals:
        state = self.decoder_norm(x)
        mask_logits = _masks(self.mask_embed(state), mask_features)
        class_logits = self.classify(state, mask_logits, mask_features, text)
        return Proposals(mask_logits=mask_logits, class_logits=class_logits)

    def _step(self, x: Tensor, mask_features: Tensor, text: Any, next_memory: Tensor) -> DecoderStep:
        proposals = self._predict(x, mask_features, text)
        logits = resize(proposals.mask_logits.detach(), _size(next_memory))
        return DecoderStep(proposals=proposals, blocked=logits.flatten(2) < 0)


def _masks(embeds: Tensor, features: Tensor) -> Tensor:
    """embeds [B, Q, C], features [B, C, h, w] -> their dot products [B, Q, h, w]."""
    return torch.bmm(embeds, features.flatten(2)).unflatten(-1, _size(features))


class ClosedSetDecoder(MaskedAttentionDecoder):
    """The decoder of Mask2Former: a linear layer tells the class, one of those it was trained with."""

    def __init__(self, num_classes: int, width: int = 256, **sizes: int) -> None:
        """num_classes C. sizes: of `MaskedAttentionDecoder`."""
        super().__init__(width, **sizes)
        self.class_embed = nn.Linear(width, num_classes + 1)

    def classify(self, state: Tensor, mask_logits: Tensor, mask_features: Tensor, text: Any) -> Tensor:
        """state [B, Q, width] -> [B, Q, C + 1]."""
        return self.class_embed(state)


class Mask2FormerGenerator(nn.Module):
    """Masks, and scores for the classes of its own training; no words are read.

    `Proposals.class_logits` are [B, Q, C + 1] of its C classes: what reads them must look at void alone, or know which
    of the words asked for each of them is.
    """

    def __init__(self, pixel_decoder: PixelDecoder, decoder: ClosedSetDecoder) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder

    def forward(self, images: Images, features: Features, text: TextBank) -> Proposals:
        """Masks [B, Q, h, w] at the size of the finest map, class logits [B, Q, C + 1]."""
        mask_features, memories = self.pixel_decoder(features.maps)
        return self.decoder(memories, mask_features)

    def all_steps(self, images: Images, features: Features, text: TextBank) -> tuple[DecoderStep, ...]:
        """The training form of `forward`: every prediction of the decoder, the output last."""
        mask_features, memories = self.pixel_decoder(features.maps)
        return self.decoder.all_steps(memories, mask_features)


def mask2former_generator(
    in_channels: Sequence[int],
    num_classes: int = 133,
    *,
    width: int = 256,
    mask_width: int = 256,
    num_queries: int = 100,
    encoder_layers: int = 6,
    encoder_ffn_width: int = 1024,
    decoder_layers: int = 9,
    decoder_ffn_width: int = 2048,
    heads: int = 8,
    points: int = 4,
    norm_groups: int = 32,
) -> Mask2FormerGenerator:
    """The generator of the released models for COCO panoptic, unless other numbers are given; Swin-L has 200 queries.

    in_channels: of the backbone's maps at strides 4, 8, 16 and 32.
    """
    pixel_decoder = PixelDecoder(
        in_channels,
        width=width,
        mask_width=mask_width,
        num_layers=encoder_layers,
        heads=heads,
        points=points,
        ffn_width=encoder_ffn_width,
        norm_groups=norm_groups,
    )
    decoder = ClosedSetDecoder(
        num_classes,
        width=width,
        mask_width=mask_width,
        num_queries=num_queries,
        num_layers=decoder_layers,
        heads=heads,
        ffn_width=decoder_ffn_width,
        levels=len(in_channels) - 1,
    )
    return Mask2FormerGenerator(pixel_decoder, decoder)

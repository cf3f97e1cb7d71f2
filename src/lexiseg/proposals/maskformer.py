"""MaskFormer's mask generator with classes told by words: the generator of OVSeg.

Per-Pixel Classification is Not All You Need for Semantic Segmentation (NeurIPS 2021, arXiv 2107.06278); its class head
made an embedding of CLIP's space by zero-shot segmentation on it, as OVSeg (CVPR 2023, arXiv 2210.04150) uses it.

Parameter names below the generator; the official ones are in `weights.ovseg`:

    pixel_decoder.adapter_{1..3}.{weight, norm.weight, norm.bias}              on the maps of strides 4, 8 and 16
    pixel_decoder.layer_{1..4}.{weight, norm.weight, norm.bias}                layer_4 on the map of stride 32
    pixel_decoder.mask_features.{weight, bias}
    decoder.{query_embed.weight, input_proj.{weight, bias}, norm.{weight, bias}}
    decoder.layers.{i}.self_attention.{self_attn.*, norm.{weight, bias}}
    decoder.layers.{i}.cross_attention.{multihead_attn.*, norm.{weight, bias}}
    decoder.layers.{i}.feed_forward.{linear1, linear2, norm}.{weight, bias}
    decoder.class_embed.layers.{0, 1}.{weight, bias}
    decoder.mask_embed.layers.{0, 1, 2}.{weight, bias}
    void_embedding.weight
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.attention import CrossAttentionBlock, SelfAttentionBlock
from lexiseg.layers.mlp import MLP, FeedForwardBlock
from lexiseg.layers.normed_conv import NormedConv, init_fpn_conv
from lexiseg.layers.positions import sine_positions
from lexiseg.layers.text_logits import QueryText, query_text, text_logits
from lexiseg.types import Features, Images, Proposals, TextBank

LOG_SCALE = math.log(100.0)
"""Of the similarity of queries and words: a constant, not CLIP's own."""


class FeaturePyramid(nn.Module):
    """Four maps -> one fine map for the mask dot product: coarse maps are added to finer ones from the top down."""

    def __init__(self, in_channels: Sequence[int], width: int = 256, mask_width: int = 256, norm_groups: int = 32):
        """in_channels: of `Features.maps`, fine to coarse."""
        super().__init__()
        *finer, coarsest = in_channels
        self.adapter_1, self.adapter_2, self.adapter_3 = (
            NormedConv(channels, width, 1, norm_groups) for channels in finer
        )
        self.layer_1, self.layer_2, self.layer_3 = (NormedConv(width, width, 3, norm_groups) for _ in finer)
        self.layer_4 = NormedConv(coarsest, width, 3, norm_groups)
        self.mask_features = nn.Conv2d(width, mask_width, kernel_size=3, padding=1)
        init_fpn_conv(self.mask_features)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps [B, C, h, w], fine to coarse -> [B, mask_width, h, w] of the finest size."""
        y = functional.relu(self.layer_4(maps[3]))
        steps = ((self.adapter_3, self.layer_3), (self.adapter_2, self.layer_2), (self.adapter_1, self.layer_1))
        for (adapter, layer), x in zip(steps, reversed(maps[:3]), strict=True):
            lateral = adapter(x)
            y = functional.relu(layer(lateral + functional.interpolate(y, size=lateral.shape[-2:], mode="nearest")))
        return self.mask_features(y)


class DecoderLayer(nn.Module):
    """Queries look at each other, then at the picture; both unrestricted."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        # Not fused: masks are cut at a threshold later, where a last bit can move a pixel, and a pixel a whole crop.
        self.self_attention = SelfAttentionBlock(width, heads, fused=False)
        self.cross_attention = CrossAttentionBlock(width, heads, fused=False)
        self.feed_forward = FeedForwardBlock(width, ffn_width)

    def forward(self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x [B, Q, width], positions [Q, width], keys and values [B, L, width] -> [B, Q, width]."""
        x = self.self_attention(x, positions)
        return self.feed_forward(self.cross_attention(x, positions, keys, values))


@dataclass(frozen=True)
class QueryEmbeds:
    """What the queries say after one of the decoder's layers."""

    state: Tensor
    """[B, Q, width], normalised."""
    classes: Tensor
    """[B, Q, D] in CLIP's space."""
    masks: Tensor
    """[B, Q, mask_width], for the dot product with the mask features."""


class QueryDecoder(nn.Module):
    """DETR's decoder (arXiv 2005.12872) without an encoder: learned places, contents that start at zero.

    The dropout of its training is not built: weights are used here, not made.
    """

    def __init__(
        self,
        channels: int,
        joint_width: int,
        width: int = 256,
        mask_width: int = 256,
        num_queries: int = 100,
        num_layers: int = 6,
        heads: int = 8,
        ffn_width: int = 2048,
        class_width: int = 1024,
    ) -> None:
        """channels: of the coarsest map. joint_width D. class_width: hidden width of the class head."""
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, width)
        self.input_proj = nn.Conv2d(channels, width, kernel_size=1)
        init_fpn_conv(self.input_proj)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, ffn_width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.class_embed = MLP(width, class_width, joint_width, 2)
        self.mask_embed = MLP(width, width, mask_width, 3)

    def forward(self, coarsest: Tensor) -> QueryEmbeds:
        """coarsest [B, channels, h, w] -> what the queries say after the last layer."""
        return self.heads(self.states(coarsest)[-1])

    def all_steps(self, coarsest: Tensor) -> tuple[QueryEmbeds, ...]:
        """The same after every layer, for deep supervision; the last one is the output."""
        return tuple(self.heads(x) for x in self.states(coarsest))

    def states(self, coarsest: Tensor) -> list[Tensor]:
        """coarsest [B, channels, h, w] -> [B, Q, width] after each layer, not normalised."""
        values = self.input_proj(coarsest).flatten(2).transpose(1, 2)  # [B, h w, width]
        h, w = coarsest.shape[-2:]
        keys = values + sine_positions((h, w), values.shape[-1], values.device).flatten(0, 1)
        positions = self.query_embed.weight
        x = torch.zeros_like(positions).expand(len(values), -1, -1)
        states = []
        for layer in self.layers:
            x = layer(x, positions, keys, values)
            states.append(x)
        return states

    def heads(self, x: Tensor) -> QueryEmbeds:
        """x [B, Q, width], a state of the queries."""
        state = self.norm(x)
        return QueryEmbeds(state, self.class_embed(state), self.mask_embed(state))


class MaskFormerGenerator(nn.Module):
    """Masks, and the similarity of each with the words asked for and with a learned row for void."""

    def __init__(self, pixel_decoder: FeaturePyramid, decoder: QueryDecoder, joint_width: int) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.void_embedding = nn.Embedding(1, joint_width)

    def forward(self, images: Images, features: Features, text: TextBank) -> Proposals:
        """Masks [B, Q, h, w] at the size of the finest map, class logits [B, Q, K + 1]."""
        mask_features = self.pixel_decoder(features.maps)
        return self.proposals(self.decoder(features.maps[-1]), mask_features, self.query_text(text))

    def all_steps(self, images: Images, features: Features, text: TextBank) -> tuple[Proposals, ...]:
        """The training form of `forward`: the prediction of every layer, the output last."""
        mask_features = self.pixel_decoder(features.maps)
        words = self.query_text(text)
        return tuple(
            self.proposals(embeds, mask_features, words) for embeds in self.decoder.all_steps(features.maps[-1])
        )

    def query_text(self, text: TextBank) -> QueryText:
        """The rows the queries are compared with: one per phrase, and the learned void row."""
        return query_text(text, self.void_embedding.weight)

    def proposals(self, embeds: QueryEmbeds, mask_features: Tensor, words: QueryText) -> Proposals:
        """mask_features [B, mask_width, h, w]."""
        mask_logits = torch.einsum("bqc,bchw->bqhw", embeds.masks, mask_features)
        scale = mask_logits.new_tensor(LOG_SCALE)
        class_logits = text_logits(embeds.classes, words.rows, words.class_of, words.num_classes, scale)
        return Proposals(mask_logits=mask_logits, class_logits=class_logits)


def maskformer_generator(
    in_channels: Sequence[int],
    joint_width: int,
    *,
    width: int = 256,
    mask_width: int = 256,
    num_queries: int = 100,
    decoder_width: int = 256,
    decoder_layers: int = 6,
    decoder_ffn_width: int = 2048,
    class_width: int = 1024,
    heads: int = 8,
    norm_groups: int = 32,
) -> MaskFormerGenerator:
    """The generator of the released OVSeg models, unless other numbers are given.

    in_channels: of the backbone's maps at strides 4, 8, 16 and 32. width: of the pixel decoder.
    """
    decoder = QueryDecoder(
        in_channels[-1],
        joint_width,
        width=decoder_width,
        mask_width=mask_width,
        num_queries=num_queries,
        num_layers=decoder_layers,
        heads=heads,
        ffn_width=decoder_ffn_width,
        class_width=class_width,
    )
    pixel_decoder = FeaturePyramid(in_channels, width, mask_width, norm_groups)
    return MaskFormerGenerator(pixel_decoder, decoder, joint_width)

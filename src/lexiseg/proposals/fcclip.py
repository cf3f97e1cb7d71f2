"""FC-CLIP's mask generator: Mask2Former's two decoders over CLIP's own maps, classes told by words.

Convolutions Die Hard (arXiv 2308.02487).

Parameter names below the generator: those of `proposals.mask2former` but for the class head, which is here
(`_mask_pooling_proj` of the released checkpoints is `mask_pooling_proj`):

    decoder.class_embed.layers.{0, 1, 2}.{weight, bias}
    decoder.mask_pooling_proj.{0 norm, 1 linear}.{weight, bias}
    decoder.logit_scale
    void_embedding.weight
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lexiseg.layers.mask_pooling import mask_pool
from lexiseg.layers.mlp import MLP
from lexiseg.layers.text_logits import QueryText, query_text, text_logits
from lexiseg.proposals.mask2former import DecoderStep, MaskedAttentionDecoder, PixelDecoder
from lexiseg.types import Features, Images, Proposals, TextBank


class FCCLIPDecoder(MaskedAttentionDecoder):
    """Mask2Former's decoder; a class is told by the query and by the mean of the mask features inside its mask."""

    def __init__(
        self, joint_width: int, width: int = 256, mask_width: int = 256, num_queries: int = 250, **sizes: int
    ) -> None:
        """joint_width D. sizes: of `MaskedAttentionDecoder`."""
        super().__init__(width, mask_width, num_queries, **sizes)
        self.mask_pooling_proj = nn.Sequential(nn.LayerNorm(mask_width), nn.Linear(mask_width, width))
        self.class_embed = MLP(width, width, joint_width, 3)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's own initial temperature

    def classify(self, state: Tensor, mask_logits: Tensor, mask_features: Tensor, text: QueryText) -> Tensor:
        """state [B, Q, width], mask_logits [B, Q, h, w] -> [B, Q, K + 1]: similarity of a query with each class."""
        pooled = self.mask_pooling_proj(mask_pool(mask_features, mask_logits))
        embeds = self.class_embed(pooled + state)  # [B, Q, D]
        return text_logits(embeds, text.rows, text.class_of, text.num_classes, self.logit_scale)


class FCCLIPGenerator(nn.Module):
    """Masks and in-vocabulary class scores from the maps of a frozen CLIP trunk."""

    def __init__(self, pixel_decoder: PixelDecoder, decoder: FCCLIPDecoder, joint_width: int) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.decoder = decoder
        self.void_embedding = nn.Embedding(1, joint_width)

    def forward(self, images: Images, features: Features, text: TextBank) -> Proposals:
        """Masks [B, Q, h, w] at the size of the finest map, class logits [B, Q, K + 1]."""
        mask_features, memories = self.pixel_decoder(features.maps)
        return self.decoder(memories, mask_features, self.query_text(text))

    def all_steps(self, images: Images, features: Features, text: TextBank) -> tuple[DecoderStep, ...]:
        """The training form of `forward`: every prediction of the decoder, the output last."""
        mask_features, memories = self.pixel_decoder(features.maps)
        return self.decoder.all_steps(memories, mask_features, self.query_text(text))

    def query_text(self, text: TextBank) -> QueryText:
        """The rows the queries are compared with: one per phrase, and the learned void row."""
        return query_text(text, self.void_embedding.weight)


def fcclip_generator(
    in_channels: Sequence[int],
    joint_width: int,
    *,
    width: int = 256,
    mask_width: int = 256,
    num_queries: int = 250,
    encoder_layers: int = 6,
    encoder_ffn_width: int = 1024,
    decoder_layers: int = 9,
    decoder_ffn_width: int = 2048,
    heads: int = 8,
    points: int = 4,
    norm_groups: int = 32,
) -> FCCLIPGenerator:
    """The generator of the released FC-CLIP models, unless other numbers are given.

    in_channels: of the CLIP trunk's maps at strides 4, 8, 16 and 32.
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
    decoder = FCCLIPDecoder(
        joint_width,
        width=width,
        mask_width=mask_width,
        num_queries=num_queries,
        num_layers=decoder_layers,
        heads=heads,
        ffn_width=decoder_ffn_width,
        levels=len(in_channels) - 1,
    )
    return FCCLIPGenerator(pixel_decoder, decoder, joint_width)

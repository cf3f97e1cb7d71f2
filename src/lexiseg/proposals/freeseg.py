"""FreeSeg's mask generator: Mask2Former's two decoders, between which every pixel looks at the words once.

FreeSeg: Unified, Universal and Open-Vocabulary Image Segmentation (CVPR 2023, arXiv 2303.17225), in the form that MAFT
(NeurIPS 2023, arXiv 2310.00240) trained and published. Its masks depend on the whole vocabulary: a class more changes
all of them a little.

Parameter names below the generator: those of `proposals.mask2former` but for the class head, and

    interaction.gamma
    interaction.{layer_norm_q_1, layer_norm_k_1}.{weight, bias}
    interaction.attn.{q_proj, k_proj, v_proj, out_proj}.{weight, bias}
    decoder.class_embed.layers.{0, 1}.{weight, bias}
    void_embedding.weight
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.mlp import MLP
from lexiseg.layers.text_logits import QueryText, query_text, text_logits
from lexiseg.proposals.mask2former import DecoderStep, MaskedAttentionDecoder, PixelDecoder
from lexiseg.types import Features, Images, Proposals, TextBank

LOG_SCALE = math.log(100.0)
"""Of the similarity of queries and words: a constant, not CLIP's own."""

DROPOUT = 0.1
"""In training: of the pixel decoder's encoder, and of the attention to words."""

BLOCK_FLOATS = 4_000_000
"""Attention weights of pixels and words that are held at once."""


class TextAttention(nn.Module):
    """Pixels look at words, in heads that are much wider than a pixel.

    What the words ask and give is multiplied into the projections of the pixels beforehand: the wide pixels never
    exist, and a pixel costs two products with a row per word and head. Pixels go through a block at a time, so that
    memory does not grow with the vocabulary.
    """

    def __init__(self, width: int, text_width: int, inner_width: int, heads: int, dropout: float = DROPOUT) -> None:
        """width: of pixels. inner_width: of all heads together. dropout: of the attention weights, in training."""
        super().__init__()
        if inner_width % heads:
            raise ValueError(f"an inner width of {inner_width} cannot be split among {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.q_proj = nn.Linear(width, inner_width)
        self.k_proj = nn.Linear(text_width, inner_width)
        self.v_proj = nn.Linear(text_width, inner_width)
        self.out_proj = nn.Linear(inner_width, width)

    def forward(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """pixels [B, N, width], rows [A, text_width] of all pictures -> [B, N, width]."""
        split = (self.heads, -1)
        key, value = (project(rows).unflatten(-1, split).transpose(0, 1) for project in (self.k_proj, self.v_proj))
        key = key * key.shape[-1] ** -0.5  # [heads, A, d]
        asked = (key @ self.q_proj.weight.unflatten(0, split)).flatten(0, 1)  # [heads A, width]
        offset = (key @ self.q_proj.bias.unflatten(0, split)[..., None]).flatten()  # [heads A]
        given = (value @ self.out_proj.weight.T.unflatten(0, split)).flatten(0, 1)  # [heads A, width]
        step = max(1, BLOCK_FLOATS // (len(pixels) * len(asked)))
        found = []
        for part in pixels.split(step, dim=1):
            weights = functional.linear(part, asked, offset).unflatten(-1, (self.heads, len(rows))).softmax(dim=-1)
            weights = functional.dropout(weights, self.dropout, self.training)
            found.append(weights.flatten(-2) @ given)
        return torch.cat(found, dim=1) + self.out_proj.bias


class TextInteraction(nn.Module):
    """Maps changed by what their pixels find in the words, one set of weights for all of them.

    A pixel is normalised first, and what it finds is added to the normalised pixel. The words are normalised again
    before every map, four times before the last one: so the released models were trained.
    """

    def __init__(self, width: int, text_width: int, inner_width: int = 2048, heads: int = 8) -> None:
        super().__init__()
        self.layer_norm_q_1 = nn.LayerNorm(width)
        self.layer_norm_k_1 = nn.LayerNorm(text_width)
        self.attn = TextAttention(width, text_width, inner_width, heads)
        self.gamma = nn.Parameter(torch.full((width,), 1e-4))

    def forward(self, maps: Sequence[Tensor], rows: Tensor) -> tuple[Tensor, ...]:
        """maps [B, width, h, w] in the order of their application, rows [A, text_width] -> maps of the same sizes."""
        changed = []
        for x in maps:
            rows = self.layer_norm_k_1(rows)
            pixels = self.layer_norm_q_1(x.flatten(2).transpose(1, 2))
            pixels = pixels + self.gamma * self.attn(pixels, rows)
            changed.append(pixels.transpose(1, 2).unflatten(-1, (x.shape[-2], x.shape[-1])))
        return tuple(changed)


class FreeSegDecoder(MaskedAttentionDecoder):
    """Mask2Former's decoder; the query alone tells the class, as a place in CLIP's space."""

    def __init__(self, joint_width: int, width: int = 256, class_width: int = 1024, **sizes: int) -> None:
        """joint_width D. class_width: hidden width of the class head. sizes: of `MaskedAttentionDecoder`."""
        super().__init__(width, **sizes)
        self.class_embed = MLP(width, class_width, joint_width, 2)

    def classify(self, state: Tensor, mask_logits: Tensor, mask_features: Tensor, text: QueryText) -> Tensor:
        """state [B, Q, width] -> [B, Q, K + 1]: similarity of a query with each class and with void."""
        embeds = self.class_embed(state)
        return text_logits(embeds, text.rows, text.class_of, text.num_classes, embeds.new_tensor(LOG_SCALE))


class FreeSegGenerator(nn.Module):
    """Masks of what the words are about, and the similarity of each with the words and with a learned row for void.

    Masks leave at the size of the canvas: they are enlarged with aligned corners, unlike all others of the project, and
    what is resized afterwards is resized as everywhere.
    """

    def __init__(
        self, pixel_decoder: PixelDecoder, interaction: TextInteraction, decoder: FreeSegDecoder, joint_width: int
    ) -> None:
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.interaction = interaction
        self.decoder = decoder
        self.void_embedding = nn.Embedding(1, joint_width)

    def forward(self, images: Images, features: Features, text: TextBank) -> Proposals:
        """Masks [B, Q, H, W] at the size of the canvas, class logits [B, Q, K + 1]."""
        words = self.query_text(text)
        mask_features, memories = self.maps(features, words)
        proposals = self.decoder(memories, mask_features, words)
        masks = functional.interpolate(
            proposals.mask_logits, size=images.canvas_hw, mode="bilinear", align_corners=True
        )
        return replace(proposals, mask_logits=masks)

    def all_steps(self, images: Images, features: Features, text: TextBank) -> tuple[DecoderStep, ...]:
        """The training form: every prediction of the decoder at the size of the finest map, the output last."""
        words = self.query_text(text)
        mask_features, memories = self.maps(features, words)
        return self.decoder.all_steps(memories, mask_features, words)

    def maps(self, features: Features, words: QueryText) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The maps of the pixel decoder after they have met the words, coarse to fine and the mask features last."""
        mask_features, memories = self.pixel_decoder(features.maps)
        *changed, mask_features = self.interaction((*memories, mask_features), words.rows)
        return mask_features, tuple(changed)

    def query_text(self, text: TextBank) -> QueryText:
        """The rows that pixels look at and queries are compared with: one per phrase, and the learned void row."""
        return query_text(text, self.void_embedding.weight)


def freeseg_generator(
    in_channels: Sequence[int],
    joint_width: int,
    *,
    width: int = 256,
    num_queries: int = 100,
    encoder_layers: int = 6,
    encoder_ffn_width: int = 1024,
    decoder_layers: int = 10,
    decoder_ffn_width: int = 2048,
    class_width: int = 1024,
    interaction_width: int = 2048,
    heads: int = 8,
    points: int = 4,
    norm_groups: int = 32,
) -> FreeSegGenerator:
    """The generator of the released models, unless other numbers are given.

    in_channels: of the backbone's maps at strides 4, 8, 16 and 32. width: of all maps, of queries too. heads: of every
    attention. The released models have ten layers, where a setting of ten means nine elsewhere.
    """
    pixel_decoder = PixelDecoder(
        in_channels,
        width=width,
        mask_width=width,
        num_layers=encoder_layers,
        heads=heads,
        points=points,
        ffn_width=encoder_ffn_width,
        norm_groups=norm_groups,
        dropout=DROPOUT,
    )
    decoder = FreeSegDecoder(
        joint_width,
        width=width,
        class_width=class_width,
        mask_width=width,
        num_queries=num_queries,
        num_layers=decoder_layers,
        heads=heads,
        ffn_width=decoder_ffn_width,
        levels=len(in_channels) - 1,
    )
    interaction = TextInteraction(width, joint_width, interaction_width, heads)
    return FreeSegGenerator(pixel_decoder, interaction, decoder, joint_width)

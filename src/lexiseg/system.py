"""The only model class: a combination of slots."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lexiseg.types import Features, Images, Proposals, Regions, Scores, TextBank


class System(nn.Module):
    """An open-vocabulary segmentation model, put together from five parts.

    encoder(images) -> Features; may be None when no part shares a trunk.
    generator(images, features, text) -> Proposals.
    embedder(images, features, mask_logits) -> Regions.
    scorer(regions, text) -> region_logits [B, Q, K].
    fuse(proposals, region_logits, valid, text) -> Scores.

    Any generator works with any embedder. The same lines run in training and inference; losses and
    post-processing live elsewhere.
    """

    def __init__(
        self,
        encoder: nn.Module | None,
        generator: nn.Module,
        embedder: nn.Module,
        scorer: Callable[[Regions, TextBank], Tensor],
        fuse: Callable[[Proposals, Tensor, Tensor, TextBank], Scores],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.generator = generator
        self.embedder = embedder
        self.scorer = scorer
        self.fuse = fuse

    def forward(self, images: Images, text: TextBank) -> tuple[Proposals, Scores]:
        """Masks [B, Q, h, w] on the canvas of `images` and their scores [B, Q, K]."""
        features = self.encoder(images) if self.encoder is not None else None
        return self.read(images, features, text)

    def read(self, images: Images, features: Features | None, text: TextBank) -> tuple[Proposals, Scores]:
        """What follows the encoder, which knows no words: one look at pictures serves several vocabularies."""
        proposals, region_logits, valid = self.judge(images, features, text)
        return proposals, self.fuse(proposals, region_logits, valid, text)

    def judge(self, images: Images, features: Features | None, text: TextBank) -> tuple[Proposals, Tensor, Tensor]:
        """Masks, region logits [B, Q, K] and valid [B, Q]: what is fused."""
        proposals = self.generator(images, features, text)
        regions = self.embedder(images, features, proposals.mask_logits)
        return proposals, self.scorer(regions, text), regions.valid

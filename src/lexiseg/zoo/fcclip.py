"""FC-CLIP: one frozen convolutional CLIP, a mask generator on its maps, two verdicts per mask.

Paper: Convolutions Die Hard, Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP (NeurIPS 2023,
arXiv 2308.02487). Code licence of the original: Apache-2.0; this is an implementation from the paper and a
specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lexiseg.clip.open_clip import build_text_encoder, clip_config
from lexiseg.clip.text import TextEncoder
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.regions.attention_pool import AttentionPool
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.system import System
from lexiseg.zoo.clip_parts import encoder_and_embedder


def fcclip(
    tower: str | dict[str, Any],
    *,
    alpha: float = 0.4,
    beta: float = 0.8,
    device: str | torch.device = "meta",
    **generator: int,
) -> System:
    """The system of the released models, or a smaller one by other numbers.

    tower: a name or a configuration of open_clip. alpha, beta: the weight of CLIP's verdict for classes seen in
    training and for the others. generator: arguments of `fcclip_generator`. On the meta device nothing is
    allocated; on a real one the weights are random.
    """
    encoder, embedder = encoder_and_embedder(tower, device)
    with torch.device(device):
        return System(
            encoder=encoder,
            generator=fcclip_generator(encoder.channels, clip_config(tower)["embed_dim"], **generator),
            embedder=embedder,
            scorer=Cosine(),
            # Attention over an empty mask is undefined, so those models were scored without CLIP there. It follows
            # from the tower and is no setting: models run with the wrong one score next to nothing.
            fuse=GeometricEnsemble(alpha, beta, only_valid=isinstance(embedder, AttentionPool)),
        )


def text_encoder(tower: str | Mapping[str, Any], device: str | torch.device = "meta") -> TextEncoder:
    """The text tower that belongs to `tower`."""
    return build_text_encoder(tower, device=device)

"""Masks without a trained generator: any CLIP's dense map clustered, each cluster read by the CLIP itself."""

from __future__ import annotations

from typing import Any

import torch

from lexiseg.proposals.clusters import ClusterProposals
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.fusion import RegionOnly
from lexiseg.system import System
from lexiseg.zoo.clip_parts import encoder_and_embedder


def clustered(
    tower: str | dict[str, Any],
    *,
    clusters: int = 48,
    position_weight: float = 0.5,
    smallest_share: float = 0.001,
    device: str | torch.device = "meta",
) -> System:
    """A system of a CLIP alone.

    tower: a name or a configuration of open_clip. The other arguments are those of `ClusterProposals`. Towers with a
    fine dense map suit it best: a cluster is at least one cell of that map.
    """
    encoder, embedder = encoder_and_embedder(tower, device)
    with torch.device(device):
        return System(
            encoder=encoder,
            generator=ClusterProposals(clusters, position_weight, smallest_share),
            embedder=embedder,
            scorer=Cosine(),
            fuse=RegionOnly(),
        )

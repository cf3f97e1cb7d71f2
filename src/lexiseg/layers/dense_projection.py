"""CLIP's dense map brought into the joint space, in the two ways that released models were trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Projection = Callable[[Tensor], Tensor]
"""[..., C] -> [..., D]: CLIP's head on pooled vectors."""

DenseOrder = Literal["position", "memory"]
"""How the map is cut into the vectors that are projected: one per position, or as they lie in memory."""


def project_dense(features: Tensor, projection: Projection, order: DenseOrder) -> Tensor:
    """features [B, C, h, w] -> [B, D, h, w].

    "position": the vector at each position is projected, as one expects. "memory": the numbers of an image, in the
    order channel, row, column, are cut into h w vectors of C numbers without regard to what they stand for, and
    vector r is put at position r; images never mix. MAFT+ and the adapters on it were trained so (MAFT+, `img_feat`
    of its released code), and score as published only so.
    """
    if order == "position":
        return projection(features.movedim(1, -1)).movedim(-1, 1)
    batch, channels, h, w = features.shape
    # The order of the logical axes, whatever the memory format: a trunk may well hand over channels-last maps.
    vectors = features.contiguous().reshape(batch, h * w, channels)
    return projection(vectors).transpose(1, 2).unflatten(-1, (h, w))

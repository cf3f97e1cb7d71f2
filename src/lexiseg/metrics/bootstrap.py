"""How far a number may be from chance alone: the test set is drawn anew from its own photos, with repeats.

The draws depend on the seed and the number of photos only. Two models measured on the same photos are therefore
resampled alike, and the difference of their numbers has an interval of its own, mostly much narrower than the
distance of the two intervals: what makes a photo hard is hard for both.

R resamples, N photos.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 1000
LEVEL = 0.95


def drawn_times(photos: int, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """[R, N] float64: how often each photo is in each resampled data set of the same size."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(photos, (resamples, photos), generator=generator)
    ones = torch.ones(resamples, photos, dtype=torch.float64)
    return torch.zeros(resamples, photos, dtype=torch.float64).scatter_add_(1, drawn, ones)


def interval(samples: Tensor, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of the resampled numbers [R]; resamples without a number (NaN) do not count."""
    edge = (1 - level) / 2
    low, high = samples.double().nanquantile(torch.tensor([edge, 1 - edge], dtype=torch.float64)).tolist()
    return low, high

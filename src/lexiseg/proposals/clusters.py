"""Masks from a CLIP's own dense map, without any training: its vectors grouped by likeness and place."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.proposals.hard_masks import INSIDE_LOGIT
from lexiseg.types import Features, Images, Proposals, Size, TextBank


class ClusterProposals(nn.Module):
    """K-means over the dense map of any CLIP, split into connected regions.

    Every cell of the dense map that shows the picture belongs to exactly one region, cells of the padding
    to none. Cells are compared by the direction of their vectors plus a weak term for their place, which
    keeps like things at opposite ends of a picture apart. Regions below `smallest_share` of the picture,
    and those beyond the `most` largest, are given away cell by cell to their nearest neighbours. The same
    input gives the same regions. There are no class scores: the words do not matter here.
    """

    def __init__(
        self,
        count: int = 48,
        position_weight: float = 0.5,
        smallest_share: float = 0.001,
        most: int = 200,
        fitted_cells: int = 4096,
        seed: int = 0,
    ) -> None:
        """count: clusters per picture. position_weight: what crossing the longer side of the picture weighs
        against vectors of length one. fitted_cells: the centres are found on at most so many random cells."""
        super().__init__()
        self.count = count
        self.position_weight = position_weight
        self.smallest_share = smallest_share
        self.most = most
        self.fitted_cells = fitted_cells
        self.seed = seed

    @torch.no_grad()
    def forward(self, images: Images, features: Features, text: TextBank | None = None) -> Proposals:
        """features.dense [B, C, h, w] -> mask_logits [B, Q, h, w]; rows beyond a picture's regions are empty."""
        grid_hw = (features.dense.shape[-2], features.dense.shape[-1])
        vectors = functional.normalize(features.dense.float(), dim=1).cpu()  # [B, C, h, w]
        maps = []
        for picture, size_hw in zip(vectors, images.sizes_hw, strict=True):
            height, width = _shown(size_hw, images.canvas_hw, grid_hw)
            maps.append(self._regions(picture[:, :height, :width]))
        rows = max(int(regions.max()) for regions in maps)
        logits = torch.full((len(maps), rows, *grid_hw), -INSIDE_LOGIT)
        for picture_logits, regions in zip(logits, maps, strict=True):
            height, width = regions.shape
            inside = torch.arange(1, rows + 1)[:, None, None] == torch.from_numpy(regions)  # [Q, height, width]
            picture_logits[:, :height, :width][inside] = INSIDE_LOGIT
        return Proposals(mask_logits=logits.to(features.dense.device))

    def _regions(self, vectors: Tensor) -> NDArray[np.int64]:
        """vectors [C, h, w] -> [h, w], the region of every cell, 1 and up, largest first."""
        clusters = self._clusters(vectors)
        components = np.zeros(clusters.shape, np.int64)
        found = 0
        for cluster in np.unique(clusters):
            labels, number = ndimage.label(clusters == cluster)
            components[labels > 0] = labels[labels > 0] + found
            found += number
        areas = np.bincount(components.ravel(), minlength=found + 1)
        largest_first = np.argsort(-areas[1:], kind="stable")[: self.most] + 1
        # The largest stays, however small it is: a picture of specks still has a region.
        kept = largest_first[: max(1, int((areas[largest_first] >= self.smallest_share * components.size).sum()))]
        rank = np.zeros(found + 1, np.int64)
        rank[kept] = np.arange(1, len(kept) + 1)
        regions = rank[components]
        nearest = ndimage.distance_transform_edt(regions == 0, return_distances=False, return_indices=True)
        return regions[tuple(nearest)]

    def _clusters(self, vectors: Tensor) -> NDArray[np.int32]:
        """vectors [C, h, w] -> [h, w], the cluster of every cell."""
        # Imported here: with what it loads in its turn it takes more memory than many a model.
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        height, width = vectors.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([rows, columns]) * (self.position_weight / max(height, width))
        cells = torch.cat([vectors, places]).flatten(1).T.numpy().astype(np.float32, order="C")  # [h * w, C + 2]
        order = np.random.default_rng(self.seed).permutation(len(cells))
        fitted = cells[np.sort(order[: self.fitted_cells])]
        kmeans = KMeans(min(self.count, len(fitted)), n_init=1, max_iter=20, random_state=self.seed)
        with warnings.catch_warnings():
            # Fewer different vectors than clusters, as on a blank wall: fewer clusters are the right answer.
            warnings.simplefilter("ignore", ConvergenceWarning)
            kmeans.fit(fitted)
        return kmeans.predict(cells).reshape(height, width)


def _shown(size_hw: Size, canvas_hw: Size, grid_hw: Size) -> Size:
    """The cells of the grid that show any of the picture, which sits in the top left corner of its canvas."""
    return (
        -(-size_hw[0] * grid_hw[0] // canvas_hw[0]),
        -(-size_hw[1] * grid_hw[1] // canvas_hw[1]),
    )

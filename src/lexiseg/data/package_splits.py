"""One split of a package of labelled photos, as the sequence a training reads from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.data.packages import LabelledPhoto, LabelledPhotos


class PackagePhotos(Sequence[LabelledPhoto]):
    """The photos of one split of a package, read when they are asked for."""

    def __init__(self, package: LabelledPhotos, split: str) -> None:
        self.package = package
        self.ids = package.ids(split)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: Any) -> Any:
        return self.package.photo(self.ids[number])


def segments_of(photo: LabelledPhoto, ignore: int, regions: Sequence[Sequence[int]]) -> PanopticPhoto:
    """A segment per region that the package tells, [region, class, is_crowd], and one per class of what is left."""
    ids = photo.labels.astype(np.int32) + 1
    ids[photo.labels == ignore] = 0
    classes = {int(index) + 1: int(index) for index in np.unique(photo.labels) if index != ignore}
    beyond = max(classes, default=0)
    for region, class_index, is_crowd in regions:
        number = beyond + region  # regions begin at 1
        ids[photo.regions == region] = 0 if is_crowd else number
        if not is_crowd:
            classes[number] = class_index
    present_ids = set(np.unique(ids).tolist())
    return PanopticPhoto(
        photo.image, ids, {number: index for number, index in classes.items() if number in present_ids}
    )


class PackageSegments(Sequence[PanopticPhoto]):
    """The photos of one split of a package, read when they are asked for."""

    def __init__(self, package: LabelledPhotos, split: str, by_region: bool) -> None:
        """by_region: objects apart, where the package tells them apart."""
        self.package, self.by_region = package, by_region
        self.ids = package.ids(split)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: Any) -> Any:
        name = self.ids[number]
        regions = self.package.region_classes.get(name, []) if self.by_region else []
        return segments_of(self.package.photo(name), self.package.ignore, regions)

"""The COCO panoptic annotation format: a JSON file, a folder of photos and a folder of PNGs of segment ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class PanopticPhoto:
    """A photo and its segments. A pixel belongs to one segment at most."""

    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    ids: NDArray[np.int32]
    """[H, W] segment id of each pixel, 0 = none."""
    classes: dict[int, int]
    """Segment id -> class index. Crowd regions are left out."""


class CocoPanoptic:
    """Photos by number. The classes are the file's categories by increasing id, whatever their ids are."""

    def __init__(self, annotations: Path, images: Path, segments: Path) -> None:
        """annotations: the panoptic JSON; images, segments: the folders its file names stand in."""
        document = json.loads(annotations.read_text(encoding="utf-8"))
        try:
            categories = sorted(document["categories"], key=lambda category: category["id"])
            self._files = {image["id"]: image["file_name"] for image in document["images"]}
            self._annotations = document["annotations"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{annotations}: not a COCO panoptic annotation file ({error!r})") from None
        self._images, self._segments = images, segments
        self._index = {category["id"]: index for index, category in enumerate(categories)}
        self.classes: tuple[str, ...] = tuple(category["name"] for category in categories)
        self.is_thing: tuple[bool, ...] = tuple(bool(category["isthing"]) for category in categories)

    def __len__(self) -> int:
        return len(self._annotations)

    def __getitem__(self, number: int) -> PanopticPhoto:
        annotation = self._annotations[number]
        with Image.open(self._images / self._files[annotation["image_id"]]) as picture:
            image = np.asarray(picture.convert("RGB"))
        with Image.open(self._segments / annotation["file_name"]) as picture:
            colours = np.asarray(picture.convert("RGB")).astype(np.int32)
        ids = colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
        if ids.shape != image.shape[:2]:
            raise ValueError(f"{annotation['file_name']}: photo and segments differ in size")
        classes = {
            segment["id"]: self._index[segment["category_id"]]
            for segment in annotation["segments_info"]
            if not segment["iscrowd"]
        }
        return PanopticPhoto(image, ids, classes)

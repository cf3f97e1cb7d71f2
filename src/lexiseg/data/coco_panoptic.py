"""The COCO panoptic annotation format: a JSON file, a folder of photos and a folder of PNGs of segment ids.

COCO, Mapillary and ADE20K use it. `CocoPanoptic` reads photos for training from folders, `PanopticAnnotations` the
segments alone from a publisher's files, for the preparation of benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.layouts import Region, read_json, read_picture
from lexiseg.data.sources import Source, SourceError
from lexiseg.formats.coco_panoptic import segment_ids


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
            ids = segment_ids(np.asarray(picture.convert("RGB")))
        if ids.shape != image.shape[:2]:
            raise ValueError(f"{annotation['file_name']}: photo and segments differ in size")
        classes = {
            segment["id"]: self._index[segment["category_id"]]
            for segment in annotation["segments_info"]
            if not segment["iscrowd"]
        }
        return PanopticPhoto(image, ids, classes)


class PanopticAnnotations:
    """The segments of photos by id, which is the name of a photo's file without its ending."""

    def __init__(self, source: Source, annotations: str, maps: Mapping[str, str]) -> None:
        """annotations: path of the JSON file in the source; maps: id -> path of the PNG."""
        document = read_json(source, annotations, "categories", "annotations")
        try:
            categories = sorted(document["categories"], key=lambda category: category["id"])
            index = {category["id"]: number for number, category in enumerate(categories)}
            self.classes: tuple[str, ...] = tuple(category["name"] for category in categories)
            self.is_thing: tuple[bool, ...] = tuple(bool(category["isthing"]) for category in categories)
            self._listed = {
                PurePosixPath(photo["file_name"]).stem: [
                    (int(entry["id"]), index[entry["category_id"]], bool(entry["iscrowd"]))
                    for entry in photo["segments_info"]
                ]
                for photo in document["annotations"]
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SourceError(f"{annotations}: not a COCO panoptic annotation file ({error!r})") from None
        self._source, self._maps = source, dict(maps)
        self.ids: frozenset[str] = frozenset(self._listed.keys() & self._maps.keys())

    def segments(self, id: str) -> tuple[NDArray[np.int32], tuple[Region, ...]]:
        """Numbered segments [H, W], 0 = none, in the order in which they are listed."""
        path = self._maps[id]
        colours = read_picture(self._source, path)
        if colours.ndim != 3 or colours.shape[2] < 3:
            raise SourceError(f"{path}: {colours.shape} where a picture in red, green and blue was expected")
        listed = self._listed[id]
        present, positions = np.unique(segment_ids(colours), return_inverse=True)
        number_of = {0: 0, **{segment: number for number, (segment, _, _) in enumerate(listed, start=1)}}
        unlisted = [segment for segment in present.tolist() if segment not in number_of]
        if unlisted:
            raise SourceError(f"{path}: holds segment {unlisted[0]}, which its annotations do not list")
        numbers = np.array([number_of[segment] for segment in present.tolist()], np.int32)
        regions = tuple(Region(number, index, crowd) for number, (_, index, crowd) in enumerate(listed, start=1))
        segments: NDArray[np.int32] = numbers[positions].reshape(colours.shape[:2])
        return segments, regions

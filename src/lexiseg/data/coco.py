"""COCO panoptic, val2017: 133 classes, 80 of them things.

val2017/<id>.jpg
annotations/panoptic_val2017.json
panoptic_val2017/<id>.png                 segment ids in three bytes
annotations/instances_val2017.json        polygons and run lengths of things, which may overlap

Semantic labels come from the panoptic map, crowd regions included; pixels of no segment are ignored. AP is measured
against the instances as they were annotated.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle_tools

from lexiseg.data.coco_panoptic import PanopticAnnotations
from lexiseg.data.layouts import Converted, Instance, Layout, Part, Region, read_json
from lexiseg.data.sources import Source, SourceError

CLASSES, IGNORE = 133, 255
_PAGE = "panoptic_annotations_trainval2017.zip, cocodataset.org"
PHOTOS = Part("photos", r"val2017/(\d{12})\.jpg", "val2017.zip, cocodataset.org")
SEGMENTS = Part("panoptic maps", r"panoptic_val2017/(\d{12})\.png", _PAGE)
ANNOTATIONS = Part("panoptic annotations", r"panoptic_val2017\.json", _PAGE)
INSTANCES = Part(
    "instance annotations",
    r"instances_val2017\.json",
    "annotations_trainval2017.zip, cocodataset.org",
    without="AP is not measured",
)
PARTS = (PHOTOS, SEGMENTS, ANNOTATIONS, INSTANCES)


def coco(source: Source) -> Layout:
    photos = source.match(PHOTOS.pattern)
    (annotations, *_) = source.match(ANNOTATIONS.pattern)
    panoptic = PanopticAnnotations(source, annotations, source.match(SEGMENTS.pattern))
    if len(panoptic.classes) != CLASSES:
        raise SourceError(f"{annotations}: {len(panoptic.classes)} classes where {CLASSES} were expected")
    instance_files = source.match(INSTANCES.pattern)
    instances = read_instances(source, next(iter(instance_files)), panoptic.classes) if instance_files else None
    return Layout(
        classes=tuple(plain_name(name) for name in panoptic.classes),
        ids=tuple(sorted(photos.keys() & panoptic.ids)),
        convert=partial(_convert, photos, panoptic, instances),
        is_thing=panoptic.is_thing,
        has_segments=True,
        has_instances=instances is not None,
    )


def plain_name(name: str) -> str:
    """Without what only tells COCO's lists apart: "wall-other-merged" -> "wall"."""
    for ending in ("-merged", "-other", "-stuff"):
        name = name.removesuffix(ending)
    return name


def semantic_labels(segments: NDArray[np.int32], regions: tuple[Region, ...]) -> NDArray[np.uint8]:
    """Numbered segments [H, W] -> class indices, 255 where no segment is."""
    class_of = np.full(max((region.number for region in regions), default=0) + 1, IGNORE, np.uint8)
    for region in regions:
        class_of[region.number] = region.class_index
    labels: NDArray[np.uint8] = class_of[segments]
    return labels


def read_instances(source: Source, path: str, classes: tuple[str, ...]) -> dict[str, tuple[Instance, ...]]:
    """id of the photo -> its annotated things. Categories are joined by name: things are called alike in both files."""
    document = read_json(source, path, "images", "annotations", "categories")
    found: dict[str, list[Instance]] = defaultdict(list)
    try:
        index = {category["id"]: classes.index(category["name"]) for category in document["categories"]}
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in document["images"]}
        for entry in document["annotations"]:
            found[f"{entry['image_id']:012d}"].append(
                Instance(
                    class_index=index[entry["category_id"]],
                    rle=run_lengths(entry["segmentation"], *sizes[entry["image_id"]]),
                    area=float(entry["area"]),
                    is_crowd=bool(entry["iscrowd"]),
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path}: not a COCO instance annotation file of these classes ({error!r:.100})") from None
    return {id: tuple(instances) for id, instances in found.items()}


def run_lengths(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, plain or compressed run lengths -> compressed run lengths."""
    if isinstance(segmentation, list):
        packed = rle_tools.merge(rle_tools.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        packed = rle_tools.frPyObjects(segmentation, height, width)
    else:
        return {"size": [height, width], "counts": str(segmentation["counts"])}
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def _convert(
    photos: dict[str, str],
    panoptic: PanopticAnnotations,
    instances: dict[str, tuple[Instance, ...]] | None,
    id: str,
) -> Converted:
    segments, regions = panoptic.segments(id)
    return Converted(
        photos[id],
        semantic_labels(segments, regions),
        segments,
        regions,
        None if instances is None else instances.get(id, ()),
    )

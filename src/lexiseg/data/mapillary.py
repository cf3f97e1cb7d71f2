"""Mapillary Vistas 1.2, validation set: 65 classes, 37 of them things.

validation/images/<id>.jpg
validation/labels/<id>.png               palette: 0..64 in the order of the classes, 65 = not labelled
validation/panoptic/<id>.png             segment ids in three bytes
validation/panoptic/panoptic_2018.json   COCO's panoptic format; also .../panoptic_2018.json
"""

from __future__ import annotations

from functools import partial

from lexiseg.data.coco_panoptic import PanopticAnnotations
from lexiseg.data.layouts import Converted, Layout, Part, paired, read_labels
from lexiseg.data.sources import Source, SourceError

CLASSES, IGNORE = 65, 65
_PAGE = "mapillary-vistas-dataset_public_v1.2.zip, mapillary.com/dataset/vistas (after registration)"
_ID = r"([\w-]+)"
PHOTOS = Part("photos", rf"validation/images/{_ID}\.jpg", _PAGE)
LABELS = Part("labels", rf"validation/(?:v1\.2/)?labels/{_ID}\.png", _PAGE)
SEGMENTS = Part("panoptic maps", rf"validation/(?:v1\.2/)?panoptic/{_ID}\.png", _PAGE)
ANNOTATIONS = Part("panoptic annotations", r"validation/(?:v1\.2/)?panoptic/panoptic_2018\.json", _PAGE)
PARTS = (PHOTOS, LABELS, SEGMENTS, ANNOTATIONS)


def mapillary(source: Source) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    segments = source.match(SEGMENTS.pattern)
    (annotations,) = source.match(ANNOTATIONS.pattern)
    panoptic = PanopticAnnotations(source, annotations, segments)
    if len(panoptic.classes) != CLASSES:
        raise SourceError(f"{annotations}: {len(panoptic.classes)} classes where {CLASSES} were expected")
    return Layout(
        classes=panoptic.classes,
        ids=tuple(id for id in paired(photos, labels) if id in panoptic.ids),
        convert=partial(_convert, source, photos, labels, panoptic),
        is_thing=panoptic.is_thing,
        has_segments=True,
    )


def _convert(
    source: Source, photos: dict[str, str], labels: dict[str, str], panoptic: PanopticAnnotations, id: str
) -> Converted:
    classes = read_labels(source, labels[id])
    if classes.size and classes.max() > IGNORE:
        raise SourceError(
            f"{labels[id]}: holds the value {classes.max()}; the classes are 0..{CLASSES - 1}, {IGNORE} none"
        )
    segments, regions = panoptic.segments(id)
    if segments.shape != classes.shape:
        raise SourceError(f"{labels[id]}: {classes.shape} pixels (height, width), its segments have {segments.shape}")
    return Converted(photos[id], classes, segments, regions)

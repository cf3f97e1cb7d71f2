"""FiftyOne's labels: a `Segmentation` of a semantic record, `Detections` with masks of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lexiseg.formats.records import PhotoRecord

if TYPE_CHECKING:
    from fiftyone import Detections, Segmentation

_NUDGE = 1e-6
"""Pixels. Painting a mask, FiftyOne cuts fractions off: 19.999 would be a row or a column less, and resize the mask."""


def to_fiftyone(record: PhotoRecord) -> Segmentation | Detections:
    """The values of a `Segmentation` are class index + 1, since FiftyOne takes 0 for none; its dataset's mask_targets
    are then {index + 1: word}. Boxes of `Detections` are shares of the photo's sides, and masks lie inside them."""
    import fiftyone

    if record.task == "semantic":
        largest = max((segment.label_index for segment in record.segments), default=0) + 1
        values = np.zeros(record.size_hw, np.uint8 if largest <= 255 else np.uint16)
        for segment in record.segments:
            values[record.mask(segment)] = segment.label_index + 1
        return fiftyone.Segmentation(mask=values)
    found = []
    for segment in record.segments:
        left, top, right, bottom = segment.box_xyxy
        found.append(
            fiftyone.Detection(
                label=segment.label,
                confidence=segment.score,
                bounding_box=[
                    (left + _NUDGE) / record.width,
                    (top + _NUDGE) / record.height,
                    (right - left) / record.width,
                    (bottom - top) / record.height,
                ],
                mask=record.mask(segment)[top:bottom, left:right],
            )
        )
    return fiftyone.Detections(detections=found)

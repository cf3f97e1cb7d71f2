"""`supervision.Detections`, for its trackers, annotators and writers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lexiseg.formats.records import PhotoRecord

if TYPE_CHECKING:
    from supervision import Detections


def to_supervision(record: PhotoRecord) -> Detections:
    """Every segment with its mask, box, score, class index, and the word as data["class_name"]."""
    from supervision import Detections

    if not record.segments:
        return Detections.empty()
    return Detections(
        xyxy=np.array([segment.box_xyxy for segment in record.segments], np.float32),
        mask=np.stack([record.mask(segment) for segment in record.segments]),
        confidence=np.array([segment.score for segment in record.segments], np.float32),
        class_id=np.array([segment.label_index for segment in record.segments]),
        data={"class_name": np.array([segment.label for segment in record.segments])},
    )

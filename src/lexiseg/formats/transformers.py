"""The dictionary that transformers' `post_process_*_segmentation` give."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lexiseg.formats.records import PhotoRecord


def to_transformers(record: PhotoRecord, label_map: np.ndarray) -> dict[str, Any]:
    """`segmentation`, an int32 tensor [H, W] of `label_map`, and `segments_info`."""
    return {
        "segmentation": torch.from_numpy(label_map.astype(np.int32)),
        "segments_info": [
            {
                "id": segment.id,
                "label_id": segment.label_index,
                "label": segment.label,
                "was_fused": record.task != "instance" and not segment.is_thing,
                "score": segment.score,
            }
            for segment in record.segments
        ],
    }

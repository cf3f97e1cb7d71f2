"""A result in the form that was asked for."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image

from lexiseg.apps.server.questions import Form
from lexiseg.results import Result

MEDIA_TYPES: dict[Form, str] = {
    "json": "application/json",
    "coco": "application/json",
    "overlay": "image/png",
    "labels": "image/png",
}


def answer(result: Result, form: Form) -> bytes:
    """The body of an answer."""
    if form == "json":
        return to_json(with_masks(result))
    if form == "coco":
        return to_json(result.to_coco())
    # Little compression: an overlay of a large photo is written in one second instead of five.
    return to_png(result.overlay() if form == "overlay" else result.labels_png(), 3 if form == "overlay" else 6)


def with_masks(result: Result) -> dict[str, Any]:
    """What `Result.to_dict` says, and the mask of each segment as COCO's compressed run lengths under "rle"."""
    told = result.to_dict()
    pairs = zip(told["segments"], result.segments, strict=True)
    return {**told, "segments": [{**entry, "rle": segment.rle} for entry, segment in pairs]}


def to_json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode()


def to_png(picture: Image.Image, compress_level: int = 6) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=compress_level)
    return file.getvalue()

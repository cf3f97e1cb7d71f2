"""A result as the viewer in the browser takes it: pictures, regions and files in one text."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from lexiseg.apps.server.answers import to_json, to_png, with_masks
from lexiseg.results import Result, file_stem

LONGEST_SIDE = 1600
"""Pixels of the picture in the browser: sharp on large screens, drawn anew in a blink."""
_LAYERS = 4
"""Instances may lie over each other. So deep a pixel shows what is under a region that is switched off."""
_PLACING_SIDE = 300


def view(result: Result) -> str:
    """JSON for viewer.js. `layers` are PNG pictures with red + 256 green = place in `regions` + 1, 0 for none."""
    height, width = result.size_hw
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    shown = (max(1, round(width * scale)), max(1, round(height * scale)))  # width, height
    layers = _layers(result)
    found = {segment.label for segment in result.segments}
    return to_json(
        {
            "stem": file_stem(result.photo),
            "task": result.task,
            "width": shown[0],
            "height": shown[1],
            "photo": _photo(result.rgb, shown),
            "layers": [_ids(layer, shown) for layer in layers],
            "regions": _regions(result, layers),
            "missing": [word for word in result.words if word not in found],
            "json": to_json(with_masks(result)).decode(),
            "coco": to_json(result.to_coco()).decode(),
        }
    ).decode()


def _layers(result: Result) -> list[np.ndarray]:
    """[H, W] maps of place in the segments + 1: what is on top, and under it where masks overlap."""
    top = np.zeros(result.size_hw, np.uint16)
    if result.task != "instance":
        values = result.label_map + 1  # -1 is for pixels without a class
        table = np.zeros(int(values.max(initial=0)) + 1, np.uint16)
        for place, segment in enumerate(result.segments, start=1):
            table[segment.id + 1] = place
        return [table[values]]
    layers = [top]
    for place, segment in enumerate(result.segments, start=1):
        left = segment.mask
        for depth in range(_LAYERS):
            if not left.any():
                break
            if depth == len(layers):
                layers.append(np.zeros_like(top))
            free = left & (layers[depth] == 0)
            layers[depth][free] = place
            left &= ~free
    return layers


def _regions(result: Result, layers: list[np.ndarray]) -> list[dict[str, Any]]:
    stride = max(1, max(result.size_hw) // _PLACING_SIDE)
    small = layers[0][::stride, ::stride]
    return [
        {
            "label": segment.label,
            "score": round(segment.score, 4),
            "share": round(segment.share, 6),
            "color": list(color),
            "next": [[word, round(score, 4)] for word, score in segment.top if word != segment.label][:3],
            "at": _deepest(small == place),
        }
        for place, (segment, color) in enumerate(zip(result.segments, result.colors, strict=True), start=1)
    ]


def _deepest(inside: np.ndarray) -> tuple[float, float] | None:
    """Where the word goes: (x, y) in 0..1 of the point farthest from the border; None for a region under others."""
    if not inside.any():
        return None
    depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return (round((float(x) + 0.5) / inside.shape[1], 4), round((float(y) + 0.5) / inside.shape[0], 4))


def _photo(rgb: np.ndarray, size: tuple[int, int]) -> str:
    image = Image.fromarray(rgb)
    file = io.BytesIO()
    (image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)).save(file, "JPEG", quality=90)
    return _address("image/jpeg", file.getvalue())


def _ids(layer: np.ndarray, size: tuple[int, int]) -> str:
    picture = np.stack([layer % 256, layer // 256, np.zeros_like(layer)], -1).astype(np.uint8)
    return _address("image/png", to_png(Image.fromarray(picture).resize(size, Image.Resampling.NEAREST)))


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"

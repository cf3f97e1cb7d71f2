"""Label maps as PNG: a number for every pixel, grey or with the colours of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lexiseg.vocabulary import Color


def label_picture(photo: str, label_map: np.ndarray, highest: int) -> Image.Image:
    """Grey, of 8 bits, or of 16 where `highest`, the largest number that may come, is above 255.

    -1 becomes the highest number there is, 255 or 65535.
    """
    if highest > 65535:
        raise ValueError(f"{photo}: {highest} labels do not fit into a 16-bit picture; use label_map itself")
    return Image.fromarray(label_map.astype(np.uint8 if highest <= 255 else np.uint16))


def palette_picture(photo: str, label_map: np.ndarray, colors: Sequence[Color], first: int) -> Image.Image:
    """The same numbers in 8 bits, shown in `colors`, of which the first is that of the number `first`.

    All other numbers are shown black; -1 becomes 255.
    """
    highest = max(first + len(colors) - 1, int(label_map.max(initial=0)))
    if highest > 254:
        raise ValueError(
            f"{photo}: {highest + 1} labels do not fit into a palette of 256 colours; use a grey label map"
        )
    table = np.zeros((256, 3), np.uint8)
    table[first : first + len(colors)] = np.array(colors, np.uint8).reshape(-1, 3)
    picture = Image.fromarray(label_map.astype(np.uint8))
    picture.putpalette(table.tobytes())
    return picture

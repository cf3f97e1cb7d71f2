"""Crops for training on labelled photos, as detectron2's semantic mapper makes them.

A random short edge, a random crop, random colours, a random flip. MaskCLIP++ on COCO-Stuff, OVSeg's and MAFT's
generators were trained with it, each with sizes of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.geometry import fit_short_edge

BRIGHTNESS = 32.0
FACTORS = (0.5, 1.5)
"""Of contrast and of saturation."""
HUE = 18
"""Steps of 2 degrees."""


def short_edges(crop: int, tenths: Sequence[int]) -> tuple[int, ...]:
    """The short edges a photo may be brought to: so many tenths of the side of the crop, cut off."""
    return tuple(int(0.1 * tenth * crop) for tenth in tenths)


def semantic_crop(
    rng: random.Random,
    image: NDArray[np.uint8],
    ids: NDArray[Any],
    crop: int,
    edges: Sequence[int],
    long_edge: int,
    jitter: bool = True,
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """image [H, W, 3] RGB, ids [H, W] of any integers -> the same of a crop, at most `crop` pixels wide and high.

    edges: short edges to choose from; long_edge: the most the other one may become. A photo smaller than the crop is
    not padded. The limit that some settings put on the share of one class is off: it is 1.0 in all published ones.
    """
    height, width = fit_short_edge(ids.shape, rng.choice(edges), long_edge)
    size = (max(1, width), max(1, height))  # PIL's order
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST)).astype(ids.dtype)
    top, left = (rng.randint(0, max(0, side - crop)) for side in labels.shape)
    resized, labels = (x[top : top + crop, left : left + crop] for x in (resized, labels))
    if jitter:
        resized = colour_jitter(rng, resized)
    if rng.random() < 0.5:
        resized, labels = resized[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(resized), np.ascontiguousarray(labels)


def colour_jitter(rng: random.Random, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours of SSD (arXiv 1512.02325) as detectron2 has them, each change every other time: [H, W, 3] -> the same.

    Brightness first; then contrast, saturation and hue, or saturation, hue and contrast.
    """
    if rng.random() < 0.5:
        image = _clipped(image + rng.uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = rng.random() < 0.5
    if contrast_first:
        image = _contrast(rng, image)
    image = _saturation(rng, image)
    image = _hue(rng, image)
    return image if contrast_first else _contrast(rng, image)


def _contrast(rng: random.Random, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return _clipped(image * rng.uniform(*FACTORS)) if rng.random() < 0.5 else image


def _saturation(rng: random.Random, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if rng.random() >= 0.5:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 1] = _clipped(hsv[..., 1] * rng.uniform(*FACTORS))
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def _hue(rng: random.Random, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if rng.random() >= 0.5:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    turn = round(rng.randint(-HUE, HUE) * 256 / 180)  # 256 steps go round here
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + turn) % 256
    return np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))


def _clipped(values: NDArray[Any]) -> NDArray[np.uint8]:
    clipped: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return clipped

"""A picture as a network wants it: the mean and spread of its training data taken out."""

from __future__ import annotations

from torch import Tensor

from lexiseg.types import Images

Colour = tuple[float, float, float]
"""Red, green, blue."""

CLIP_MEAN: Colour = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD: Colour = (68.5005327, 66.6321579, 70.32316305)
"""CLIP's constants for photos in 0..255, in the digits the released systems were scored with."""

IMAGENET_MEAN: Colour = (123.675, 116.28, 103.53)
IMAGENET_STD: Colour = (58.395, 57.12, 57.375)
"""The same for networks that began on ImageNet."""


def normalise(images: Images, mean: Colour, std: Colour) -> Tensor:
    """[B, 3, H, W] float32, normalised, exactly zero in the padding.

    Padding comes after normalisation. The padded canvas takes part in everything, so its value matters.
    """
    pixels = images.pixels
    centre, spread = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    out = (pixels - centre) / spread
    height, width = images.canvas_hw
    for index, (h, w) in enumerate(images.sizes_hw):
        if h < height:
            out[index, :, h:] = 0
        if w < width:
            out[index, :, :, w:] = 0
    return out

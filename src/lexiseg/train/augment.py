"""Crops for training: one projective map per photo, then colour.

Scale, aspect, a little rotation and perspective, and the flip are one 3 x 3 matrix from crop pixels to photo pixels,
so a photo is resampled once and its labels follow exactly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Array = NDArray[np.float64]
FILL = (123, 117, 104)  # the mean colour of photos: beyond the border of a photo there is nothing to learn


def crop_matrix(
    rng: random.Random,
    size: int,
    photo_hw: tuple[int, int],
    scales: tuple[float, float],
    centre: tuple[float, float] | None,
) -> Array:
    """3 x 3 map from crop pixels (x, y, 1) to photo pixels, for a crop of `size` x `size`.

    `scales`: crop pixels per photo pixel, drawn log-uniformly; raised where the crop would be much larger than the
    photo. `centre` (x, y) in the photo is put somewhere in the middle half of the crop; None: anywhere.
    """
    height, width = photo_hw
    scale = math.exp(rng.uniform(math.log(scales[0]), math.log(scales[1])))
    scale = max(scale, size / (1.15 * max(height, width)), size / (1.5 * min(height, width)))
    aspect = math.exp(rng.uniform(-0.16, 0.16))
    span_x, span_y = size / scale * math.sqrt(aspect), size / scale / math.sqrt(aspect)
    if centre is None:
        x = rng.uniform(min(span_x, width) / 2, max(width - span_x / 2, width / 2))
        y = rng.uniform(min(span_y, height) / 2, max(height - span_y / 2, height / 2))
    else:
        x = centre[0] + rng.uniform(-0.25, 0.25) * span_x
        y = centre[1] + rng.uniform(-0.25, 0.25) * span_y
        x = min(max(x, span_x / 2), width - span_x / 2) if span_x < width else width / 2
        y = min(max(y, span_y / 2), height - span_y / 2) if span_y < height else height / 2
    angle = rng.gauss(0, 0.05)
    cos, sin = math.cos(angle), math.sin(angle)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    to_unit = np.array([[2 / size, 0, -1], [0, 2 / size, -1], [0, 0, 1]])
    bend = np.array([[1, 0, 0], [0, 1, 0], [rng.gauss(0, 0.06), rng.gauss(0, 0.06), 1]])
    turn = np.array([[cos * flip, -sin, 0], [sin * flip, cos, 0], [0, 0, 1]])
    to_photo = np.array([[span_x / 2, 0, x], [0, span_y / 2, y], [0, 0, 1]])
    return to_photo @ turn @ bend @ to_unit


def warp(picture: Image.Image, matrix: Array, size: int, stride: int, fill: int | tuple[int, ...]) -> Image.Image:
    """Resample `picture` to size / stride squared. Labels (mode L, I;16 or I) take the nearest pixel."""
    step = np.array([[stride, 0, (stride - 1) / 2], [0, stride, (stride - 1) / 2], [0, 0, 1.0]])
    m = matrix @ step
    m = m / m[2, 2]
    resample = Image.Resampling.BILINEAR if picture.mode == "RGB" else Image.Resampling.NEAREST
    side = size // stride
    return picture.transform(
        (side, side), Image.Transform.PERSPECTIVE, m.reshape(-1)[:8].tolist(), resample, fillcolor=fill
    )


def recolour(rng: random.Random, picture: Image.Image, strength: float = 1.0) -> Image.Image:
    """Exposure, contrast, gamma, tint, saturation; now and then haze, blur, low light with noise, or no colour."""
    ramp = np.arange(256) / 255.0
    gamma = math.exp(rng.gauss(0, 0.22 * strength))
    contrast = math.exp(rng.gauss(0, 0.22 * strength))
    offset = rng.gauss(0, 0.07 * strength)
    dark = rng.random() < 0.06 * strength
    gain = rng.uniform(0.25, 0.5) if dark else 1.0
    table: list[int] = []
    for _ in range(3):
        tint = math.exp(rng.gauss(0, 0.07 * strength))
        curve = ((ramp**gamma * tint - 0.5) * contrast + 0.5 + offset) * gain
        table += np.clip(curve * 255, 0, 255).astype(int).tolist()
    picture = picture.point(table)
    if rng.random() < 0.06:
        grey = rng.randrange(150, 235)
        haze = (grey - rng.randrange(12), grey - rng.randrange(6), grey)
        picture = Image.blend(picture, Image.new("RGB", picture.size, haze), rng.uniform(0.2, 0.65))
    saturation = 0.0 if rng.random() < 0.03 else math.exp(rng.gauss(0, 0.3 * strength))
    picture = ImageEnhance.Color(picture).enhance(saturation)
    if rng.random() < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.6)))
    if dark or rng.random() < 0.05:
        values = np.asarray(picture, np.float32)
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal(values.shape, np.float32)
        picture = Image.fromarray(np.clip(values + noise * rng.uniform(3, 12), 0, 255).astype(np.uint8))
    return picture


@dataclass(frozen=True)
class Cutout:
    """One object, cut out of its photo to its box."""

    image: Image.Image
    mask: Image.Image
    """Mode L, 0 or 255."""
    row: int


def cut_out(image: Image.Image, inside: NDArray[np.bool_], row: int) -> Cutout:
    ys, xs = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1)
    mask = Image.fromarray(inside.astype(np.uint8) * 255)
    return Cutout(image.crop(box), mask.crop(box), row)


def paste(rng: random.Random, image: Image.Image, rows: Image.Image, stride: int, cutout: Cutout) -> None:
    """Put `cutout` somewhere into a crop [S, S] and its label map [S / stride, S / stride], in place."""
    side = image.width
    width, height = cutout.image.size
    scale = math.exp(rng.uniform(math.log(0.12), math.log(0.6))) * side / max(width, height)
    width, height = max(stride, int(width * scale)), max(stride, int(height * scale))
    picture = cutout.image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    mask = cutout.mask.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if rng.random() < 0.5:
        picture, mask = (p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in (picture, mask))
    # On the grid of the labels, so that photo and labels agree to the pixel.
    x = rng.randrange(-width // 3, side - width * 2 // 3) // stride * stride
    y = rng.randrange(-height // 3, side - height * 2 // 3) // stride * stride
    image.paste(picture, (x, y), mask)
    small = mask.resize((max(1, width // stride), max(1, height // stride)), Image.Resampling.BOX)
    rows.paste(cutout.row, (x // stride, y // stride), small.point(lambda value: 255 * (value > 127)))


def paint_openings(
    rng: random.Random, image: Image.Image, rows: Image.Image, wall: NDArray[np.bool_], window_row: int, door_row: int
) -> tuple[Image.Image, Image.Image]:
    """Draw rows of windows, and perhaps a door, on the `wall` [H, W] of a photo; returns new photo and label map.

    Few photos of the training sets name a window or a door, while every street is full of them: simple drawn ones
    (dark or mirroring glass, frame, bars, sill; panelled doors) teach the two words what they look like on a facade.
    """
    image, rows = image.copy(), rows.copy()
    draw, label = ImageDraw.Draw(image), ImageDraw.Draw(rows)
    filled = np.pad(wall.astype(np.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def free(box: tuple[int, int, int, int]) -> bool:
        x0, y0, x1, y1 = box
        if x0 < 0 or y0 < 0 or x1 >= image.width or y1 >= image.height:
            return False
        count = filled[y1, x1] - filled[y0, x1] - filled[y1, x0] + filled[y0, x0]
        return bool(count > 0.92 * (x1 - x0) * (y1 - y0))

    width = int(image.width * math.exp(rng.uniform(math.log(0.025), math.log(0.11))))
    width = max(6, width)
    height = int(width * rng.uniform(0.8, 2.1))
    step_x, step_y = int(width * rng.uniform(1.3, 2.6)), int(height * rng.uniform(1.3, 2.3))
    start_x, start_y = rng.randrange(step_x), rng.randrange(step_y)
    frame = frame_colour(rng)
    line = max(1, round(width * rng.uniform(0.04, 0.12)))
    upright, across, sill = rng.choice((0, 1, 1, 2)), rng.choice((0, 0, 1, 1, 2, 3)), rng.random() < 0.5
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    tone = tuple(rng.randrange(15, 110) for _ in range(3))
    mix = rng.uniform(0.2, 0.8)
    for y in range(start_y, image.height, step_y):
        for x in range(start_x, image.width, step_x):
            box = (x, y, x + width, y + height)
            if not free(box) or rng.random() < 0.1:
                continue
            left = rng.randrange(max(1, image.width - width))
            top = rng.randrange(max(1, image.height - height))
            reflection = mirrored.crop((left, top, left + width, top + height))
            brightness = 230 if rng.random() < 0.07 else 0
            glass = Image.new("RGB", (width, height), tuple(max(t, brightness) for t in tone))
            image.paste(Image.blend(reflection, glass, mix), (x, y))
            if rng.random() < 0.2:  # a curtain
                draw.rectangle((x, y, x + width // 4, y + height), fill=(215, 210, 200))
                draw.rectangle((x + width - width // 4, y, x + width, y + height), fill=(215, 210, 200))
            for i in range(1, upright + 1):
                bar = x + width * i // (upright + 1)
                draw.line((bar, y, bar, y + height), fill=frame, width=line)
            for i in range(1, across + 1):
                bar = y + height * i // (across + 1)
                draw.line((x, bar, x + width, bar), fill=frame, width=line)
            draw.rectangle(box, outline=frame, width=line)
            if sill:
                draw.line((x - 2, y + height + 1, x + width + 2, y + height + 1), fill=(190, 185, 175), width=line + 1)
            label.rectangle(box, fill=window_row)
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        paint_door(rng, draw, label, wall, free, width, door_row)
    return image, rows


def paint_door(
    rng: random.Random,
    draw: ImageDraw.ImageDraw,
    label: ImageDraw.ImageDraw,
    wall: NDArray[np.bool_],
    free: Callable[[tuple[int, int, int, int]], bool],
    window_width: int,
    row: int,
) -> None:
    """One door that stands where the wall ends."""
    width = int(window_width * rng.uniform(0.9, 1.9))
    height = int(width * rng.uniform(1.5, 2.5))
    x = rng.randrange(max(1, wall.shape[1] - width))
    column = np.flatnonzero(wall[:, x + width // 2])
    if not len(column):
        return
    bottom = int(column[-1])
    box = (x, bottom - height, x + width, bottom)
    if not free(box):
        return
    colour = tuple(rng.randrange(20, 210) for _ in range(3)) if rng.random() < 0.6 else frame_colour(rng)
    darker = tuple(int(c * 0.7) for c in colour)
    draw.rectangle(box, fill=colour, outline=frame_colour(rng), width=max(1, width // 12))
    columns, panels = rng.choice((1, 1, 2)), rng.choice((1, 2, 2, 3))
    glazed = rng.random() < 0.4
    for i in range(columns):
        for j in range(panels):
            inner = (
                x + width * (i + 0.2) / columns,
                box[1] + height * (j + 0.15) / panels,
                x + width * (i + 0.8) / columns,
                box[1] + height * (j + 0.85) / panels,
            )
            draw.rectangle(inner, fill=(50, 60, 70) if glazed and j == 0 else None, outline=darker)
    draw.ellipse(
        (x + width * 0.82, bottom - height * 0.5, x + width * 0.9, bottom - height * 0.46), fill=(200, 180, 90)
    )
    label.rectangle(box, fill=row)


def frame_colour(rng: random.Random) -> tuple[int, int, int]:
    """White, cream, brown, dark, grey, green: what frames and doors are painted."""
    colours = (
        (235, 235, 230),
        (235, 235, 230),
        (220, 205, 170),
        (95, 60, 35),
        (45, 40, 40),
        (130, 130, 130),
        (40, 75, 55),
    )
    return rng.choice(colours)

"""Segments drawn over their photo: colours that stay apart, thin outlines, each word inside its region."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from lexiseg.vocabulary import Color, Vocabulary

OPACITY = 0.45
"""How much of a region's colour lies over the photo: the region is told from its neighbours, the photo still seen."""

# Below this many pixels on its longer side a photo is enlarged by a whole number: words need some ten pixels of height.
_READABLE_SIDE = 640
# Above so many pixels it is reduced by a whole number: few programs open a picture of 100 megapixels to look at it.
_MOST_PIXELS = 64_000_000
# Pixels that are drawn at once.
_BAND_PIXELS = 2_000_000
# Words are placed on a reduced map: a hundred regions of a 12-megapixel photo in a second instead of a minute.
_PLACING_SIDE = 512
# A word needs this share of its box inside its region ...
_INSIDE = 0.4
# ... and may be at most this many times larger than the region, so that specks are not covered by their own names.
_LARGEST_WORD = 4.0
# A further part of a region is named too when it covers this share of the photo.
_SECOND_LABEL_SHARE = 0.03
_MOST_LABELS_OF_ONE = 3

# The first colours are chosen by hand, so that the short lists of everyday look calm; then distance decides.
_FIRST_COLORS: tuple[Color, ...] = ((70, 150, 255), (60, 175, 60), (240, 95, 50), (255, 205, 40), (165, 70, 200))
_DISTINCT_COLORS = 512
# In OKLab with lightness halved: colours nearer than this are taken for the same at a glance.
_ALIKE = 0.08
# Fonts with more letters than the built-in one has, where the system has them.
_WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf", "Helvetica.ttc")


@dataclass(frozen=True)
class Patch:
    """What is drawn for one value of a map."""

    value: int
    color: Color
    text: str = ""
    """The word to place inside; empty for none."""


def class_colors(vocabulary: Vocabulary) -> tuple[Color, ...]:
    """A colour for every class: its own if it has one, else one far from all others.

    Without own colours, the first K colours are the same for every vocabulary.
    """
    return _distinct_colors(tuple(entry.color for entry in vocabulary.classes))


def shade(color: Color, number: int) -> Color:
    """The colour of the `number`-th instance of a class: 0 is the colour itself, then lighter and darker ones."""
    if number == 0:
        return color
    lightness, green_red, blue_yellow = _to_oklab(np.array([color], np.float64) / 255)[0]
    # Steps of the golden ratio never come close to an earlier one for as long as possible.
    lightness = 0.4 + (lightness - 0.4 + 0.45 * 0.618034 * number) % 0.45
    red, green, blue = _from_oklab(np.array([[lightness, green_red, blue_yellow]]))[0].tolist()
    return (red, green, blue)


def overlay(rgb: np.ndarray, values: np.ndarray, patches: Sequence[Patch], opacity: float = OPACITY) -> Image.Image:
    """The photo with its segments over it. Small photos come back enlarged, so that the words can be read, and those of
    more than 64 megapixels reduced.

    rgb uint8 [H, W, 3]; values int [H, W] >= -1, where pixels without a patch stay as they are. Of large photos nothing
    but the outcome itself is held whole.
    """
    height, width = values.shape
    times = max(1, -(-_READABLE_SIDE // max(height, width)) if max(height, width) < _READABLE_SIDE // 2 else 1)
    if times > 1:
        size = (width * times, height * times)
        rgb = np.asarray(Image.fromarray(np.asarray(rgb)).resize(size, Image.Resampling.BICUBIC))
        values = values.repeat(times, 0).repeat(times, 1)
        height, width = values.shape
    elif height * width > _MOST_PIXELS:
        rgb, values = _reduced(rgb, values, math.ceil(math.sqrt(height * width / _MOST_PIXELS)))
        height, width = values.shape
    highest = int(values.max(initial=0))
    table = np.zeros((highest + 2, 3), np.uint8)  # the last row is what -1 reads
    drawn = np.zeros(len(table), bool)
    for patch in patches:
        if patch.value <= highest:
            table[patch.value], drawn[patch.value] = patch.color, True
    thickness = max(1, round(max(values.shape) / 700))
    image = Image.new("RGB", (width, height))
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        # A border reaches as far as it is thick: with so many rows around it a band is drawn as in the whole picture.
        first, bottom = max(0, top - thickness), min(top + step, height)
        rows = slice(first, bottom + thickness)
        band = _tinted(rgb[rows], values[rows], table, drawn, opacity, thickness)
        image.paste(Image.fromarray(band[top - first : bottom - first]), (0, top))
    _write_words(image, values, patches)
    return image


def _reduced(rgb: np.ndarray, values: np.ndarray, times: int) -> tuple[np.ndarray, np.ndarray]:
    """The photo and the map of its segments, smaller by a whole number of times; a rest at the border is left out."""
    height, width = values.shape[0] // times, values.shape[1] // times
    small = np.empty((height, width, 3), np.uint8)
    step = max(1, _BAND_PIXELS // (width * times * times))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        band = rgb[top * times : bottom * times, : width * times]
        small[top:bottom] = np.asarray(Image.fromarray(band).reduce(times))
    middles = values[times // 2 :: times, times // 2 :: times]
    return small, np.ascontiguousarray(middles[:height, :width])


def _tinted(
    rgb: np.ndarray, values: np.ndarray, table: np.ndarray, drawn: np.ndarray, opacity: float, thickness: int
) -> np.ndarray:
    """The photo under the colours of its segments and their outlines; no words yet."""
    picture = np.array(Image.blend(Image.fromarray(rgb), Image.fromarray(table[values]), opacity))
    untouched = ~drawn[values]
    picture[untouched] = rgb[untouched]
    _outline(picture, values, table, drawn, thickness)
    return picture


def _outline(picture: np.ndarray, values: np.ndarray, table: np.ndarray, drawn: np.ndarray, thickness: int) -> None:
    """The full colour along the inner border of each region, in place; a bright line where regions touch."""
    border = np.zeros(values.shape, bool)
    across, along = values[:, 1:] != values[:, :-1], values[1:] != values[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= along
    border[:-1] |= along
    if thickness > 1:
        # A square window, one axis after the other: a few passes whatever the thickness.
        border = ndimage.maximum_filter1d(border.view(np.uint8), 2 * thickness - 1, axis=0)
        border = ndimage.maximum_filter1d(border, 2 * thickness - 1, axis=1).view(bool)
    border &= drawn[values]
    # Halfway to white: seen on dark photos and, beside the saturated fill, on bright ones.
    picture[border] = table[values[border]] // 2 + 127


# ---------------------------------------------------------------------------------------------------------- words


def _write_words(image: Image.Image, values: np.ndarray, patches: Sequence[Patch]) -> None:
    named = [patch for patch in patches if patch.text]
    if not named:
        return
    stride = max(1, -(-max(values.shape) // _PLACING_SIDE))
    small = np.ascontiguousarray(values[::stride, ::stride])
    taken = np.zeros(small.shape, bool)
    draw = ImageDraw.Draw(image, "RGBA")
    largest = min(96.0, max(13.0, 0.031 * float(np.sqrt(image.width * image.height))))
    smallest = min(largest, max(11.0, 0.6 * largest))
    # The largest regions first: they have the choice, and the small ones go where room is left.
    for part in _parts(small, named):
        patch = part.patch
        for size in (largest, (largest + smallest) / 2, smallest):
            font = _font(patch.text, size)
            left, top, right, bottom = draw.textbbox((0, 0), patch.text, font=font)
            pad = size * 0.28
            box = (right - left + 2 * pad, bottom - top + 2 * pad)  # width, height
            centre = _place(part, taken, box[0] / stride, box[1] / stride)
            if centre is None:
                continue
            x = min(max(centre[1] * stride, box[0] / 2), image.width - box[0] / 2)
            y = min(max(centre[0] * stride, box[1] / 2), image.height - box[1] / 2)
            corners = (x - box[0] / 2, y - box[1] / 2, x + box[0] / 2, y + box[1] / 2)
            paper, ink = _paper_and_ink(patch.color)
            draw.rounded_rectangle(corners, radius=size * 0.3, fill=(*paper, 225))
            draw.text((corners[0] + pad - left, corners[1] + pad - top), patch.text, font=font, fill=ink)
            break


@dataclass(frozen=True, eq=False)
class _Part:
    """A connected part of a region, cut out of the reduced map."""

    patch: Patch
    top: int
    left: int
    inside: np.ndarray
    """bool [h, w]."""
    area: int

    @cached_property
    def depth(self) -> np.ndarray:
        """float [h, w]: distance to the border, which the picture's own border is, too."""
        return ndimage.distance_transform_edt(np.pad(self.inside, 1))[1:-1, 1:-1]


def _parts(small: np.ndarray, patches: Sequence[Patch]) -> list[_Part]:
    """What is to be named, largest first: the largest part of each region and what rivals it."""
    boxes = ndimage.find_objects(small + 1)  # value 0 would be left out
    found: list[_Part] = []
    for patch in patches:
        box = boxes[patch.value] if patch.value < len(boxes) else None
        if box is None:
            continue
        numbers, count = ndimage.label(small[box] == patch.value)
        areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
        cuts = ndimage.find_objects(numbers)
        for rank, part in enumerate(np.argsort(-areas, kind="stable")[:_MOST_LABELS_OF_ONE]):
            if rank and areas[part] < _SECOND_LABEL_SHARE * small.size:
                break
            rows, columns = cuts[part]
            inside = numbers[rows, columns] == part + 1
            top, left = box[0].start + rows.start, box[1].start + columns.start
            found.append(_Part(patch, top, left, inside, int(areas[part])))
    return sorted(found, key=lambda part: -part.area)


def _place(part: _Part, taken: np.ndarray, width: float, height: float) -> tuple[float, float] | None:
    """Where (y, x) a box fits best into a region, marked as taken; None where it would only hide things."""
    box_h, box_w = max(1, round(height)), max(1, round(width))
    if box_h > taken.shape[0] or box_w > taken.shape[1] or box_h * box_w > _LARGEST_WORD * part.area:
        return None
    # The surroundings of the part that a box with its centre inside can reach.
    (part_h, part_w), (y, x) = part.inside.shape, (max(0, part.top - box_h), max(0, part.left - box_w))
    near_taken = taken[y : part.top + part_h + box_h, x : part.left + part_w + box_w]
    here = (slice(part.top - y, part.top - y + part_h), slice(part.left - x, part.left - x + part_w))
    near_inside, near_depth = np.zeros(near_taken.shape, bool), np.zeros(near_taken.shape)
    near_inside[here], near_depth[here] = part.inside, part.depth
    # Every position of the box's top left corner: how much of the box is inside, and is any of it taken?
    share = _box_sums(near_inside, box_h, box_w) / (box_h * box_w)
    free = _box_sums(near_taken, box_h, box_w) == 0
    # Deep inside is better than near the border; the centre of the largest inscribed circle is the deepest.
    depth = near_depth[box_h // 2 : box_h // 2 + share.shape[0], box_w // 2 : box_w // 2 + share.shape[1]]
    good = free & (share >= _INSIDE) & (depth > 0)
    if not good.any():
        return None
    quality = np.where(good, np.minimum(share, 0.999) + depth / part.depth.max(), -1)
    row, column = divmod(int(quality.argmax()), quality.shape[1])
    top, left = row + y, column + x
    margin = max(1, box_h // 6)
    taken[max(0, top - margin) : top + box_h + margin, max(0, left - margin) : left + box_w + margin] = True
    return (top + box_h / 2, left + box_w / 2)


def _box_sums(mask: np.ndarray, box_h: int, box_w: int) -> np.ndarray:
    """Number of set pixels under a box at every position: [H - box_h + 1, W - box_w + 1]."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    total[1:, 1:] = mask.cumsum(0, dtype=np.int32).cumsum(1)
    return total[box_h:, box_w:] - total[:-box_h, box_w:] - total[box_h:, :-box_w] + total[:-box_h, :-box_w]


@lru_cache(maxsize=64)
def _load_font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    if not name:
        return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _font(text: str, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, the same everywhere; it has no letters beyond ASCII, for which a system font is tried."""
    names = ("",) if text.isascii() else (*_WIDE_FONTS, "")
    for name in names:
        font = _load_font(name, round(size))
        if font is not None:
            return font
    raise AssertionError("Pillow's own font is always there")


def _paper_and_ink(color: Color) -> tuple[Color, Color]:
    """The label's ground, which is the region's colour, and black or white, whichever is read better on it."""
    linear = _linear(np.array(color, np.float64) / 255)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    # WCAG contrast to white is 1.05 / (l + 0.05), to black (l + 0.05) / 0.05; equal at l = 0.179.
    return color, (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


# --------------------------------------------------------------------------------------------------------- colours


@lru_cache(maxsize=32)
def _distinct_colors(own: tuple[Color | None, ...]) -> tuple[Color, ...]:
    """Fills the gaps: each new colour is the one farthest from all before it, in OKLab."""
    candidates = _candidates()
    lab = _apart(candidates)
    # Photos are full of greys: colours are chosen away from them, too.
    chosen = [_apart(np.array([[v, v, v]], np.uint8))[0] for v in (0, 64, 128, 192, 255)]
    chosen += [_apart(np.array([color], np.uint8))[0] for color in own if color is not None]
    wanted = min(sum(color is None for color in own), _DISTINCT_COLORS)
    fresh: list[Color] = []
    for color in _FIRST_COLORS[:wanted]:
        point = _apart(np.array([color], np.uint8))[0]
        if min(np.linalg.norm(point - other) for other in chosen) > _ALIKE:
            fresh.append(color)
            chosen.append(point)
    distance = np.min([np.linalg.norm(lab - point, axis=1) for point in chosen], axis=0)
    while len(fresh) < wanted:
        best = int(distance.argmax())
        red, green, blue = candidates[best].tolist()
        fresh.append((red, green, blue))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    supply = itertools.cycle(fresh)
    return tuple(next(supply) if color is None else color for color in own)


@lru_cache(maxsize=1)
def _candidates() -> np.ndarray:
    """uint8 [N, 3]: colours that are neither dull nor glaring, dark or pale."""
    levels = np.linspace(0, 255, 24).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _to_oklab(grid / 255)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    return grid[(chroma > 0.09) & (chroma < 0.22) & (lab[:, 0] > 0.45) & (lab[:, 0] < 0.88)]


def _apart(colors: np.ndarray) -> np.ndarray:
    """OKLab with half the weight on lightness: under a tint the photo itself is light and dark."""
    return _to_oklab(colors / 255) * (0.5, 1, 1)


def _linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


# Björn Ottosson, "A perceptual color space for image processing", 2020 (public domain).
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _to_oklab(srgb: np.ndarray) -> np.ndarray:
    """sRGB [N, 3] in 0..1 -> lightness 0..1, green-red, blue-yellow."""
    return np.cbrt(_linear(srgb) @ _TO_LMS.T) @ _TO_LAB.T


def _from_oklab(lab: np.ndarray) -> np.ndarray:
    """The inverse, as uint8 [N, 3]; colours outside sRGB are clipped."""
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    linear = linear.clip(0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(srgb * 255).astype(np.uint8)

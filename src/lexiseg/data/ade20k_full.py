"""ADE20K-847: the full ADE20K in its release of January 2021, reduced to 847 of its 3688 kinds of objects.

ADE20K_2021_17_01/images/ADE/validation/<scene...>/<id>.jpg
ADE20K_2021_17_01/images/ADE/validation/<scene...>/<id>_seg.png    kind of object = int(red / 10) * 256 + green
ADE20K_2021_17_01/images/ADE/validation/<scene...>/<id>.json       names of the objects in the photo

Photos of which both sides exceed 512 pixels are measured at a short side of 512: that is part of the protocol. They are
resized bilinearly without antialiasing and stored as JPEG again, so that pixel values depend on the JPEG library.
"""

from __future__ import annotations

import io
import json
from functools import partial
from importlib import resources

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.layouts import Converted, Layout, Part, looked_up, paired, read_picture
from lexiseg.data.sources import Source, SourceError
from lexiseg.types import Size

CLASSES, IGNORE = 847, 65535
KINDS = 3200
"""Beyond the largest number of a kind of object."""
SHORT_SIDE = 512
JPEG_QUALITY = 75  # Pillow's own choice, which the protocol left it
_PAGE = "ADE20K_2021_17_01.zip, groups.csail.mit.edu/vision/datasets/ADE20K (after registration)"
_FOLDER = r"images/ADE/validation/(?:[^/]+/)+"
PHOTOS = Part("photos", _FOLDER + r"(ADE_val_\d+)\.jpg", _PAGE)
LABELS = Part("labels", _FOLDER + r"(ADE_val_\d+)_seg\.png", _PAGE)
NAMES = Part("names of the objects", _FOLDER + r"(ADE_val_\d+)\.json", _PAGE)
PARTS = (PHOTOS, LABELS, NAMES)


def ade20k_847(source: Source) -> Layout:
    photos, labels = source.match(PHOTOS.pattern), source.match(LABELS.pattern)
    numbers = object_numbers()
    found = read_names(source, source.match(NAMES.pattern), set(numbers))
    nameless = [number for number in numbers if number not in found]
    words = tuple(found.get(number, (f"object {number}",)) for number in numbers)
    return Layout(
        classes=tuple(", ".join(phrases) for phrases in words),
        words=words,
        ids=paired(photos, labels),
        convert=partial(_convert, source, photos, labels, table()),
        remarks=(
            (f"{len(nameless)} of {CLASSES} classes occur in no photo, so their names are not known",)
            if nameless
            else ()
        ),
    )


def object_numbers() -> tuple[int, ...]:
    """The kinds of objects that are the 847 classes, in their order."""
    text = resources.files(__package__).joinpath("ade20k_847.txt").read_text(encoding="utf-8")
    return tuple(int(word) for line in text.splitlines() if not line.startswith("#") for word in line.split())


def table() -> NDArray[np.uint16]:
    """[KINDS] kind of object -> class, 65535 for what is none of the 847."""
    classes = np.full(KINDS, IGNORE, np.uint16)
    classes[list(object_numbers())] = np.arange(CLASSES)
    return classes


def object_kinds(colours: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[H, W, >= 2] as published -> kinds of objects [H, W], 0 = none."""
    wide = colours.astype(np.int32)
    kinds: NDArray[np.int32] = wide[..., 0] // 10 * 256 + wide[..., 1]
    return kinds


def measured_size(size_hw: Size) -> Size:
    """The size at which a photo is measured: short side 512 where both sides exceed it."""
    short, long = min(size_hw), max(size_hw)
    if short <= SHORT_SIDE:
        return size_hw
    other = round(long / short * SHORT_SIDE)
    return (SHORT_SIDE, other) if size_hw[0] <= size_hw[1] else (other, SHORT_SIDE)


def read_names(source: Source, files: dict[str, str], wanted: set[int]) -> dict[int, tuple[str, ...]]:
    """Names of kinds of objects, from the notes beside the photos, until all that are wanted are known."""
    names: dict[int, tuple[str, ...]] = {}
    for path in files.values():
        try:
            # A few of the files hold letters that are no UTF-8.
            document = json.loads(source.read(path).decode("utf-8", errors="replace"), strict=False)
            for entry in document["annotation"]["object"]:
                phrases = tuple(name.strip() for name in str(entry["name"]).split(",") if name.strip())
                if phrases:
                    names.setdefault(int(entry["name_ndx"]), phrases)
        except SourceError:
            raise
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(f"{path}: not the notes of an ADE20K photo ({error!r:.80}); download it again") from None
        if wanted <= names.keys():
            break
    return names


def _convert(
    source: Source, photos: dict[str, str], labels: dict[str, str], classes: NDArray[np.uint16], id: str
) -> Converted:
    colours = read_picture(source, labels[id])
    if colours.ndim != 3 or colours.shape[2] < 2:
        raise SourceError(f"{labels[id]}: {colours.shape} where a colour picture was expected")
    labels_at_full_size = looked_up(classes, object_kinds(colours), labels[id])
    size_hw = (colours.shape[0], colours.shape[1])
    target = measured_size(size_hw)
    if target == size_hw:
        return Converted(photos[id], labels_at_full_size)
    photo = read_picture(source, photos[id])
    if photo.shape[:2] != size_hw:
        raise SourceError(f"{photos[id]}: {photo.shape[:2]} pixels (height, width), but its labels have {size_hw}")
    return Converted(_jpeg(_resized(photo, target)), _nearest(labels_at_full_size, target))


def _resized(photo: NDArray[np.uint8], size_hw: Size) -> NDArray[np.uint8]:
    rgb = photo if photo.ndim == 3 else np.repeat(photo[..., None], 3, axis=2)
    channels = torch.from_numpy(np.array(rgb[..., :3])).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(channels, size_hw, mode="bilinear", align_corners=False)
    pixels: NDArray[np.uint8] = resized[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels


def _nearest(labels: NDArray[np.uint16], size_hw: Size) -> NDArray[np.uint16]:
    rows, columns = (
        np.minimum(np.arange(new) * old // new, old - 1) for old, new in zip(labels.shape, size_hw, strict=True)
    )
    return labels[rows[:, None], columns]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

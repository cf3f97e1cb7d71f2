"""Masks that somebody brings along with a photo: read from files or arrays, and checked.

A mistake gives one `ImageError` that names the photo and its masks, says what is wrong and what to do. Sizes are
checked before anything large is made of a file.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lexiseg.formats.annotations import AnnotatedSet, FormatError, Shape, is_inside, read_json_file
from lexiseg.formats.coco import read_shape
from lexiseg.formats.coco_panoptic import read_segment_ids
from lexiseg.formats.cvat import read_cvat
from lexiseg.formats.label_studio import is_label_studio, read_label_studio
from lexiseg.images import ImageError, ImageLimits, Photo, check_file, read_label_map
from lexiseg.types import Size

MaskInput = str | os.PathLike[str] | np.ndarray | Tensor | Sequence[np.ndarray | Tensor]
"""The masks of one photo, of its size: bool [Q, H, W] or a list of bool [H, W]; a label map, whole numbers [H, W] where
0 is no mask; or a file: a label map as .png, either as .npy or .npz, as .json COCO's instances, its panoptic form, bare
run lengths or an export of Label Studio, as .xml or .zip an export of CVAT."""

SUFFIXES = (".png", ".npy", ".npz", ".json", ".xml", ".zip")
"""What `find_masks` looks for, in this order."""

OF_MANY_PHOTOS = (".json", ".xml", ".zip")
"""Files that may hold the masks of many photos, and find each by its name."""

MAX_MASKS = 5000
MAX_MASK_BYTES = 4 * 2**30
"""Of all masks of a photo, one byte per pixel each."""


@dataclass(frozen=True, eq=False)
class PhotoMasks:
    """The masks of a photo, on its own grid."""

    masks: np.ndarray
    """bool [Q, H, W], Q at least 1."""
    ids: tuple[int, ...]
    """Q different names: the number in the label map, the id of the annotation, else the place from 1."""


def read_masks(masks: MaskInput | PhotoMasks, photo: Photo, limits: ImageLimits | None = None) -> PhotoMasks:
    """The masks of a photo, whatever they are given as; see `MaskInput`. limits: of the file."""
    if isinstance(masks, PhotoMasks):
        found = masks
    else:
        limits = limits or ImageLimits()
        try:
            found = _read(masks, photo, limits)
        except ImageError as error:
            raise ImageError(photo.name, f"its masks cannot be used: {error}") from None
    if found.masks.shape[1:] != photo.size_hw:
        height, width = found.masks.shape[1:]
        raise ImageError(
            photo.name,
            f"its masks have {width} x {height} pixels, the upright photo {photo.rgb.shape[1]} x {photo.rgb.shape[0]}; "
            "give masks of the photo's size",
        )
    return found


def find_masks(folder: str | os.PathLike[str], stem: str) -> Path:
    """The file with the masks of the photo `stem` in a folder: that name with one of `SUFFIXES`, the first there is.

    Where there is none, the path of the .png that could have been.
    """
    paths = [Path(folder) / (stem + suffix) for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), paths[0])


def _read(masks: object, photo: Photo, limits: ImageLimits) -> PhotoMasks:
    if isinstance(masks, str | os.PathLike):
        return _from_file(Path(masks), photo, limits)
    if isinstance(masks, Tensor):
        return _from_array(f"tensor {list(masks.shape)}", masks.detach().cpu().numpy())
    if isinstance(masks, np.ndarray):
        return _from_array(f"array {list(masks.shape)}", masks)
    if isinstance(masks, Sequence) and not isinstance(masks, bytes | bytearray | memoryview):
        return _from_list(masks)
    raise ImageError(
        f"{type(masks).__name__} object", "is no masks; give an array, a tensor, a list of masks or the path of a file"
    )


def _from_list(masks: Sequence[Any]) -> PhotoMasks:
    name = f"list of {len(masks)}"
    arrays = []
    for number, mask in enumerate(masks, start=1):
        array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else mask
        if not isinstance(array, np.ndarray) or array.ndim != 2:
            raise ImageError(name, f"entry {number} is no mask; each is an array or a tensor [H, W]")
        arrays.append(array)
    if len({array.shape for array in arrays}) > 1:
        raise ImageError(name, "its masks differ in size; all masks of a photo have the photo's size")
    if not arrays:
        raise ImageError(name, "holds no mask; give at least one, or leave the masks out")
    _check_count(name, len(arrays), _size(arrays[0]))
    return _from_array(name, np.stack(arrays))


def _from_file(path: Path, photo: Photo, limits: ImageLimits) -> PhotoMasks:
    name = str(path)
    if path.is_dir():
        raise ImageError(name, "is a folder; name the file in it that belongs to this photo")
    check_file(path, limits)
    suffix = path.suffix.lower()
    try:
        if suffix == ".png":
            return _from_array(name, read_label_map(path, limits))
        if suffix == ".npy":
            # Mapped: its header tells the size before anything is read. Objects would be a pickle.
            return _from_array(name, np.load(path, mmap_mode="r", allow_pickle=False))
        if suffix == ".npz":
            return _from_array(name, _only_array(path))
        if suffix in OF_MANY_PHOTOS:
            status = path.stat()
            return _from_content(path, _content(path, status.st_size, status.st_mtime_ns), photo)
    except ImageError:
        raise
    except FormatError as error:
        raise ImageError(name, str(error).removeprefix(f"{path}: ")) from None
    except Exception as error:  # damaged files fail anywhere in their readers, with any type
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ImageError(name, f"is damaged, or not what its name says ({reason})") from None
    raise ImageError(name, f"is of no kind that holds masks: {', '.join(SUFFIXES)}")


def _only_array(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_MASK_BYTES:
        raise ImageError(str(path), f"unpacks to {size / 2**30:.1f} GiB, more than the limit of {_limit()}; split it")
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        chosen = "masks" if "masks" in names else names[0] if len(names) == 1 else None
        if chosen is None:
            raise ImageError(str(path), f"holds {len(names)} arrays; give one, or call it 'masks'")
        return archive[chosen]


def _from_array(name: str, array: np.ndarray) -> PhotoMasks:
    """bool [Q, H, W] or [H, W], whole numbers [H, W] or, of 0 and one other value, [Q, H, W]."""
    if array.dtype != np.bool_ and array.dtype.kind not in "iu":
        raise ImageError(name, f"has the type {array.dtype}; masks are bool, label maps whole numbers")
    if array.ndim not in (2, 3):
        raise ImageError(name, f"has the shape {list(array.shape)}; give masks [Q, H, W] or a label map [H, W]")
    if array.size == 0:
        raise ImageError(name, f"has the shape {list(array.shape)} and holds no mask; give at least one")
    if array.ndim == 2 and array.dtype != np.bool_:
        return _from_label_map(name, array)
    if array.ndim == 2:
        array = array[None]
    _check_count(name, len(array), _size(array))
    if array.dtype != np.bool_ and not ((array == 0) | (array == array.max())).all():
        raise ImageError(
            name, f"has the shape {list(array.shape)} and more than two values; masks are bool, a label map is [H, W]"
        )
    return PhotoMasks(np.ascontiguousarray(array != 0), tuple(range(1, len(array) + 1)))


def _from_label_map(name: str, labels: np.ndarray) -> PhotoMasks:
    ids = np.unique(labels)
    if ids[0] < 0:
        raise ImageError(name, f"has negative numbers ({ids[0]}); in a label map 0 is no mask, and masks count from 1")
    ids = ids[ids > 0]
    if len(ids) == 0:
        raise ImageError(name, "holds no mask: every pixel is 0; give at least one, or leave the masks out")
    _check_count(name, len(ids), _size(labels))
    masks = np.empty((len(ids), *labels.shape), bool)
    for mask, value in zip(masks, ids, strict=True):
        np.equal(labels, value, out=mask)
    return PhotoMasks(masks, tuple(int(value) for value in ids))


@lru_cache(maxsize=1)  # a file of many photos is read once for all of them
def _content(path: Path, size: int, changed: int) -> Any:
    """The tree of a JSON file, or what a tool's export holds. size, changed: of the file, as it is now."""
    if path.suffix.lower() != ".json":
        return read_cvat(path)
    document = read_json_file(path)
    return read_label_studio(path, document) if is_label_studio(document) else document


def _from_content(path: Path, content: Any, photo: Photo) -> PhotoMasks:
    """Of a file about several photos, the masks of this one by its file name."""
    if isinstance(content, AnnotatedSet):
        masks = content.of(photo.name).masks
        return _drawn(path, [(mask.where.removeprefix(f"{path}: "), mask.shape) for mask in masks], photo)
    entries = content
    if isinstance(content, dict) and "annotations" in content:
        entries = _annotations(path, content, photo)
    elif isinstance(content, dict):
        entries = [content]
    if not isinstance(entries, list) or not entries:
        raise ImageError(str(path), "holds no mask; give COCO annotations, or a list of run lengths (RLE)")
    if isinstance(entries[0], dict) and "segments_info" in entries[0]:
        return _panoptic(path, entries, photo)
    shapes = []
    for number, entry in enumerate(entries, start=1):
        try:
            shapes.append((f"entry {number}", read_shape(entry)))
        except ValueError as error:
            raise ImageError(str(path), f"entry {number}: {error}") from None
    named = tuple(
        dict.fromkeys(entry["id"] for entry in entries if isinstance(entry, dict) and type(entry.get("id")) is int)
    )
    found = _drawn(path, shapes, photo)
    return replace(found, ids=named) if len(named) == len(entries) else found


def _drawn(path: Path, shapes: Sequence[tuple[str, Shape]], photo: Photo) -> PhotoMasks:
    """shapes: with their names for messages."""
    if not shapes:
        raise ImageError(str(path), "holds no mask for this photo; annotate it, or leave the photo out")
    _check_count(str(path), len(shapes), photo.size_hw)
    found = np.empty((len(shapes), *photo.size_hw), bool)
    for mask, (where, shape) in zip(found, shapes, strict=True):
        try:
            mask[:] = shape.draw(photo.size_hw)
        except ValueError as error:
            raise ImageError(str(path), f"{where}: {error}") from None
    return PhotoMasks(found, tuple(range(1, len(found) + 1)))


def _annotations(path: Path, content: dict[str, Any], photo: Photo) -> list[Any]:
    images = content.get("images") or []
    if len(images) < 2:
        return content["annotations"]
    name = Path(photo.name).name
    ids = [image["id"] for image in images if Path(str(image.get("file_name"))).name == name]
    if len(ids) != 1:
        raise ImageError(
            str(path),
            f"is about {len(images)} photos, {len(ids)} of them called {name}; call the photo as the file does",
        )
    return [entry for entry in content["annotations"] if entry.get("image_id") == ids[0]]


def _panoptic(path: Path, entries: Sequence[dict[str, Any]], photo: Photo) -> PhotoMasks:
    """COCO's panoptic form: ids in a PNG, in the folder beside the file that is called like it."""
    if len(entries) != 1 or not is_inside(entries[0].get("file_name")):
        raise ImageError(
            str(path), "needs one annotation for this photo, with a file_name below the folder of the PNGs"
        )
    try:
        ids = read_segment_ids(path.with_suffix("") / entries[0]["file_name"])
    except ValueError as error:
        raise ImageError(str(path), str(error)) from None
    told = entries[0]["segments_info"]
    listed = [one["id"] for one in told if isinstance(one, dict) and type(one.get("id")) is int]
    return _from_label_map(str(path), np.where(np.isin(ids, listed), ids, 0))


def _check_count(name: str, count: int, size_hw: Size) -> None:
    if count > MAX_MASKS:
        raise ImageError(name, f"holds {count} masks, more than the limit of {MAX_MASKS}; split them")
    if count * size_hw[0] * size_hw[1] > MAX_MASK_BYTES:
        raise ImageError(
            name,
            f"holds {count} masks of {size_hw[1]} x {size_hw[0]} pixels, more than the limit of {_limit()}; split "
            "them, or make the photo smaller",
        )


def _limit() -> str:
    return f"{MAX_MASK_BYTES / 2**30:.0f} GiB"


def _size(array: np.ndarray) -> Size:
    return array.shape[-2], array.shape[-1]

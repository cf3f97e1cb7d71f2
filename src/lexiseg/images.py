"""Reading pictures of every kind, and laying them on the canvas a model looks at.

A picture that cannot be used gives one `ImageError` whose single line says which input, what is wrong with it and
what to do. Size limits are checked on the header, before any pixel is decoded.
"""

from __future__ import annotations

import io
import math
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from lexiseg.geometry import TowerView, fit_short_edge, fit_within, round_up
from lexiseg.types import Images, Size

ImageInput = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | Tensor
"""One picture: a path, the bytes of a file, an open binary file, a PIL image, an array or a tensor."""

# What a folder is searched for; a file named outright may have any ending.
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pnm", ".tga", ".heic", ".heif"),
}

# EPS is a program that Pillow hands to Ghostscript; WMF is drawn by the operating system.
_REFUSED_FORMATS = {"EPS", "WMF"}

# More than one frame is normal here: a JPEG with a depth or gain map beside it, a PSD with its layers. Frame 0 is the
# picture itself.
_FIRST_FRAME_IS_THE_PICTURE = {"MPO", "PSD"}

# Pixels that are copied at once.
_BAND_PIXELS = 4_000_000

_EXIF_ORIENTATION = 0x0112
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """A picture that cannot be used: one line naming the input, the problem and the remedy."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = _one_line(name)
        self.problem = _one_line(problem)
        super().__init__(f"{self.name}: {self.problem}")

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return (type(self), (self.name, self.problem))


class ImageTooLargeError(ImageError):
    """A picture beyond a limit on bytes or pixels."""


@dataclass(frozen=True)
class ImageLimits:
    """How large a picture may be. Both limits can be raised; they protect from files that unpack to gigabytes."""

    max_pixels: int = 120_000_000
    """Height x width. Every stage needs some 30 bytes per pixel."""
    max_bytes: int = 512 * 2**20
    """Size of the file, or of the bytes given."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture as it is segmented and drawn: upright, opaque, 8-bit RGB."""

    rgb: np.ndarray
    """uint8 [H, W, 3]."""
    name: str
    """What to call it in messages and results: the path as given, or what the caller said."""
    source: Path | None = None
    """The file it came from."""
    blank: np.ndarray | None = None
    """bool [H, W]: pixels that show nothing, and get no class; None where all show something."""

    @property
    def size_hw(self) -> Size:
        return (self.rgb.shape[0], self.rgb.shape[1])

    def part(self, rows: tuple[int, int], columns: tuple[int, int]) -> Photo:
        """A part of it, to be looked at: first pixels along both axes, and one past the last."""
        if rows == (0, self.size_hw[0]) and columns == (0, self.size_hw[1]):
            return self
        return Photo(self.rgb[slice(*rows), slice(*columns)], self.name)


@dataclass(frozen=True)
class Canvas:
    """How photos are resized and put together into one batch. FC-CLIP: 800 / 1333 / 32."""

    short_edge: int = 800
    long_edge: int = 1333
    multiple: int = 32
    second_short_edge: int | None = None
    """Where this is given, the resized photo is resized once more, to this short edge whatever the long one, and
    without antialiasing; towers with a size of their own take their view from what it was before. MaskCLIP++ was scored
    so."""
    within: Size | None = None
    """The canvas always has this size, and a photo is smaller than the edges say where it would not fit: for networks
    that were made for one size."""

    def fit(self, size_hw: Size) -> Size:
        """The size a photo is resized to: the short edge at `short_edge`, the long edge at most `long_edge`."""
        height, width = fit_short_edge(size_hw, self.short_edge, self.long_edge)
        fitted = (max(height, 1), max(width, 1))  # a hair-thin picture would round to nothing
        if self.within is None or self.second_short_edge is not None:
            return fitted
        return fit_within(fitted, self.within)

    def picture_hw(self, size_hw: Size) -> Size:
        """The size a photo has on the canvas in the end."""
        second = self._second_view
        return self.fit(size_hw) if second is None else second.size_of(self.fit(size_hw))

    @property
    def _second_view(self) -> TowerView | None:
        if self.second_short_edge is None:
            return None
        return TowerView("short", self.second_short_edge, self.multiple, self.within)

    def resize(self, photo: Photo) -> np.ndarray:
        """uint8 [h, w, 3], of the size that `fit` tells.

        PIL's bilinear filter with its antialiasing, on 8-bit values, as the released models were scored.
        """
        return resized(photo.rgb, self.fit(photo.size_hw))

    def __call__(self, photos: Sequence[Photo]) -> Images:
        """The photos in one batch, padded with zeros to the right and below up to the largest of them."""
        if not photos:
            raise ValueError("a canvas needs at least one photo")
        return self.place([self.resize(photo) for photo in photos], [photo.size_hw for photo in photos])

    def place(self, pictures: Sequence[np.ndarray], original_hw: Sequence[Size]) -> Images:
        """Resized pictures, uint8 [h, w, 3], in one batch. original_hw: of the photos they were made of."""
        second = self._second_view
        if second is None:
            return place(pictures, original_hw, self.multiple, self.within)
        images = place(pictures, original_hw, self.multiple)
        view = second(images)
        same = view.sizes_hw == images.sizes_hw and view.canvas_hw == images.canvas_hw
        return images if same else replace(view, unscaled=images)


def resized(rgb: np.ndarray, size_hw: Size) -> np.ndarray:
    """uint8 [h, w, 3] -> [*size_hw, 3] by PIL's bilinear filter with its antialiasing."""
    (height, width), bilinear = rgb.shape[:2], Image.Resampling.BILINEAR
    if (height, width) == tuple(size_hw):
        return np.asarray(rgb)
    if height * width <= _BAND_PIXELS:
        return np.asarray(Image.fromarray(np.asarray(rgb)).resize((size_hw[1], size_hw[0]), bilinear))
    # The filter goes along the rows first and then down the columns, in 8 bits. So bands of rows give the same outcome,
    # and of a large photo there is no copy in Pillow's four bytes a pixel.
    narrow = np.empty((height, size_hw[1], 3), np.uint8)
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        band = Image.fromarray(np.ascontiguousarray(rgb[top : top + step]))
        narrow[top : top + step] = np.asarray(band.resize((size_hw[1], band.height), bilinear))
    return np.asarray(Image.fromarray(narrow).resize((size_hw[1], size_hw[0]), bilinear))


LOOKS = tuple(range(400, 1201, 100))
"""Short edges of the looks at a photo; at most 4000 long."""


def looks(canvas: Canvas, photo: Photo) -> Iterator[tuple[Images, bool]]:
    """A photo at several sizes, each as it is and mirrored: (picture, whether it is mirrored).

    Test-time augmentation as detectron2 has it: what the canvas has made of the photo is resized again, from its 8-bit
    values, to each of `LOOKS`.
    """
    first = Photo(canvas.resize(photo), photo.name)
    for short_edge in LOOKS:
        again = replace(canvas, short_edge=short_edge, long_edge=4000)
        rgb = again.resize(first)
        for mirrored in (False, True):
            yield again.place([rgb[:, ::-1] if mirrored else rgb], [photo.size_hw]), mirrored


def place(
    pictures: Sequence[np.ndarray], original_hw: Sequence[Size], multiple: int = 32, canvas_hw: Size | None = None
) -> Images:
    """uint8 pictures [h, w, 3] at their own sizes on one canvas, its sides rounded up to `multiple` unless given."""
    sizes = tuple((picture.shape[0], picture.shape[1]) for picture in pictures)
    height, width = canvas_hw or round_up((max(h for h, _ in sizes), max(w for _, w in sizes)), multiple)
    pixels = torch.zeros(len(pictures), 3, height, width)
    for row, picture, (h, w) in zip(pixels, pictures, sizes, strict=True):
        row[:, :h, :w] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return Images(pixels=pixels, sizes_hw=sizes, original_hw=tuple(original_hw))


def read_image(image: ImageInput | Photo, limits: ImageLimits | None = None, name: str | None = None) -> Photo:
    """One picture, whatever it is given as.

    Files: every raster format Pillow reads, turned upright by their EXIF orientation, transparent ones laid on white,
    16-bit ones scaled to 8 bits. Arrays: uint8, uint16 or floats in 0..1; [H, W], [H, W, 1 | 3 | 4] or the same with
    channels first (what fits both is read channels last for arrays and channels first for tensors); RGB order.
    Raises ImageError for everything that is not a usable picture.
    """
    limits = limits or ImageLimits()
    if isinstance(image, Photo):
        return image
    if isinstance(image, str | os.PathLike):
        return _read_path(image, limits, name)
    if isinstance(image, bytes | bytearray | memoryview):
        name = name or "image bytes"
        _check_bytes(name, len(image), limits)
        return Photo(_decode(name, io.BytesIO(image), limits), name)
    if isinstance(image, Image.Image):
        name = name or getattr(image, "filename", "") or f"{image.mode} image"
        return Photo(_from_pil(name, image, limits), name)
    if isinstance(image, Tensor):
        name = name or f"tensor {list(image.shape)}"
        if image.dtype == torch.bfloat16:  # numpy has no such type
            image = image.float()
        return Photo(_from_array(name, image.detach().cpu().numpy(), limits, channels_first=True), name)
    if isinstance(image, np.ndarray):
        name = name or f"array {list(image.shape)}"
        return Photo(_from_array(name, image, limits, channels_first=False), name)
    if hasattr(image, "read"):
        name = name or str(getattr(image, "name", "open file"))
        data = image.read(limits.max_bytes + 1)
        if not isinstance(data, bytes):
            raise ImageError(name, "is open as text; open it with mode 'rb'")
        _check_bytes(name, len(data), limits)
        return Photo(_decode(name, io.BytesIO(data), limits), name)
    raise ImageError(
        name or f"{type(image).__name__} object",
        "is not a picture; give a path, the bytes of a file, a PIL image, an array or a tensor",
    )


def find_images(folder: str | os.PathLike[str]) -> list[Path]:
    """All image files in a folder and the folders inside it, by their endings, sorted; hidden ones are left out."""
    root = Path(folder)
    return sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
        and path.is_file()
    )


def read_label_map(path: str | os.PathLike[str], limits: ImageLimits | None = None) -> np.ndarray:
    """The numbers of a grey or palette picture, one per pixel and of up to 16 bits: [H, W], nothing turned or scaled.

    A palette picture gives its indices, a black-and-white one bool. Raises ImageError.
    """
    limits = limits or ImageLimits()
    name = check_file(path, limits)
    with _pillow_limits_off():
        try:
            with Image.open(path, formats=["PNG"]) as image:
                check_pixels(name, (image.height, image.width), limits)
                if image.mode not in ("1", "L", "P", "I;16", "I"):
                    raise ImageError(
                        name, f"has colours (mode {image.mode}); a label map is grey or a palette, with 8 or 16 bits"
                    )
                return np.array(image)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(name, "is not a PNG picture; save the label map as PNG") from None
        except Exception as error:  # as for photos
            raise _damaged(name, error) from None


def _read_path(path: str | os.PathLike[str], limits: ImageLimits, name: str | None) -> Photo:
    name = check_file(path, limits, name)
    try:
        with open(path, "rb") as file:
            return Photo(_decode(name, file, limits), name, Path(path))
    except OSError as error:
        raise ImageError(name, f"cannot be opened ({_reason(error)}); check the path and its permissions") from None


def check_file(path: str | os.PathLike[str], limits: ImageLimits, name: str | None = None) -> str:
    """What to call a file; raises ImageError where it is none, or larger than `limits.max_bytes`."""
    text = os.fspath(path)
    name = name or text
    if not text:
        raise ImageError("''", "is an empty path; name an image file")
    if text.startswith(("http://", "https://", "ftp://", "s3://", "gs://", "data:")):
        raise ImageError(name, "is a web address; download the picture and give its path")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ImageError(name, "there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ImageError(name, f"cannot be opened ({_reason(error)}); check the path and its permissions") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(name, "is a folder; name the images in it")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(name, "is not a regular file; name an image file")
    _check_bytes(name, status.st_size, limits)
    return name


def _check_bytes(name: str, size: int, limits: ImageLimits) -> None:
    if size == 0:
        raise ImageError(name, "is empty (0 bytes); copy or download it again")
    if size > limits.max_bytes:
        raise ImageTooLargeError(
            name,
            f"is larger than the limit of {_megabytes(limits.max_bytes)} MB; make it smaller or raise max_bytes",
        )


def check_pixels(name: str, size_hw: Size, limits: ImageLimits) -> None:
    """Raises ImageError for a picture without pixels, or with more than `limits.max_pixels`."""
    height, width = size_hw
    if height < 1 or width < 1:
        raise ImageError(name, f"has no pixels ({width} x {height}); give a picture with at least one")
    if height * width > limits.max_pixels:
        raise ImageTooLargeError(
            name,
            f"has {width} x {height} = {_megapixels(height * width)} megapixels, more than the limit of "
            f"{_megapixels(limits.max_pixels)}; make it smaller or raise max_pixels",
        )


def _decode(name: str, file: BinaryIO, limits: ImageLimits) -> np.ndarray:
    """The picture in an open file, uint8 [H, W, 3]."""
    with _pillow_limits_off():
        try:
            with Image.open(file, formats=_formats()) as image:
                return _from_pil(name, image, limits)
        except ImageError:
            raise
        except UnidentifiedImageError:
            raise ImageError(
                name, "is not an image this program can read; convert it to JPEG, PNG, WebP or TIFF"
            ) from None
        # Pillow's thirty decoders meet damaged files with every kind of exception.
        except Exception as error:
            raise _damaged(name, error) from None


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def _from_pil(name: str, image: Image.Image, limits: ImageLimits) -> np.ndarray:
    """A PIL image, decoded or not yet, as uint8 [H, W, 3]: upright, opaque."""
    check_pixels(name, (image.height, image.width), limits)
    with _pillow_limits_off():
        try:
            frames = 1 if image.format in _FIRST_FRAME_IS_THE_PICTURE else getattr(image, "n_frames", 1)
            if frames > 1:
                raise ImageError(name, f"has {frames} frames; save the one you want as a picture of its own")
            image.load()
            upright = _turned_upright(image)
            if image.mode.startswith("I") or image.mode == "F":
                return _from_array(name, np.asarray(upright), limits, channels_first=False)
            return _pixels(_opaque_rgb(upright))
        except ImageError:
            raise
        except Exception as error:
            raise _damaged(name, error) from None


def _turned_upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the notes of a picture may be damaged where the picture is not
        orientation = 1
    method = _UPRIGHT_BY.get(orientation)
    if method is None:
        return image
    turned = image.transpose(method)
    turned.info = image.info  # transparency and colour profile stay true
    return turned


def _opaque_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "LAB" or (image.mode == "CMYK" and "icc_profile" in image.info):
        managed = _through_profile(image)
        if managed is not None:
            return managed
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _pixels(image: Image.Image) -> np.ndarray:
    """An RGB image as uint8 [H, W, 3]. Band by band: Pillow makes two more copies on the way to an array."""
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    step = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        rgb[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return rgb


def _through_profile(image: Image.Image) -> Image.Image | None:
    """Printing colours as their own profile means them, in sRGB; None where the profile is of no use."""
    try:
        source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def _from_array(name: str, array: np.ndarray, limits: ImageLimits, channels_first: bool) -> np.ndarray:
    """[H, W], [H, W, C] or [C, H, W] with C 1, 3 or 4 -> uint8 [H, W, 3]."""
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        array = _channels_last(name, array, channels_first)
    else:
        raise ImageError(
            name,
            f"has the shape {list(array.shape)}; a picture is [H, W], [H, W, 3], [H, W, 4] or the same with channels "
            "first, several pictures go in a list",
        )
    check_pixels(name, (array.shape[0], array.shape[1]), limits)
    values = _to_uint8(name, array)
    if values.shape[2] == 4:
        return np.array(_opaque_rgb(Image.fromarray(values, "RGBA")))
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))


def _channels_last(name: str, array: np.ndarray, channels_first: bool) -> np.ndarray:
    could_be_first, could_be_last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
    if could_be_first and (channels_first or not could_be_last):
        return np.moveaxis(array, 0, 2)
    if could_be_last:
        return array
    raise ImageError(
        name, f"has the shape {list(array.shape)}; a picture has 1, 3 or 4 channels, first or last: [H, W, 3]"
    )


def _to_uint8(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise ImageError(name, f"has the type {array.dtype}; give uint8, uint16 or floats in 0..1")
    low, high = array.min().item(), array.max().item()  # NaN in any place makes both NaN
    if array.dtype.kind == "f":
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ImageError(name, "has values that are not numbers (NaN or infinity); repair the array")
        if low < 0 or high > 1:
            raise ImageError(
                name,
                f"has values from {low:.4g} to {high:.4g}; floats must be in 0..1, before any normalisation: "
                "divide by the largest value, or give uint8",
            )
        return np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ImageError(name, f"has values from {low} to {high}; integers must be in 0..255, or 0..65535 for 16 bits")
    if array.dtype == np.uint16 or high > 255:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is white, as 255 is; nearest value
    return array.astype(np.uint8)


def _damaged(name: str, error: Exception) -> ImageError:
    if isinstance(error, MemoryError):
        return ImageError(name, "does not fit into memory; make it smaller")
    return ImageError(name, f"is damaged or cut short ({_reason(error)}); copy or download it again")


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _one_line(text)[:120] or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:.4g}"


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.4g}"


class _Depth:
    """How many readers are inside `_pillow_limits_off`, in all threads."""

    lock = threading.Lock()
    count = 0
    saved_limit: int | None = None
    saved_warnings: warnings.catch_warnings | None = None


@contextmanager
def _pillow_limits_off() -> Iterator[None]:
    """Our own limits instead of Pillow's, whose two are global, warn first and cannot be raised per call.

    The first reader switches them off and the last one on again, so that threads do not undo each other.
    Pillow's remarks on odd but readable files go the same way.
    """
    with _Depth.lock:
        if _Depth.count == 0:
            _Depth.saved_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            _Depth.saved_warnings = warnings.catch_warnings()
            _Depth.saved_warnings.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _Depth.count += 1
    try:
        yield
    finally:
        with _Depth.lock:
            _Depth.count -= 1
            if _Depth.count == 0:
                Image.MAX_IMAGE_PIXELS = _Depth.saved_limit
                if _Depth.saved_warnings is not None:
                    _Depth.saved_warnings.__exit__(None, None, None)

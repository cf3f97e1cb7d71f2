"""Every kind of picture is read as the same upright, opaque RGB; every kind of bad one gives one clear line."""

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.images import Canvas, ImageError, ImageLimits, Photo, find_images, looks, read_image


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    """uint8 [H, W, 3], smooth, with no symmetry that would hide a flip."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x // (width - 1), 255 * y // (height - 1), (x + 2 * y) % 256], -1).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and carries hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------------- good pictures


@pytest.mark.parametrize("kind", ["path", "str", "bytes", "file", "pil", "array", "tensor", "photo"])
def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path, kind: str) -> None:
    rgb = gradient()
    path = saved(tmp_path / "a.png", Image.fromarray(rgb))
    given = {
        "path": lambda: path,
        "str": lambda: str(path),
        "bytes": path.read_bytes,
        "file": lambda: io.BytesIO(path.read_bytes()),
        "pil": lambda: Image.open(path),
        "array": lambda: rgb,
        "tensor": lambda: torch.from_numpy(rgb).permute(2, 0, 1),
        "photo": lambda: Photo(rgb, "a"),
    }[kind]()
    photo = read_image(given)
    assert photo.rgb.dtype == np.uint8
    assert np.array_equal(photo.rgb, rgb)
    assert photo.size_hw == (24, 32)
    assert photo.source == (path if kind in ("path", "str") else None)


def test_array_layouts_and_types() -> None:
    rgb = gradient()
    as_float = (rgb / 255).astype(np.float32)
    for array in (as_float, as_float.astype(np.float64), as_float.astype(np.float16), rgb.astype(np.int64)):
        assert np.abs(read_image(array).rgb.astype(int) - rgb).max() <= (1 if array.dtype == np.float16 else 0)
    assert np.array_equal(read_image(rgb.astype(np.uint16) * 257).rgb, rgb)
    assert np.array_equal(read_image(np.moveaxis(rgb, 2, 0)).rgb, rgb)
    assert np.array_equal(read_image(torch.from_numpy(as_float)).rgb, rgb)
    bfloat = read_image(torch.from_numpy(as_float).permute(2, 0, 1).to(torch.bfloat16)).rgb
    assert np.abs(bfloat.astype(int) - rgb).max() <= 2
    grey = rgb[..., 0]
    for array in (grey, grey[..., None], grey[None]):
        assert np.array_equal(read_image(array).rgb, np.stack([grey] * 3, -1))
    # Three rows and three columns fit both layouts: arrays are channels last, tensors channels first.
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(read_image(cube).rgb, cube)
    assert np.array_equal(read_image(torch.from_numpy(cube)).rgb, np.moveaxis(cube, 0, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    rgb = np.zeros((24, 40, 3), np.uint8)
    rgb[:12, :20, 0] = rgb[:12, 20:, 1] = rgb[12:, :20, 2] = 255  # red, green, blue, black
    upright = Image.fromarray(rgb)
    # What a camera held differently would have stored: the inverse of what the reader must do.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"a.{suffix}", image, exif=exif)
    read = read_image(path).rgb
    assert read.shape == rgb.shape
    assert np.abs(read[3:9, 3:15].astype(int) - rgb[3:9, 3:15]).max() < 48  # corners; JPEG blurs the borders
    assert np.abs(read[15:21, 25:37].astype(int) - rgb[15:21, 25:37]).max() < 48


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(gradient()), exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert read_image(path).size_hw == (24, 32)


def test_modes(tmp_path: Path) -> None:
    rgb = gradient()
    image = Image.fromarray(rgb)
    grey = np.array(image.convert("L"))
    for mode, suffix in (("L", "png"), ("L", "jpg"), ("1", "png"), ("P", "gif"), ("CMYK", "tif"), ("YCbCr", "jpg")):
        read = read_image(saved(tmp_path / f"{mode}.{suffix}", image.convert(mode))).rgb
        assert read.shape == rgb.shape
        if mode == "L":
            assert np.abs(read.astype(int) - grey[..., None]).max() <= (0 if suffix == "png" else 12)
        elif mode in ("CMYK", "YCbCr"):
            assert np.abs(read.astype(int) - rgb).mean() < 4
    cmyk_jpeg = read_image(saved(tmp_path / "cmyk.jpg", image.convert("CMYK"), quality=95)).rgb
    assert np.abs(cmyk_jpeg.astype(int) - rgb).mean() < 6


def test_printing_colours_follow_their_profile(tmp_path: Path) -> None:
    lab = Image.new("LAB", (8, 8), (255, 128, 128))  # the white of the colour space; Pillow stores a and b offset
    read = read_image(saved(tmp_path / "lab.tif", lab)).rgb
    assert read.shape == (8, 8, 3)
    useless = saved(tmp_path / "a.tif", Image.fromarray(gradient()).convert("CMYK"), icc_profile=b"not a profile")
    assert np.abs(read_image(useless).rgb.astype(int) - gradient()).mean() < 4


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((10, 12, 4), np.uint8)
    rgba[:, 6:] = (255, 0, 0, 255)
    rgba[:5, :6] = (0, 0, 0, 128)
    palette = Image.new("P", (12, 10), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.paste(1, (6, 0, 12, 10))
    cases = [
        read_image(saved(tmp_path / "a.png", Image.fromarray(rgba))),
        read_image(saved(tmp_path / "a.webp", Image.fromarray(rgba), lossless=True)),
        read_image(rgba),
        read_image(torch.from_numpy(rgba).permute(2, 0, 1)),
        read_image(saved(tmp_path / "p.png", palette, transparency=0)),
        read_image(saved(tmp_path / "bytes.png", palette, transparency=b"\x00\xff")),
    ]
    for photo in cases:
        assert tuple(photo.rgb[9, 0]) == (255, 255, 255)
        assert tuple(photo.rgb[9, 11]) == (255, 0, 0)
    assert cases[0].rgb[0, 0, 0] == 127
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert tuple(read_image(saved(tmp_path / "la.png", grey_alpha)).rgb[9, 0]) == (255, 255, 255)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    expected = np.array([0, 0, 1, 1, 128, 254, 255, 255])
    for suffix in ("png", "tif"):
        path = saved(tmp_path / f"a.{suffix}", Image.fromarray(values))
        assert np.array_equal(read_image(path).rgb[0, :, 0], expected), suffix
    assert np.array_equal(read_image(values).rgb[0, :, 0], expected)
    assert np.array_equal(read_image(Image.fromarray(values.astype(np.int32))).rgb[0, :, 0], expected)
    floats = saved(tmp_path / "f.tif", Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))
    assert np.array_equal(read_image(floats).rgb[0, :, 1], [0, 128, 255])


def test_a_second_picture_inside_a_jpeg_is_no_animation(tmp_path: Path) -> None:
    image = Image.fromarray(gradient())
    path = saved(tmp_path / "phone.jpg", image, format="MPO", save_all=True, append_images=[image])
    with Image.open(path) as check:
        assert check.n_frames == 2
    assert read_image(path).size_hw == (24, 32)


def test_limits_can_be_raised(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(gradient()))
    with pytest.raises(ImageError, match="raise max_pixels"):
        read_image(path, ImageLimits(max_pixels=767))
    assert read_image(path, ImageLimits(max_pixels=768)).size_hw == (24, 32)
    size = path.stat().st_size
    with pytest.raises(ImageError, match="raise max_bytes"):
        read_image(path, ImageLimits(max_bytes=size - 1))
    assert read_image(path, ImageLimits(max_bytes=size)).size_hw == (24, 32)


def test_the_limit_of_the_image_library_is_left_as_it_was(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    path = saved(tmp_path / "a.png", Image.fromarray(gradient(200, 200)))
    Image.MAX_IMAGE_PIXELS = 10  # far below: its error would come at twenty pixels
    try:
        threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_image(path).size_hw == (200, 200)
        assert Image.MAX_IMAGE_PIXELS == 10
    finally:
        Image.MAX_IMAGE_PIXELS = before


# ----------------------------------------------------------------------------------------------------- bad pictures


def animation(path: Path, **options: object) -> Path:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 100, 200)]
    return saved(path, frames[0], save_all=True, append_images=frames[1:], **options)


def text_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def half_of(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return path


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))


def nan_array() -> np.ndarray:
    array = np.zeros((4, 4, 3), np.float32)
    array[2, 1, 0] = np.nan
    return array


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda d: d / "no.jpg", "there is no such file"),
    "empty path": (lambda d: "", "is an empty path"),
    "web address": (lambda d: "https://example.org/a.jpg", "is a web address; download"),
    "folder": (lambda d: d, "is a folder"),
    "null in path": (lambda d: "a\0b.jpg", "cannot be opened"),
    "long name": (lambda d: d / ("a" * 400 + ".jpg"), "cannot be opened"),
    "device": (lambda d: "/dev/zero", "is not a regular file"),
    "empty file": (lambda d: text_file(d / "a.jpg", b""), "is empty"),
    "text file": (lambda d: text_file(d / "a.jpg", b"this is not\na picture"), "is not an image"),
    "video": (lambda d: text_file(d / "a.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 99), "is not an image"),
    "program": (
        lambda d: text_file(d / "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "is not an image",
    ),
    "truncated jpeg": (lambda d: half_of(saved(d / "a.jpg", noise())), "is damaged or cut short"),
    "truncated png": (lambda d: half_of(saved(d / "a.png", noise())), "is damaged or cut short"),
    "truncated webp": (lambda d: half_of(saved(d / "a.webp", noise())), "; c"),
    "truncated tiff": (lambda d: half_of(saved(d / "a.tif", noise(), compression="tiff_lzw")), "; c"),
    "header only": (lambda d: text_file(d / "a.png", png_header(64, 64)), "is damaged or cut short"),
    "huge": (lambda d: text_file(d / "a.png", png_header(60_000, 50_000)), "3000 megapixels, more than the limit"),
    "animated gif": (lambda d: animation(d / "a.gif"), "has 3 frames"),
    "animated png": (lambda d: animation(d / "a.png"), "has 3 frames"),
    "animated webp": (lambda d: animation(d / "a.webp"), "has 3 frames"),
    "pages": (lambda d: animation(d / "a.tif"), "has 3 frames"),
    "zero-sized file": (lambda d: text_file(d / "a.ppm", b"P6\n0 5\n255\n"), "; "),
    "zero-sized array": (lambda d: np.zeros((0, 5, 3), np.uint8), "has no pixels"),
    "zero-sized pil": (lambda d: Image.new("RGB", (0, 7)), "has no pixels"),
    "huge array": (lambda d: np.broadcast_to(np.uint8(0), (20_000, 20_000, 3)), "more than the limit"),
    "one row": (lambda d: np.zeros(9, np.uint8), "several pictures go in a list"),
    "batch": (lambda d: torch.zeros(2, 3, 8, 8), "several pictures go in a list"),
    "two channels": (lambda d: np.zeros((8, 8, 2), np.uint8), "has 1, 3 or 4 channels"),
    "floats to 255": (lambda d: np.full((4, 4, 3), 200.0), "floats must be in 0..1"),
    "normalised": (lambda d: torch.randn(3, 8, 8).clamp(-1, 1) - 0.01, "before any normalisation"),
    "nan": (lambda d: nan_array(), "NaN"),
    "negative": (lambda d: np.full((4, 4), -1), "integers must be in 0..255"),
    "too large": (lambda d: np.full((4, 4), 70_000), "integers must be in 0..255"),
    "words": (lambda d: np.full((4, 4), "a"), "has the type"),
    "complex": (lambda d: np.zeros((4, 4), complex), "has the type"),
    "open text": (lambda d: io.StringIO("a"), "mode 'rb'"),
    "number": (lambda d: 7, "is not a picture"),
    "nothing": (lambda d: None, "is not a picture"),
    "no bytes": (lambda d: b"", "is empty"),
    "wrong bytes": (lambda d: b"hello", "is not an image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_give_one_clear_line(tmp_path: Path, kind: str) -> None:
    make, expected = BAD[kind]
    given = make(tmp_path)
    with pytest.raises(ImageError) as caught:
        read_image(given)
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert "; " in message  # what is wrong; what to do
    assert len(message) < 900
    if isinstance(given, Path | str) and given:
        assert message.startswith(str(given))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read every file")
def test_forbidden_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", noise())
    path.chmod(0)
    with pytest.raises(ImageError, match="permission"):
        read_image(path)


def test_huge_pictures_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", noise())
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="more than the limit"):
        read_image(path, ImageLimits(max_pixels=100))


# ------------------------------------------------------------------------------------------------ folders and canvas


def test_find_images(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", "sub/c.webp", ".hidden/d.png", ".e.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)] == ["a.png", "b.JPG", "sub/c.webp"]


def test_canvas_pads_below_and_right() -> None:
    canvas = Canvas(short_edge=40, long_edge=66, multiple=32)
    images = canvas([read_image(gradient(24, 32)), read_image(gradient(60, 20))])
    assert images.pixels.dtype == torch.float32
    assert images.sizes_hw == ((40, 53), (66, 22))
    assert images.original_hw == ((24, 32), (60, 20))
    assert images.canvas_hw == (96, 64)
    assert images.pixels[0, :, :40, :53].max() > 200
    assert images.pixels[0, :, 40:].abs().max() == 0
    assert images.pixels[0, :, :, 53:].abs().max() == 0
    assert images.pixels[1, :, :, 22:].abs().max() == 0


def test_canvas_resizes_with_antialiasing() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    resized = Canvas(short_edge=16, long_edge=16).resize(read_image(stripes))
    assert resized.shape == (16, 16, 3)
    assert np.abs(resized[:, 2:-2].astype(int) - 127).max() < 12  # plain bilinear would keep stripes


def test_canvas_keeps_what_fits_and_survives_hairs() -> None:
    rgb = gradient(40, 60)
    assert np.array_equal(Canvas(short_edge=40, long_edge=99).resize(read_image(rgb)), rgb)
    hair = Canvas(short_edge=80, long_edge=133)([read_image(np.zeros((1, 5000, 3), np.uint8))])
    assert hair.sizes_hw == ((1, 133),)
    with pytest.raises(ValueError, match="at least one"):
        Canvas()([])


def test_canvas_may_resize_twice() -> None:
    photos = [read_image(gradient(24, 32)), read_image(gradient(60, 20))]
    once = Canvas(short_edge=40, long_edge=300, multiple=32)
    twice = Canvas(short_edge=40, long_edge=300, multiple=32, second_short_edge=64)
    images = twice(photos)
    assert images.sizes_hw == ((64, 84), (192, 64)) and images.canvas_hw == (192, 96)
    assert images.unscaled is not None and torch.equal(images.unscaled.pixels, once(photos).pixels)
    plain = torch.nn.functional.interpolate(once(photos[:1]).pixels[..., :40, :53], size=(64, 84), mode="bilinear")
    torch.testing.assert_close(images.pixels[:1, :, :64, :84], plain)
    assert Canvas(40, 300, 32, second_short_edge=40)(photos).unscaled is None  # it has the size already


def test_looks_at_several_sizes_and_in_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexiseg.images.LOOKS", (32, 64))
    photo = read_image(gradient(24, 40))
    canvas = Canvas(short_edge=48, long_edge=300)
    found = list(looks(canvas, photo))
    assert [mirrored for _, mirrored in found] == [False, True, False, True]
    assert [images.sizes_hw for images, _ in found] == [((32, 53),)] * 2 + [((64, 107),)] * 2
    assert all(images.original_hw == ((24, 40),) for images, _ in found)
    plain, mirror = found[0][0].pixels[..., :32, :53], found[1][0].pixels[..., :32, :53]
    assert torch.equal(mirror, plain.flip(-1)) and not torch.equal(mirror, plain)
    again = Canvas(short_edge=32, long_edge=4000).resize(read_image(canvas.resize(photo)))
    assert torch.equal(plain[0], torch.from_numpy(np.array(again)).permute(2, 0, 1).float())

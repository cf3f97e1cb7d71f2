"""Masks that come with a photo: every kind of file and array, and every mistake in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools

from lexiseg import mask_input
from lexiseg.formats.run_lengths import decode_rle
from lexiseg.images import ImageError, ImageLimits, Photo
from lexiseg.mask_input import PhotoMasks, find_masks, read_masks

HEIGHT, WIDTH = 12, 17
PHOTO = Photo(np.zeros((HEIGHT, WIDTH, 3), np.uint8), "photos/a.jpg")


def label_map(dtype: Any = np.uint8) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    labels[2:5, 3:9] = 7
    labels[6:, 12:] = 200
    labels[8:10, 1] = 12
    return labels


def stack() -> np.ndarray:
    return np.stack([label_map() == value for value in (7, 12, 200)])


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def check(found: PhotoMasks, ids: tuple[int, ...]) -> None:
    assert found.masks.dtype == np.bool_ and np.array_equal(found.masks, stack())
    assert found.ids == ids


def test_arrays_and_tensors() -> None:
    masks, labels = stack(), label_map(np.int64)
    for given in (masks, torch.from_numpy(masks), list(masks), [torch.from_numpy(m) for m in masks]):
        check(read_masks(given, PHOTO), (1, 2, 3))
    for given in (masks.astype(np.uint8), masks.astype(np.int64) * 255, list(masks.astype(np.uint8))):
        check(read_masks(given, PHOTO), (1, 2, 3))
    for given in (labels, torch.from_numpy(labels), labels.astype(np.uint16)):
        check(read_masks(given, PHOTO), (7, 12, 200))
    assert np.array_equal(read_masks(masks[0], PHOTO).masks, masks[:1])  # one bool mask is no label map
    overlapping = np.ones((2, HEIGHT, WIDTH), bool)
    assert read_masks(overlapping, PHOTO).masks.all()
    again = read_masks(labels, PHOTO)
    assert read_masks(again, PHOTO) is again


def test_files(tmp_path: Path) -> None:
    def saved(name: str, array: np.ndarray) -> Path:
        path = tmp_path / name
        if name.endswith(".png"):
            Image.fromarray(array).save(path)
        elif name.endswith(".npy"):
            np.save(path, array)
        else:
            np.savez_compressed(path, **({"masks": array, "other": array} if "two" in name else {"x": array}))
        return path

    for path in (
        saved("8.png", label_map()),
        saved("16.PNG".lower(), label_map(np.uint16)),
        saved("labels.npy", label_map(np.int32)),
        saved("labels.npz", label_map()),
    ):
        check(read_masks(path, PHOTO), (7, 12, 200))
        check(read_masks(str(path), PHOTO), (7, 12, 200))
    large = saved("large.png", label_map(np.uint16) * np.uint16(300))
    check(read_masks(large, PHOTO), (2100, 3600, 60000))
    for path in (saved("stack.npy", stack()), saved("stack.npz", stack()), saved("two.npz", stack())):
        check(read_masks(path, PHOTO), (1, 2, 3))
    assert np.array_equal(read_masks(saved("one.png", stack()[0]), PHOTO).masks, stack()[:1])


def test_a_palette_picture_gives_its_indices(tmp_path: Path) -> None:
    picture = Image.fromarray(label_map()).convert("P")
    picture.putpalette([200, 10, 30] * 256)
    picture.save(tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as saved:
        assert saved.mode == "P"
    check(read_masks(tmp_path / "p.png", PHOTO), (7, 12, 200))


def test_run_lengths_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    runs = [rle(mask) for mask in stack()]
    plain = {"size": [2, 3], "counts": [1, 3, 2]}
    for content, ids in (
        (runs, (1, 2, 3)),
        ([{"segmentation": run, "id": 5 - i} for i, run in enumerate(runs)], (5, 4, 3)),
        ([{"segmentation": run, "id": 5} for run in runs], (1, 2, 3)),  # ids that name nothing
        ({"annotations": [{"segmentation": run} for run in runs], "images": [{"id": 4}]}, (1, 2, 3)),
    ):
        path.write_text(json.dumps(content))
        check(read_masks(path, PHOTO), ids)
    path.write_text(json.dumps(plain))
    found = read_masks(path, Photo(np.zeros((2, 3, 3), np.uint8), "b"))
    assert found.masks.astype(int).tolist() == [[[0, 1, 0], [1, 1, 0]]]


def test_a_data_set_of_several_photos_gives_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    images = [{"id": 1, "file_name": "b.jpg"}, {"id": 9, "file_name": "somewhere/a.jpg"}]
    annotations = [{"id": 30 + i, "image_id": 9, "segmentation": rle(mask)} for i, mask in enumerate(stack())]
    other = {"id": 1, "image_id": 1, "segmentation": {"size": [1, 1], "counts": [1]}}
    path.write_text(json.dumps({"images": images, "annotations": [other, *annotations]}))
    check(read_masks(path, PHOTO), (30, 31, 32))
    with pytest.raises(ImageError, match="is about 2 photos, 0 of them called c.jpg"):
        read_masks(path, Photo(PHOTO.rgb, "c.jpg"))
    path.write_text(json.dumps({"images": images, "annotations": [other]}))
    with pytest.raises(ImageError, match="holds no mask"):
        read_masks(path, PHOTO)


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    chance = np.random.default_rng(seed)
    height, width = (int(side) for side in chance.integers(1, 70, 2))
    mask = chance.random((height, width)) < chance.random()
    if seed % 2:
        mask = np.kron(mask[: height // 5 + 1, : width // 5 + 1], np.ones((5, 5), bool))[:height, :width]
    assert np.array_equal(decode_rle(rle(mask)["counts"], mask.shape), mask)


@pytest.mark.parametrize(
    "counts",
    ["", "P", "~~", "0" * 50, "1" * 9, "é", "o" * 50 + "1", [3], [-1, 10], [10**30], [9.0], [True, 8], None, 9],
)
def test_run_lengths_that_do_not_fill_their_size_are_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="^its counts"):
        decode_rle(counts, (3, 3))


def test_large_masks_are_read_at_once() -> None:
    mask = np.zeros((3000, 4000), bool)
    mask[1000:2000, ::2] = True
    assert np.array_equal(decode_rle(rle(mask)["counts"], mask.shape), mask)


def write(path: Path, content: object) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, Image.Image):
        content.save(path)
    else:
        path.write_text(json.dumps(content))
    return path


WRONG_FILES: dict[str, tuple[str, object, str]] = {
    "missing": ("no.png", None, "there is no such file"),
    "empty": ("a.png", b"", "is empty"),
    "no png": ("a.png", b"what", "is not a PNG picture"),
    "colours": ("a.png", Image.new("RGB", (WIDTH, HEIGHT)), r"has colours \(mode RGB\)"),
    "other kind": ("a.tif", b"II*", "is of no kind that holds masks: .png, .npy, .npz, .json, .xml, .zip"),
    "blank": ("a.png", Image.new("L", (WIDTH, HEIGHT)), "every pixel is 0"),
    "no array": ("a.npy", b"what", "is damaged, or not what its name says"),
    "pickle": ("a.npy", np.array([{"a": 1}]), "is damaged, or not what its name says .*Python objects"),
    "no archive": ("a.npz", b"what", "is damaged"),
    "no json": ("a.json", b"{", "not valid JSON"),
    "deep json": ("a.json", b"[" * 100_000, "not valid JSON"),
    "no list": ("a.json", 7, "holds no mask"),
    "no entries": ("a.json", [], "holds no mask"),
    "two corners": ("a.json", [{"segmentation": [[1, 2, 3, 4]]}], "entry 1: its polygon needs 3 to 100000 points"),
    "odd corners": (
        "a.json",
        [{"segmentation": [[1, 2, 3]]}],
        "entry 1: its polygons are no lists of x and y by turns",
    ),
    "no numbers": ("a.json", [{"segmentation": [[1, 2, 3, 4, "a", 6]]}], "entry 1: its polygon needs two numbers"),
    "far away": ("a.json", [{"segmentation": [[1, 2, 3, 4, 5e8, 6]]}], "entry 1: its polygon lies far outside"),
    "no run lengths": ("a.json", [rle(stack()[0]), {"id": 1}], "entry 2: is no mask"),
    "task without": ("a.json", [{"data": {"image": "a.jpg"}, "annotations": []}], "1 tasks, none of them annotated"),
    "no xml": ("a.xml", b"<annotations>", "not valid XML"),
    "no zip": ("a.zip", b"PK", "no zip that can be read"),
    "short": ("a.json", [{"size": [HEIGHT, WIDTH], "counts": [5]}], "entry 1: its counts do not add up to the 17 x 12"),
    "odd size": ("a.json", [{"size": [HEIGHT], "counts": [5]}], "entry 1: its size is"),
    "other size": (
        "a.json",
        [{"size": [2, 3], "counts": [6]}],
        "entry 1: is of a photo of 3 x 2 pixels, the upright photo has 17 x 12",
    ),
    "annotations": ("a.json", {"annotations": 5}, "holds no mask"),
    "images": ("a.json", {"annotations": [], "images": [1, 2]}, "is damaged"),
    "floats": ("a.npy", np.zeros((HEIGHT, WIDTH)), "has the type float64; masks are bool"),
    "negative": ("a.npy", np.full((HEIGHT, WIDTH), -1), r"has negative numbers \(-1\)"),
    "four axes": ("a.npy", np.zeros((1, 1, HEIGHT, WIDTH), bool), r"has the shape \[1, 1, 12, 17\]; give masks"),
    "nothing": ("a.npy", np.zeros((0, HEIGHT, WIDTH), bool), "holds no mask"),
    "many values": ("a.npy", label_map()[None], "more than two values"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_wrong_files_are_told_in_one_line(kind: str, tmp_path: Path) -> None:
    name, content, expected = WRONG_FILES[kind]
    path = tmp_path / name
    if content is not None:
        write(path, content)
    with pytest.raises(ImageError, match=expected) as caught:
        read_masks(path, PHOTO)
    assert str(caught.value).startswith(f"photos/a.jpg: its masks cannot be used: {path}")
    assert "\n" not in str(caught.value)


def test_other_wrong_masks(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=stack(), b=stack())
    cases: list[tuple[Any, str]] = [
        (stack()[:, 1:], "its masks have 17 x 11 pixels, the upright photo 17 x 12; give masks of the photo's size"),
        (label_map().T, "its masks have 12 x 17 pixels, the upright photo 17 x 12"),
        ([stack()[0], stack()[1][1:]], "its masks differ in size"),
        ([], "list of 0: holds no mask"),
        ([stack()], r"entry 1 is no mask; each is an array or a tensor \[H, W\]"),
        (["a.png"], "entry 1 is no mask"),
        (7, "int object: is no masks"),
        (b"png", "bytes object: is no masks"),
        (tmp_path, "is a folder; name the file in it"),
        (tmp_path / "two.npz", "holds 2 arrays; give one, or call it 'masks'"),
    ]
    for given, expected in cases:
        with pytest.raises(ImageError, match=expected):
            read_masks(given, PHOTO)


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", stack())
    np.savez_compressed(tmp_path / "a.npz", stack())
    Image.fromarray(label_map()).save(tmp_path / "a.png")
    for name, limits in (("a.npy", ImageLimits(max_bytes=50)), ("a.png", ImageLimits(max_pixels=50))):
        with pytest.raises(ImageError, match="limit of"):
            read_masks(tmp_path / name, PHOTO, limits)
    monkeypatch.setattr(mask_input, "MAX_MASKS", 2)
    for name in ("a.npy", "a.npz", "a.png"):
        with pytest.raises(ImageError, match="holds 3 masks, more than the limit of 2"):
            read_masks(tmp_path / name, PHOTO)
    monkeypatch.setattr(mask_input, "MAX_MASK_BYTES", 100)
    with pytest.raises(ImageError, match="unpacks to"):
        read_masks(tmp_path / "a.npz", PHOTO)
    with pytest.raises(ImageError, match="holds 1 masks of 17 x 12 pixels, more than the limit"):
        read_masks(stack()[:1], PHOTO)


def test_masks_are_found_by_the_name_of_the_photo(tmp_path: Path) -> None:
    assert find_masks(tmp_path, "a.b") == tmp_path / "a.b.png"
    for suffix in (".json", ".npy", ".png"):
        (tmp_path / f"a.b{suffix}").touch()
        assert find_masks(tmp_path, "a.b") == tmp_path / f"a.b{suffix}"

"""Captions with their photos, in three forms."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.captions import CaptionError, captioned_photos
from lexiseg.images import ImageError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a.png")):
        Image.fromarray(np.full((4, 6, 3), 10 * number, np.uint8)).save(folder / name)
    return folder


def test_a_table(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.tsv"
    table.write_text("b.png\ta dog\na.png\ta cat\n\nb.png\tthe dog sits\n")
    found = captioned_photos(table, images)
    assert found.captions == {"b.png": ("a dog", "the dog sits"), "a.png": ("a cat",)}
    assert found.ids == ("b.png", "a.png") and found.rgb("a.png").tolist() == np.full((4, 6, 3), 10).tolist()
    table.write_text("b.png a dog\n")
    with pytest.raises(CaptionError, match="line 1 has no tab"):
        captioned_photos(table, images)


def test_coco(images: Path, tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "b.png"}, {"id": 2, "file_name": "a.png"}],
        "annotations": [{"image_id": 7, "caption": "one"}, {"image_id": 7, "caption": "two"}],
    }
    path = tmp_path / "captions_val.json"
    path.write_text(json.dumps(content))
    found = captioned_photos(path, images)
    assert found.name == "captions_val" and found.captions == {"b.png": ("one", "two")}  # without a caption: left out
    path.write_text(json.dumps({"annotations": []}))
    with pytest.raises(CaptionError, match="no COCO captions file"):
        captioned_photos(path, images)


def test_a_package(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(folder / "images" / "x.jpg")
    description = {"classes": [], "splits": {"train": ["x", "y"], "val": []}, "captions": {"x": ["a dog"], "y": []}}
    (folder / "dataset.json").write_text(json.dumps(description))
    found = captioned_photos(folder)
    assert found.captions == {"x": ("a dog",)} and found.rgb("x").shape == (3, 5, 3)
    (folder / "images" / "x.jpg").unlink()
    with pytest.raises(ImageError, match="x: is not in"):
        found.rgb("x")
    del description["captions"]
    (folder / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(CaptionError, match="no captions"):
        captioned_photos(folder)


def test_names_that_leave_the_folder_are_refused(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.tsv"
    for name in ("../secret.png", "/etc/passwd"):
        table.write_text(f"{name}\ta dog\n")
        with pytest.raises(CaptionError, match="leads out of the folder"):
            captioned_photos(table, images)


def test_photos_must_be_somewhere(tmp_path: Path) -> None:
    (tmp_path / "captions.tsv").write_text("a\tb\n")
    with pytest.raises(CaptionError, match="folder of their photos"):
        captioned_photos(tmp_path / "captions.tsv")
    with pytest.raises(CaptionError, match="no such file"):
        captioned_photos(tmp_path / "other.tsv", tmp_path)

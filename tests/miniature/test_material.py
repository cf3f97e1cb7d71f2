"""What is hidden is nowhere; what is not hidden stays as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.packages import LabelledPhotos
from lexiseg.miniature import material
from lexiseg.train.lexicon import load_lexicon


def package(folder: Path, name: str, classes: list[str], **more: Any) -> Path:
    """Two photos of 4 x 6 pixels: row r of the labels is class r; regions are the rows, from 1."""
    root = folder / name
    for part in ("images", "labels", "segments"):
        (root / part).mkdir(parents=True)
    labels = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 6, 1)
    labels[:, 5] = 255
    regions = {}
    for id in ("a", "b"):
        Image.fromarray(np.full((4, 6, 3), 90, np.uint8)).save(root / "images" / f"{id}.jpg")
        Image.fromarray(labels).save(root / "labels" / f"{id}.png")
        Image.fromarray(np.where(labels == 255, 0, labels + 1).astype(np.uint8)).save(root / "segments" / f"{id}.png")
        regions[id] = [[row + 1, row, 0] for row in range(4)]
    (root / "segments.json").write_text(json.dumps(regions))
    description = {"name": name, "classes": classes, "ignore": 255, "splits": {"train": ["a", "b"]}, "segments": "yes"}
    (root / "dataset.json").write_text(json.dumps(description | more))
    return root


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """All five packages without what is hidden, and the one that joins them."""
    source, out = tmp_path / "source", tmp_path / "out"
    package(source, "camvid", ["sky", "building", "car", "road"])
    package(source, "msrc", ["building", "sheep", "aeroplane", "boat"])
    package(source, "coco_panoptic", ["person", "cat", "car", "grass"], isthing=[1, 1, 1, 0])
    package(source, "coco_things", ["person", "bicycle", "car", "grass"], isthing=[1, 1, 1, 0])
    captions = {"a": ["Two Kittens on a mat.", "a cat"], "b": ["A man on a bike.", "A man in a street."]}
    package(source, "coco_captions", ["person", "dog", "car", "cow"], captions=captions)
    material.hide(source, out)
    material.join(out, load_lexicon())
    return out


def test_classes_pixels_and_regions(hidden: Path) -> None:
    found = LabelledPhotos(hidden / "msrc.zip")
    assert found.classes == ("building", "aeroplane")
    photo = found.photo("a")
    assert photo.labels[:, 0].tolist() == [0, 255, 1, 255]
    assert photo.regions[:, 0].tolist() == [1, 0, 3, 0] and not photo.regions[:, 5].any()
    assert found.region_classes["a"] == [[1, 0, 0], [3, 1, 0]]
    assert (photo.image == LabelledPhotos(hidden.parent / "source" / "msrc").photo("a").image).all()
    assert LabelledPhotos(hidden / "coco_panoptic.zip").is_thing == (True, True, False)
    assert LabelledPhotos(hidden / "camvid.zip").photo("b").labels[:, 0].tolist() == [0, 1, 2, 3]


def test_captions_that_name_them_and_photos_left_without(hidden: Path) -> None:
    found = LabelledPhotos(hidden / "coco_captions.zip")
    assert found.ids("train") == ["b"]
    assert json.loads(found.read("dataset.json"))["captions"] == {"b": ["A man in a street."]}


def test_classes_that_mean_the_same_are_one(hidden: Path) -> None:
    found = LabelledPhotos(hidden / "together.zip")
    assert found.classes == ("sky", "building", "car", "road", "airplane", "person", "grass")
    # Every third photo of camvid: of two, the first.
    assert found.ids("train") == ["camvid_a", "msrc_a", "msrc_b", "coco_panoptic_a", "coco_panoptic_b"]
    assert found.photo("msrc_b").labels[:, 0].tolist() == [1, 255, 4, 255]
    assert found.photo("coco_panoptic_a").labels[:, 0].tolist() == [5, 255, 2, 6]


def test_what_is_there_stays(hidden: Path) -> None:
    before = (hidden / "together.zip").stat().st_mtime_ns
    material.hide(hidden.parent / "source", hidden)
    material.join(hidden, load_lexicon())
    assert (hidden / "together.zip").stat().st_mtime_ns == before


def test_a_package_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"camvid\.zip"):
        material.hide(tmp_path, tmp_path / "out")

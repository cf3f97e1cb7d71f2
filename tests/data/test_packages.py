"""The folder-or-zip format of labelled photos."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.packages import LabelledPhotos


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def jpg(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def members() -> dict[str, bytes]:
    labels = np.array([[0, 0, 1], [0, 1, 255]], np.uint8)
    description = {
        "name": "toy",
        "classes": ["sky", "road"],
        "ignore": 255,
        "isthing": [0, 0],
        "splits": {"train": ["a"], "test": []},
        "segments": "yes",
    }
    return {
        "dataset.json": json.dumps(description).encode(),
        "images/a.jpg": jpg(np.full((2, 3, 3), 200, np.uint8)),
        "labels/a.png": png(labels),
        "segments/a.png": png((labels == 1).astype(np.uint8)),
        "segments.json": json.dumps({"a": [[1, 1, 0]]}).encode(),
    }


def write(members: dict[str, bytes], folder: Path) -> Path:
    for name, content in members.items():
        (folder / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "toy" / name).write_bytes(content)
    return folder / "toy"


def pack(members: dict[str, bytes], folder: Path) -> Path:
    with zipfile.ZipFile(folder / "toy.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(f"toy/{name}", content)
    return folder / "toy.zip"


@pytest.mark.parametrize("store", [write, pack])
def test_folder_and_zip_read_the_same(store, members: dict[str, bytes], tmp_path: Path) -> None:
    package = LabelledPhotos(store(members, tmp_path))
    assert package.name == "toy"
    assert package.classes == ("sky", "road")
    assert package.is_thing == (False, False)
    assert package.ids("train") == ["a"]
    photo = package.photo("a")
    assert photo.image.shape == (2, 3, 3)
    assert photo.labels.tolist() == [[0, 0, 1], [0, 1, 255]]
    assert photo.regions.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert package.region_classes == {"a": [[1, 1, 0]]}


def test_regions_are_optional(members: dict[str, bytes], tmp_path: Path) -> None:
    description = json.loads(members["dataset.json"])
    del description["segments"], members["segments/a.png"], members["segments.json"]
    members["dataset.json"] = json.dumps(description).encode()
    package = LabelledPhotos(write(members, tmp_path))
    assert package.photo("a").regions.max() == 0
    assert package.region_classes == {}


def test_what_is_wrong_is_said(members: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        LabelledPhotos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no dataset\.json"):
        LabelledPhotos(tmp_path / "empty")
    members["labels/a.png"] = png(np.zeros((3, 3), np.uint8))
    package = LabelledPhotos(write(members, tmp_path))
    with pytest.raises(ValueError, match="differ in size"):
        package.photo("a")
    with pytest.raises(ValueError, match="no split 'val'"):
        package.ids("val")


def test_what_a_prepared_benchmark_says_of_itself(members: dict[str, bytes], tmp_path: Path) -> None:
    description = json.loads(members["dataset.json"])
    description |= {
        "title": "A toy",
        "ignore": 65535,
        "image_suffix": ".png",
        "words": [["heavens", "sky"], ["road"], ["street"]],
        "word_class": [0, 1, 1],
        "remarks": ["1 photo is missing"],
    }
    members["dataset.json"] = json.dumps(description).encode()
    members["images/a.png"] = png(np.full((2, 3, 3), 200, np.uint8))
    members["labels/a.png"] = png(np.array([[0, 0, 700], [0, 1, 65535]], np.uint16))
    members["instances.json"] = json.dumps({"a": [{"class": 1, "area": 2.0, "iscrowd": 0, "rle": {}}]}).encode()
    package = LabelledPhotos(write(members, tmp_path))
    assert package.photo("a").labels.tolist() == [[0, 0, 700], [0, 1, 65535]]
    assert (package.title, package.words[0], package.word_class) == ("A toy", ("heavens", "sky"), (0, 1, 1))
    assert package.measures == ("miou", "pq", "ap")
    assert package.instances["a"][0]["class"] == 1
    description["word_class"] = [0, 1, 2]
    members["dataset.json"] = json.dumps(description).encode()
    with pytest.raises(ValueError, match="words that do not fit its classes"):
        LabelledPhotos(write(members, tmp_path))


def test_a_plain_package_asks_for_its_classes(members: dict[str, bytes], tmp_path: Path) -> None:
    package = LabelledPhotos(write(members, tmp_path))
    assert (package.words, package.word_class, package.instances) == ((("sky",), ("road",)), (0, 1), None)
    del members["segments.json"]
    (tmp_path / "toy" / "segments.json").unlink()
    assert LabelledPhotos(write(members, tmp_path)).measures == ("miou",)

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.coco_panoptic import CocoPanoptic


def write(folder: Path, size_hw: tuple[int, int] = (2, 3)) -> Path:
    ids = np.array([[7, 7, 70000], [0, 300, 70000]])
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "one.png")
    Image.fromarray(np.full((*size_hw, 3), 9, np.uint8)).save(folder / "one.jpg")
    segments = [
        {"id": 7, "category_id": 200, "iscrowd": 0},
        {"id": 300, "category_id": 3, "iscrowd": 1},
        {"id": 70000, "category_id": 3, "iscrowd": 0},
    ]
    document = {
        "images": [{"id": 5, "file_name": "one.jpg"}],
        "annotations": [{"image_id": 5, "file_name": "one.png", "segments_info": segments}],
        "categories": [{"id": 200, "name": "sky", "isthing": 0}, {"id": 3, "name": "car", "isthing": 1}],
    }
    path = folder / "panoptic.json"
    path.write_text(json.dumps(document))
    return path


def test_reads_photos_and_segments(tmp_path: Path) -> None:
    photos = CocoPanoptic(write(tmp_path), tmp_path, tmp_path)
    assert len(photos) == 1
    assert photos.classes == ("car", "sky")  # by category id
    assert photos.is_thing == (True, False)
    photo = photos[0]
    assert photo.image.shape == (2, 3, 3)
    assert photo.ids.tolist() == [[7, 7, 70000], [0, 300, 70000]]
    assert photo.classes == {7: 1, 70000: 0}  # without the crowd


def test_photo_and_segments_of_different_sizes(tmp_path: Path) -> None:
    photos = CocoPanoptic(write(tmp_path, size_hw=(3, 3)), tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"one\.png: photo and segments differ in size"):
        photos[0]


def test_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a COCO panoptic annotation file"):
        CocoPanoptic(path, tmp_path, tmp_path)

"""COCO's panoptic form: ids of three bytes, there and back; given as masks and read for training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.user_masks import look_through, open_mask_data
from lexiseg.formats.coco_panoptic import ids_picture, segment_ids, write_coco_panoptic
from lexiseg.images import ImageError, Photo
from lexiseg.mask_input import read_masks
from tests.formats.some_photos import RESULTS, WORDS, instances, nothing, panoptic, semantic


def test_ids_of_three_bytes() -> None:
    ids = np.array([[0, 1, 255], [256, 65536, 2**24 - 1]], np.int32)
    assert np.array_equal(segment_ids(np.array(ids_picture(ids))), ids)


@pytest.mark.parametrize("make", [semantic, panoptic])
def test_there_and_back(make: object, tmp_path: Path) -> None:
    """What is written for one photo is read again as the data of a training, and as its masks."""
    result = make()
    write_coco_panoptic(tmp_path, [result.record()], WORDS)
    photo = tmp_path / "images" / result.photo
    photo.parent.mkdir(parents=True)
    Image.fromarray(result.rgb).save(photo, format="PNG")
    data = open_mask_data(tmp_path / "panoptic.json")
    assert data.vocabulary.names == WORDS.names
    assert [entry.is_thing for entry in data.vocabulary.classes] == [False, True, False]
    read = data.photo(result.photo)
    assert look_through(data, [result.photo]).classes[result.photo] == tuple(s.label_index for s in result.segments)
    given = read_masks(tmp_path / "panoptic.json", Photo(result.rgb, result.photo))
    shift = 1 if result.task == "semantic" else 0
    for segment, mask, id in zip(result.segments, given.masks, given.ids, strict=True):
        assert id == segment.id + shift
        assert np.array_equal(mask, segment.mask) and np.array_equal(read.ids == id, segment.mask)


def test_overlapping_instances_hide_each_other(tmp_path: Path) -> None:
    _, info = instances().to_panoptic_png()
    assert [entry["id"] for entry in info] == [1, 2, 3, 4]
    assert sum(entry["area"] for entry in info) == (instances().label_map > 0).sum()


def test_many_photos(tmp_path: Path) -> None:
    results = [*(make() for make in RESULTS), nothing()]
    write_coco_panoptic(tmp_path, [result.record() for result in results], WORDS)
    document = json.loads((tmp_path / "panoptic.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [result.photo for result in results]
    for annotation in document["annotations"]:
        with Image.open(tmp_path / "panoptic" / annotation["file_name"]) as picture:
            present = set(np.unique(segment_ids(np.array(picture))).tolist()) - {0}
        assert present == {segment["id"] for segment in annotation["segments_info"]}
    with pytest.raises(ImageError, match="holds no mask: every pixel is 0"):
        read_masks(tmp_path / "panoptic.json", Photo(results[-1].rgb, results[-1].photo))

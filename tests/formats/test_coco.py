"""COCO instances: polygons and run lengths as pycocotools reads them, for training and as given masks; refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from lexiseg.data.user_masks import DataProblems, look_through, open_mask_data
from lexiseg.formats.coco import write_coco
from lexiseg.images import Photo
from lexiseg.mask_input import read_masks
from tests.edited_json import edited
from tests.formats.some_photos import HEIGHT, RESULTS, WIDTH, WORDS, instances, panoptic, write_photos

TRIANGLE = [[3.0, 2.0, 30.5, 4.0, 8.0, 25.5]]
PAIR = [[1, 1, 9, 1, 9, 9, 1, 9], [20, 20, 30, 20, 30, 30, 20, 30]]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The results as one file, with the photos beside it."""
    write_photos(tmp_path / "images")
    write_coco(tmp_path / "coco.json", [make().record() for make in RESULTS], WORDS)
    return tmp_path / "coco.json"


def test_there_and_back(coco: Path) -> None:
    data = open_mask_data(coco)
    assert data.vocabulary.names == WORDS.names
    assert [entry.is_thing for entry in data.vocabulary.classes] == [False, True, False]
    photo = data.photo("b.png")
    assert sorted(photo.classes.values()) == [1, 1, 2]
    segments = sorted(panoptic().segments, key=lambda segment: -segment.area)
    for (number, index), segment in zip(photo.classes.items(), segments, strict=True):
        assert index == segment.label_index and np.array_equal(photo.ids == number, segment.mask)
    for make in RESULTS:
        given = read_masks(coco, Photo(make().rgb, make().photo))
        assert np.array_equal(given.masks, np.stack([segment.mask for segment in make().segments]))


def test_small_shapes_lie_on_large_ones_and_crowds_are_none(coco: Path) -> None:
    ring, corners, pixel, turned = (segment.mask for segment in instances().segments)
    ids = open_mask_data(coco).photo("c.tif").ids
    assert (ids[pixel] == 4).all() and (ids[corners] == 3).all()
    assert (ids[ring & turned & ~corners] == 2).all()  # of two alike the later one
    edited(lambda document: document["annotations"][-1].update(iscrowd=1))(coco)
    photo = open_mask_data(coco).photo("c.tif")
    assert len(photo.classes) == 3 and (photo.ids[ring & turned & ~corners] == 2).all()
    assert look_through(open_mask_data(coco), ["c.tif"]).classes["c.tif"] == (1, 1, 1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0
@pytest.mark.parametrize("polygons", [TRIANGLE, PAIR])
def test_polygons_are_filled_as_pycocotools_does(polygons: list[list[float]], coco: Path) -> None:
    edited(lambda document: document["annotations"][3].update(segmentation=polygons))(coco)
    theirs = COCO(str(coco))
    expected = theirs.annToMask(theirs.loadAnns([4])[0]).astype(bool)
    assert np.array_equal(read_masks(coco, Photo(panoptic().rgb, "b.png")).masks[0], expected) and expected.sum() > 100
    photo = open_mask_data(coco).photo("b.png")
    assert (photo.ids[expected] > 0).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_in_numbers(coco: Path) -> None:
    """As COCO's own files hold crowds."""
    mask = panoptic().segments[0].mask
    flat = np.concatenate([[False], mask.T.ravel(), [True]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(changes, prepend=0).tolist()
    runs[-1] += HEIGHT * WIDTH - sum(runs)
    assert np.array_equal(
        rle_tools.decode(rle_tools.frPyObjects({"size": [HEIGHT, WIDTH], "counts": runs}, HEIGHT, WIDTH)), mask
    )
    told = {"size": [HEIGHT, WIDTH], "counts": runs}
    edited(lambda document: document["annotations"][3].update(segmentation=told))(coco)
    assert np.array_equal(read_masks(coco, Photo(panoptic().rgb, "b.png")).masks[0], mask)


def annotation(**changes: Any) -> Callable[[Path], None]:
    return edited(lambda document: document["annotations"][3].update(changes))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no images": (edited(lambda d: d.pop("images")), "has no list 'images', so it is no COCO file"),
    "a category without name": (edited(lambda d: d["categories"][1].pop("name")), "category 2 needs an id and a name"),
    "a category twice": (
        edited(lambda d: d["categories"][1].update(id=1)),
        "category 2 ('car & <van>') has no name, or",
    ),
    "an image without name": (edited(lambda d: d["images"][0].pop("file_name")), "image 1 needs an id and a file_name"),
    "a way out": (edited(lambda d: d["images"][0].update(file_name="../a.jpg")), "image 1 needs an id and a file_name"),
    "an image twice": (edited(lambda d: d["images"][1].update(id=1)), "image 2 has the id of another one, 1"),
    "an unknown image": (annotation(image_id=9), "annotation 4 is of an image that is not listed"),
    "an unknown category": (
        annotation(category_id=9),
        "annotation 4 (b.png) is of category 9, which is not listed; add it to categories",
    ),
    "a list as a category's id": (edited(lambda d: d["categories"][1].update(id=[1])), "category 2 needs an id and"),
    "a list as an image's id": (edited(lambda d: d["images"][0].update(id=[1])), "image 1 needs an id and a file_name"),
    "a list as an image": (annotation(image_id=[1]), "annotation 4 is of an image that is not listed"),
    "a tree as a category": (annotation(category_id={}), "annotation 4 (b.png) is of category {}, which is not"),
    "this folder": (edited(lambda d: d["images"][0].update(file_name=".")), "image 1 needs an id and a file_name"),
    "a huge number": (annotation(segmentation=[[1, 2, 3, 4, 10**400, 6]]), "needs two numbers for each point"),
    "a huge size": (annotation(segmentation={"size": [10**400, 3], "counts": [9]}), "it must be [height, width]"),
    "no mask": (annotation(segmentation=None), "annotation 4 (b.png): is no mask; needed are polygons, or run lengths"),
    "no polygons": (annotation(segmentation=[]), "annotation 4 (b.png): its polygons are no lists"),
    "a box": (annotation(segmentation=[[1, 2, 3, 4]]), "annotation 4 (b.png): its polygon needs 3 to"),
    "far": (annotation(segmentation=[[1, 2, 3, 4, 5e7, 6]]), "annotation 4 (b.png): its polygon lies far outside"),
    "short": (annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": [5]}), "its counts do not add up to"),
    "another size": (annotation(segmentation={"size": [3, 3], "counts": [9]}), "is of a photo of 3 x 3 pixels, the"),
    "thousands of digits": (lambda path: path.write_text("[" + "9" * 5000 + "]"), "not valid JSON (Exceeds the limit"),
    "no photo": (lambda path: (path.parent / "images" / "b.png").unlink(), "b.png: no such file, but coco.json is"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(case: str, coco: Path) -> None:
    spoil, told = WRONG[case]
    spoil(coco)
    with pytest.raises(DataProblems) as raised:
        look_through(data := open_mask_data(coco), data.splits["train"])
    lines = raised.value.lines
    assert any(told in line for line in lines), lines
    assert all(line.startswith(str(coco.parent)) and "\n" not in line for line in lines)

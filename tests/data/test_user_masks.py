"""Masks of one's own: what is read, and every kind of wrong data told in one line that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.user_masks import (
    MOST_LINES,
    DataProblems,
    MaskPhotos,
    look_through,
    open_mask_data,
    refuse_overlap,
    split_off,
)
from tests.edited_json import edited

CLASSES = "road | street\nsky\ntree\n"


def picture(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Four photos; the label of every pixel is its column mod 3, nothing in the last column."""
    folder = tmp_path / "mine"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, id in enumerate("abcd"):
        Image.fromarray(picture(number)).save(folder / "images" / f"{id}.png")
        Image.fromarray(label_map()).save(folder / "labels" / f"{id}.png")
    (folder / "classes.txt").write_text(CLASSES)
    return folder


def label_map(height: int = 12, width: int = 16) -> np.ndarray:
    labels = (np.arange(width, dtype=np.uint8) % 3)[None].repeat(height, 0)
    labels[:, -1] = 255
    return labels


@pytest.fixture
def panoptic(tmp_path: Path) -> Path:
    """Two photos: segment 5 of category 40 on the left, segment 70000 of category 7 on the right, a crowd below."""
    (tmp_path / "images").mkdir()
    (tmp_path / "coco").mkdir()
    ids = np.zeros((12, 16), np.int64)
    ids[:, :8], ids[:, 8:], ids[-2:] = 5, 70000, 9
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    document: dict[str, Any] = {
        "categories": [{"id": 40, "name": "sky", "isthing": 0}, {"id": 7, "name": "dog", "isthing": 1}],
        "images": [],
        "annotations": [],
    }
    for number in (1, 2):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(colours).save(tmp_path / "coco" / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png"})
        segments = [
            {"id": 5, "category_id": 40, "iscrowd": 0},
            {"id": 70000, "category_id": 7, "iscrowd": 0},
            {"id": 9, "category_id": 7, "iscrowd": 1},
        ]
        document["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(document))
    return path


def problems(path: Path, **options: Any) -> tuple[str, ...]:
    with pytest.raises(DataProblems) as raised:
        data = open_mask_data(path, **options)
        look_through(data, [id for ids in data.splits.values() for id in ids])
    assert all("\n" not in line and len(line) < 400 for line in raised.value.lines)
    return raised.value.lines


# ---------------------------------------------------------------------------------------------------------- right data


def test_label_pictures(labels: Path) -> None:
    data = open_mask_data(labels)
    assert [entry.phrases for entry in data.vocabulary.classes] == [("road", "street"), ("sky",), ("tree",)]
    assert data.splits == {"train": ["a", "b", "c", "d"]}
    photo = data.photo("b")
    assert photo.classes == {1: 0, 2: 1, 3: 2}
    assert photo.ids[0, :4].tolist() == [1, 2, 3, 1] and photo.ids[0, -1] == 0
    assert np.array_equal(photo.image, picture(1))
    found = look_through(data, data.splits["train"])
    assert found.classes["a"] == (0, 1, 2) and len(found.hashes) == 4


def test_sixteen_bits_palettes_and_two_values(labels: Path) -> None:
    wide = label_map().astype(np.uint16)
    wide[:, -1] = 65535
    Image.fromarray(wide).save(labels / "labels" / "a.png")
    indexed = Image.fromarray(label_map(), "P")
    indexed.putpalette([9, 9, 9] * 256)
    indexed.save(labels / "labels" / "b.png")
    Image.fromarray(label_map() > 0).save(labels / "labels" / "c.png")
    data = open_mask_data(labels)
    assert [sorted(data.photo(id).classes.values()) for id in "abc"] == [[0, 1, 2], [0, 1, 2], [0, 1]]


def test_lists_of_splits(labels: Path) -> None:
    (labels / "train.txt").write_text("a\nb\n\nc\n")
    (labels / "val.txt").write_text("d\n")
    assert open_mask_data(labels).splits == {"train": ["a", "b", "c"], "val": ["d"]}


def test_coco_panoptic(panoptic: Path, tmp_path: Path) -> None:
    data = open_mask_data(panoptic)
    assert data.vocabulary.names == ("sky", "dog")  # by their place in the file, whatever their ids
    assert [entry.is_thing for entry in data.vocabulary.classes] == [False, True]
    photo = data.photo("1.png")
    assert photo.classes == {5: 0, 70000: 1}
    assert (photo.ids[0, 0], photo.ids[0, -1], photo.ids[-1, 0]) == (5, 70000, 9)
    assert open_mask_data(tmp_path).name == "coco"  # the only JSON file of a folder
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    assert len(open_mask_data(panoptic, images=tmp_path / "elsewhere").photo("2.png").image) == 12


def test_data_package(tmp_path: Path, labels: Path) -> None:
    description = {
        "name": "own",
        "classes": ["road", "sky", "tree"],
        "image_suffix": ".png",
        "splits": {"train": ["a"]},
    }
    (labels / "dataset.json").write_text(json.dumps(description))
    data = open_mask_data(labels)
    assert data.name == "own" and data.photo("a").classes == {1: 0, 2: 1, 3: 2}
    description["classes"] = ["road"]
    (labels / "dataset.json").write_text(json.dumps(description))
    (line,) = problems(labels)
    assert "labels of a: holds the values 1, 2, but there are 1 classes" in line


def test_photos_without_some_classes_are_numbered_anew(labels: Path) -> None:
    photos = MaskPhotos(open_mask_data(labels), ["a"], kept=[2, 0])
    assert len(photos) == 1 and photos[0].classes == {1: 1, 3: 0}


def test_a_fifth_is_for_validation_and_stays_the_same() -> None:
    ids = [f"{number:03}" for number in range(50)]
    train, val = split_off(ids)
    assert len(val) == 10 and sorted(train + val) == ids and split_off(ids) == (train, val)
    assert [len(part) for part in split_off(["a", "b"])] == [1, 1]
    with pytest.raises(DataProblems, match="one photo alone"):
        split_off(["a"])


def test_what_was_looked_through_is_remembered_until_a_file_changes(labels: Path, tmp_path: Path) -> None:
    data, remembered, seen = open_mask_data(labels), tmp_path / "out" / "looked.json", []

    def noticing(ids: Any) -> Any:
        seen.append(list(ids))
        return ids

    first = look_through(data, ["a", "b"], remembered, noticing)
    assert look_through(data, ["a", "b"], remembered, noticing) == first and len(seen) == 1
    Image.fromarray(label_map()[:, :8]).save(labels / "labels" / "a.png")
    with pytest.raises(DataProblems, match="8 x 12 pixels"):
        look_through(data, ["a", "b"], remembered, noticing)
    assert len(seen) == 2
    remembered.write_text("nonsense")
    with pytest.raises(DataProblems):
        look_through(data, ["a", "b"], remembered)


# ---------------------------------------------------------------------------------------------------------- wrong data


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def draw(name: str, pixels: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: Image.fromarray(pixels).save(folder / name)


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:50])


def many_classes(folder: Path) -> None:
    (folder / "classes.txt").write_text("\n".join(f"class {number}" for number in range(300)))


WRONG_LABELS = {
    "no labels of a photo": (remove("labels/a.png"), "images/a.png: has no labels", "add them or remove the photo"),
    "no photo of labels": (remove("images/b.png"), "labels/b.png: has no photo", "add it or remove the labels"),
    "no list of classes": (remove("classes.txt"), "classes.txt: cannot be read", "write one entry per line"),
    "an empty list": (write("classes.txt", "\n\n"), "classes.txt: is empty", "write one class per line"),
    "an empty name": (write("classes.txt", "road\n\ntree\n"), "line 2 (class 1) has an empty name", "is a class"),
    "an empty synonym": (write("classes.txt", "road |\nsky\ntree"), "line 1 (class 0) has an empty name", ""),
    "a name twice": (write("classes.txt", "road\nsky | Road\ntree"), "line 2 says 'Road', and so does line 1", ""),
    "a comma": (write("classes.txt", "road, street\nsky\ntree"), "line 1 (class 0): a comma inside the name", "|"),
    "another size": (
        draw("labels/c.png", label_map(6, 8)),
        "labels/c.png: 8 x 6 pixels, but c.png has 16 x 12",
        "again",
    ),
    "turned": (draw("labels/c.png", label_map(16, 12)), "labels/c.png: 12 x 16 pixels", "EXIF orientation"),
    "values without class": (draw("labels/d.png", label_map() + 2), "labels/d.png: holds the values", "complete"),
    "colours": (draw("labels/a.png", picture(3)), "labels/a.png: has colours (mode RGB)", "a label map is grey"),
    "8 bits for 300": (many_classes, "labels/a.png: 8 bits hold the classes 0 to 254", "save all labels with 16 bits"),
    "a torn photo": (cut("images/a.png"), "images/a.png: is damaged", "copy or download it again"),
    "torn labels": (cut("labels/a.png"), "labels/a.png: is damaged", "copy or download it again"),
    "no picture at all": (write("images/a.png", "hello"), "images/a.png: is not an image", "convert it"),
    "two of a name": (draw("images/a.jpg", picture(9)), "has the same name; rename one", "a."),
    "one list of two": (write("train.txt", "a\n"), "train.txt: is alone", "write the other"),
}


@pytest.mark.parametrize("case", WRONG_LABELS)
def test_wrong_label_pictures(case: str, labels: Path) -> None:
    spoil, *told = WRONG_LABELS[case]
    spoil(labels)
    lines = problems(labels)
    assert all(any(part in line for line in lines) for part in told), lines
    assert all(line.startswith(str(labels)) for line in lines)


def test_photos_in_both_lists_and_in_none(labels: Path) -> None:
    (labels / "train.txt").write_text("a\nb\nb\n")
    (labels / "val.txt").write_text("b\nnobody\n")
    lines = problems(labels)
    assert [line.partition(": ")[2].split(";")[0] for line in lines] == [
        "names 'b' 2 times",
        "names 'nobody', but there is no such photo in images",
        "names 'b', which train.txt names too",
    ]


def test_no_masks_at_all(labels: Path) -> None:
    for id in "abcd":
        draw(f"labels/{id}.png", np.full((12, 16), 255, np.uint8))(labels)
    assert problems(labels) == ("mine: no photo has a mask; label some pixels with the number of a class",)


def test_the_same_photo_under_two_names_on_both_sides(labels: Path) -> None:
    shutil.copy(labels / "images" / "a.png", labels / "images" / "d.png")
    data = open_mask_data(labels)
    with pytest.raises(DataProblems, match=r"^d: the photo is a of train and in val too; .* remove it"):
        refuse_overlap(look_through(data, ["a", "b"]), look_through(data, ["c", "d"]))


def test_all_problems_at_once_but_not_without_end(labels: Path) -> None:
    draw("labels/a.png", label_map(3, 3))(labels)
    cut("images/b.png")(labels)
    assert len(problems(labels)) == 2
    (labels / "classes.txt").write_text("\n".join("x" for _ in range(500)))
    lines = problems(labels)
    assert len(lines) == 4 and lines[-1] == "and 496 more problems, in 1 files altogether"
    many = DataProblems(f"file {number}: bad" for number in range(200))
    assert len(many.lines) == MOST_LINES + 1


def segment(document: dict[str, Any], number: int) -> dict[str, Any]:
    return document["annotations"][0]["segments_info"][number]


GREY = np.full((12, 16), 5, np.uint8)
WRONG_COCO = {
    "no JSON": (lambda path: path.write_text("{"), "coco.json: not valid JSON"),
    "another JSON": (lambda path: path.write_text('{"images": []}'), "has no list 'annotations'"),
    "no categories": (edited(lambda d: d.update(categories=[])), "coco.json: has no categories"),
    "no annotations": (edited(lambda d: d.update(annotations=[])), "coco.json: has no annotations"),
    "a category without name": (
        edited(lambda d: d["categories"][0].update(name=" ")),
        "category 1 (id 40) has no name",
    ),
    "ids twice": (edited(lambda d: d["categories"][1].update(id=40)), "category 2 ('dog') has the id 40 of another"),
    "a list as a category's id": (edited(lambda d: d["categories"][1].update(id=[1])), "category 2 has no id"),
    "a list as an image's id": (edited(lambda d: d["images"][0].update(id=[1])), "image 1 needs an id and a file_name"),
    "a list as an image": (edited(lambda d: d["annotations"][1].update(image_id=[1])), "annotation 2 is of image [1]"),
    "a list as a category": (edited(lambda d: segment(d, 0).update(category_id=[3])), "is of category [3], which is"),
    "names twice": (edited(lambda d: d["categories"][1].update(name="Sky")), "category 2 is called 'Sky' like that"),
    "an unknown category": (edited(lambda d: segment(d, 0).update(category_id=3)), "is of category 3, which is not"),
    "an unknown image": (edited(lambda d: d["annotations"][1].update(image_id=9)), "annotation 2 is of image 9"),
    "two of an image": (edited(lambda d: d["annotations"][1].update(image_id=1)), "is the second one of 1.png"),
    "images twice": (edited(lambda d: d["images"][1].update(id=1)), "image 2 (2.png) has the id of another one, 1"),
    "a way out": (edited(lambda d: d["images"][0].update(file_name="../x.png")), "image 1 needs an id and a file_name"),
    "segments twice": (edited(lambda d: segment(d, 1).update(id=5)), "lists segment 5 twice"),
    "segment 0": (edited(lambda d: segment(d, 1).update(id=0)), "has a segment without an id above 0"),
    "a segment too many": (edited(lambda d: segment(d, 1).update(id=6)), "holds segment 70000, which coco.json"),
    "a segment nowhere": (
        edited(lambda d: d["annotations"][0]["segments_info"].append({"id": 8, "category_id": 7})),
        "has no pixel of segment 8",
    ),
    "ids in 8 bits": (lambda path: Image.fromarray(GREY).save(path.parent / "coco/1.png"), "1.png: is PNG in mode L"),
    "a missing PNG": (lambda path: (path.parent / "coco/2.png").unlink(), "coco/2.png: there is no such file"),
    "a missing photo": (lambda path: (path.parent / "images/2.png").unlink(), "images/2.png: there is no such file"),
    "no folder": (lambda path: shutil.rmtree(path.parent / "images"), "images: no such folder"),
}


@pytest.mark.parametrize("case", WRONG_COCO)
def test_wrong_coco_panoptic(case: str, panoptic: Path) -> None:
    spoil, told = WRONG_COCO[case]
    spoil(panoptic)
    lines = problems(panoptic)
    assert any(told in line for line in lines), lines
    assert all(line.startswith((str(panoptic.parent), "and ")) for line in lines)


def test_what_is_no_data(tmp_path: Path, panoptic: Path) -> None:
    assert "there is no such file or folder" in problems(tmp_path / "nothing")[0]
    (tmp_path / "empty").mkdir()
    assert len(problems(tmp_path / "empty")) == 3
    (tmp_path / "text.zip").write_text("no zip")
    assert "text.zip: neither a folder nor a zip" in problems(tmp_path / "text.zip")[0]
    shutil.copy(panoptic, tmp_path / "other.json")
    assert "holds 2 JSON or XML files" in problems(tmp_path)[0]
    assert "are for a file of annotations" in problems(tmp_path / "empty", images=tmp_path)[0]

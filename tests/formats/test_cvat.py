"""CVAT for images 1.1: what is written is read again, and every wrong file is told in one line."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from lexiseg.data.user_masks import DataProblems, open_mask_data
from lexiseg.formats.cvat import read_cvat, write_cvat
from lexiseg.images import ImageError, Photo
from lexiseg.mask_input import read_masks
from tests.formats.some_photos import RESULTS, WORDS, panoptic, records, write_photos

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
PHOTO = Photo(np.zeros((30, 40, 3), np.uint8), "a.png")


def document(*shapes: str, image: str = 'id="3" name="photos/a.png" width="40" height="30"') -> str:
    return f"{HEAD}<image {image}>{''.join(shapes)}</image></annotations>"


def read(path: Path, *shapes: str) -> np.ndarray:
    path.write_text(document(*shapes))
    return read_masks(path, PHOTO).masks


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """An export with its photos in images/ beside it."""
    write_photos(tmp_path / "images")
    path = tmp_path / "annotations.xml"
    write_cvat(path, [make().record() for make in RESULTS], WORDS)
    return path


def test_there_and_back(task: Path) -> None:
    archive = task.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(task, "annotations.xml")
    for path in (task, archive):
        for make in RESULTS:
            given = read_masks(path, Photo(make().rgb, make().photo))
            assert np.array_equal(given.masks, np.stack([segment.mask for segment in make().segments]))
        data = open_mask_data(path)
        assert data.vocabulary.names == WORDS.names
        photo = data.photo("b.png")
        assert photo.classes == {1: 1, 2: 1, 3: 2}
        for segment in panoptic().segments:
            assert np.array_equal(photo.ids == segment.id, segment.mask)


def test_its_own_library_reads_the_masks(task: Path) -> None:
    masks = pytest.importorskip("cvat_sdk.masks", reason="cvat-sdk is not installed")
    photos = ElementTree.parse(task).getroot().findall("image")
    for photo, make in zip(photos, RESULTS, strict=True):
        for element, segment in zip(photo.findall("mask"), make().segments, strict=True):
            left, top, width, height = (int(element.get(name)) for name in ("left", "top", "width", "height"))
            runs = [int(run) for run in element.get("rle").split(",")]
            assert [*runs, left, top, left + width - 1, top + height - 1] == masks.encode_mask(segment.mask)
            assert element.get("label") == segment.label


def test_boxes_and_polygons(tmp_path: Path) -> None:
    box = '<box label="car" source="manual" occluded="0" xtl="10.0" ytl="6.0" xbr="30.0" ybr="18.0" {} z_order="0"/>'
    path = tmp_path / "a.xml"
    (mask,) = read(path, box.format(""))
    assert mask[6:18, 10:30].all() and mask.sum() == 240
    (turned,) = read(path, box.format('rotation="90.0"'))  # about its middle
    assert turned[2:22, 14:26].all() and turned.sum() == 240
    (polygon,) = read(path, '<polygon label="car" points="10.0,6.0;30.0,6.0;30.0,18.0;10.0,18.0" z_order="0"/>')
    assert np.array_equal(polygon, mask)


def test_layers_and_tags(tmp_path: Path) -> None:
    """The mask with the highest z_order comes last, and lies on top."""
    above = '<box label="car" xtl="0" ytl="0" xbr="20" ybr="30" z_order="2"/>'
    below = '<box label="tree" xtl="0" ytl="0" xbr="40" ybr="30" z_order="-1"/>'
    (tmp_path / "a.xml").write_text(document('<tag label="day" source="manual"/>', above, below))
    found = read_cvat(tmp_path / "a.xml")
    assert [mask.label for mask in found.photos[0].masks] == ["tree", "car"] and found.classes == ("car", "tree")
    (tmp_path / "images/photos").mkdir(parents=True)
    Image.fromarray(PHOTO.rgb).save(tmp_path / "images/photos/a.png")
    photo = open_mask_data(tmp_path / "a.xml").photo("photos/a.png")
    assert photo.classes == {1: 1, 2: 0} and (photo.ids[:, :20] == 2).all() and (photo.ids[:, 20:] == 1).all()


BOX = '<box label="car" xtl="0" ytl="0" xbr="20" ybr="30" z_order="0"/>'
MASK = '<mask label="car" rle="{}" left="{}" top="0" width="2" height="2" z_order="0"/>'
WRONG_SHAPES = {
    "no label": ('<box label=" " xtl="0" ytl="0" xbr="2" ybr="2"/>', "box 2: has no label; give it one"),
    "an empty box": ('<box label="car" xtl="5" ytl="0" xbr="2" ybr="2"/>', "box 2: its box is empty; draw it again"),
    "a box of words": ('<box label="car" xtl="five" ytl="0" xbr="2" ybr="2"/>', "box 2: 'five' is no number"),
    "no end": ('<box label="car" xtl="inf" ytl="0" xbr="2" ybr="2"/>', "box 2: 'inf' is no number"),
    "two points": ('<polygon label="car" points="1,1;2,2"/>', "polygon 2: its polygon needs 3 to"),
    "one number": ('<polygon label="car" points="1,1;2,2;3"/>', "polygon 2: its polygon needs two numbers"),
    "far": ('<polygon label="car" points="1,1;2,2;3,1e9"/>', "polygon 2: its polygon lies far outside"),
    "runs too short": (MASK.format("1, 2", 0), "mask 2: its run lengths do not add up to the 2 x 2 pixels"),
    "runs below zero": (MASK.format("5, -1", 0), "mask 2: its run lengths do not add up"),
    "runs of words": (MASK.format("a", 0), "mask 2: 'a' is no whole number"),
    "huge runs": (MASK.format("9" * 40, 0), "mask 2: '9+' is no whole number"),
    "outside": (MASK.format("0, 4", 39), "mask 2: its box leaves the 40 x 30 pixels of the photo"),
    "huge": (
        '<mask label="car" rle="1" left="0" top="0" width="99999999" height="99999999"/>',
        "mask 2: its box or its run lengths are beyond any picture",
    ),
    "a line": ('<polyline label="car" points="1,1;2,2"/>', "polyline 2: a polyline is no mask; draw a mask, a polygon"),
}


@pytest.mark.parametrize("case", WRONG_SHAPES)
def test_wrong_shapes(case: str, tmp_path: Path) -> None:
    shape, told = WRONG_SHAPES[case]
    with pytest.raises(ImageError, match=rf"a.xml: image 3 \(photos/a.png\), {told}") as raised:
        read(tmp_path / "a.xml", BOX, shape)
    assert "\n" not in str(raised.value)


LAUGHS = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'


def zipped(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, document(BOX))

    return write


WRONG_FILES: dict[str, tuple[str, str | Callable[[Path], None], str]] = {
    "no XML": ("a.xml", "hello", "not valid XML"),
    "cut": ("a.xml", document(BOX)[:-10], "not valid XML"),
    "another XML": ("a.xml", "<svg></svg>", "has no <image>, so it is no export as 'CVAT for images 1.1'"),
    "a video": ("a.xml", f"{HEAD}<track id='0' label='car'></track></annotations>", "holds tracks of a video"),
    "laughs": ("a.xml", f"<?xml version='1.0'?>{LAUGHS}<annotations>&c;</annotations>", "declares a document type"),
    "outside file": (
        "a.xml",
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotations>&b;</annotations>',
        "declares a document type or entities, which CVAT does not",
    ),
    "no size": ("a.xml", document(BOX, image='id="3" name="a.png" height="3"'), r"image 3 \(a.png\): its width is ''"),
    "no name": ("a.xml", document(BOX, image='id="3" width="4" height="3"'), "has no name; export it again"),
    "another size": (
        "a.xml",
        document(BOX, image='id="3" name="a.png" width="4" height="3"'),
        "box 1: is of a photo of 4 x 3 pixels, the upright photo has 40 x 30; annotate the photo as it is here",
    ),
    "another photo": (
        "a.xml",
        document(BOX, image='id="3" name="b.png" width="40" height="30"'),
        "is about 1 photos, 0 of them called a.png",
    ),
    "no shapes": ("a.xml", document(), "holds no mask for this photo; annotate it"),
    "no zip": ("a.zip", "PK", "no zip that can be read"),
    "an empty zip": ("a.zip", zipped("readme.txt"), "holds 0 files called annotations.xml; give the export of one"),
    "two in a zip": ("a.zip", zipped("1/annotations.xml", "2/annotations.xml"), "holds 2 files called annotations.xml"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files(case: str, tmp_path: Path) -> None:
    name, content, told = WRONG_FILES[case]
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_text(content)
    with pytest.raises(ImageError, match=f"a.png: its masks cannot be used: {path}: .*{told}") as raised:
        read_masks(path, PHOTO)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_limits_on_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexiseg.formats.annotations.MAX_FILE_BYTES", 100)
    (tmp_path / "a.xml").write_text(document(BOX))
    zipped("annotations.xml")(tmp_path / "a.zip")
    for name in ("a.xml", "a.zip"):
        with pytest.raises(DataProblems, match="larger than 0 GB; split it"):
            open_mask_data(tmp_path / name)


def test_a_photo_of_two_folders_is_not_guessed(tmp_path: Path) -> None:
    images = "".join(f'<image id="{id}" name="{id}/a.png" width="40" height="30">{BOX}</image>' for id in (1, 2))
    (tmp_path / "a.xml").write_text(f"{HEAD}{images}</annotations>")
    with pytest.raises(ImageError, match=r"is about 2 photos, 2 of them called a.png"):
        read_masks(tmp_path / "a.xml", PHOTO)
    assert len(read_masks(tmp_path / "a.xml", Photo(PHOTO.rgb, "2/a.png")).masks) == 1


def test_what_is_written_for_many(tmp_path: Path) -> None:
    write_cvat(tmp_path / "a.xml", records(), WORDS)
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    labels = root.findall("meta/task/labels/label")  # where datumaro looks for them
    assert [label.findtext("name") for label in labels] == list(WORDS.names)
    assert [photo.get("id") for photo in root.findall("image")] == ["0", "1", "2", "3"]

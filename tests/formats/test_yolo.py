"""YOLO's outlines, read by supervision."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lexiseg.formats.table import find_format
from lexiseg.formats.yolo import to_yolo, write_yolo
from tests.formats.some_photos import RESULTS, WORDS, nothing, panoptic, records

supervision = pytest.importorskip("supervision")


def test_supervision_reads_the_masks(tmp_path: Path) -> None:
    results = [*(make() for make in RESULTS), nothing()]
    write_yolo(tmp_path, [result.record() for result in results], WORDS)
    for result in results:
        photo = (tmp_path / "images" / result.photo).with_suffix(".png")  # it knows no tif
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(result.rgb).save(photo)
    for folder, names in ((".", ("b", "c")), ("a", ("b c",)), ("inner", ("nothing",))):
        read = supervision.DetectionDataset.from_yolo(
            str(tmp_path / "images" / folder), str(tmp_path / "labels" / folder), str(tmp_path / "data.yaml"), True
        )
        assert read.classes == list(WORDS.names)
        for name in names:
            detections = read.annotations[str(tmp_path / "images" / folder / f"{name}.png")]
            (result,) = (one for one in results if Path(one.photo).with_suffix("").name == name)
            assert len(detections) == len(result.segments)
            for found, index, segment in zip(
                detections.mask if len(detections) else [], detections.class_id, result.segments, strict=True
            ):
                assert index == segment.label_index
                # It paints outlines with a pen: nothing is missing, and what is too much lies beside an edge or a seam.
                assert found[segment.mask].mean() > 0.97
                assert (found & ~segment.mask).sum() <= 70


def test_lines() -> None:
    lines = to_yolo(panoptic().record(), tolerance=0).splitlines()
    assert [line.split()[0] for line in lines] == ["1", "1", "2"]
    assert lines[2] == "2 0.975 0.967742 1 0.967742 1 1 0.975 1"  # the lonely pixel in the corner
    for line in lines:
        numbers = np.array([float(number) for number in line.split()[1:]])
        assert len(numbers) % 2 == 0 and numbers.min() >= 0 and numbers.max() <= 1
    assert to_yolo(nothing().record()) == ""


def test_files(tmp_path: Path) -> None:
    write_yolo(tmp_path, records(), WORDS)
    told = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert told == {"path": ".", "train": "images", "val": "images", "nc": 3, "names": dict(enumerate(WORDS.names))}
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt"))
    assert files == ["labels/a/b c.txt", "labels/b.txt", "labels/c.txt", "labels/inner/nothing.txt"]


def test_names_that_differ_by_their_endings_alone() -> None:
    with pytest.raises(ValueError, match=r"a/b.png: the format yolo cannot tell it from a/b.jpg; rename one of them"):
        find_format("yolo", ["a/b.jpg", "b.jpg", "a/b.png"])
    find_format("coco", ["a/b.jpg", "a/b.png"])

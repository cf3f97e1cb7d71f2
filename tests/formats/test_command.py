"""`lexiseg segment --format`, `--masks` with one file of many photos, `lexiseg batch --format`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from lexiseg.formats.table import FORMATS
from lexiseg.segmenter import Segmenter
from tests.bulk.colour_batch import WORDS, batch, write_photos
from tests.colour_model import colour_model

pytestmark = pytest.mark.usefixtures("colours_by_name")


def segment(*arguments: object) -> Result:
    told = ("segment", *arguments, "--classes", WORDS, "--model", "colours", "--device", "cpu")
    return CliRunner().invoke(app, [str(argument) for argument in told])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [name for name, format in FORMATS.items() if format.merged is not None])
def test_segment_and_batch_write_the_same(name: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    told = segment(photos, "--out", tmp_path / "out", "--format", name, "--format", "palette")
    assert told.exit_code == 0, told.output
    done = batch(photos, tmp_path / "batch", name)
    assert done.merged == tmp_path / "batch" / FORMATS[name].merged.name
    written, merged = files(tmp_path / "out"), files(tmp_path / "batch")
    own = {path: content for path, content in merged.items() if path.startswith(FORMATS[name].merged.name)}
    assert own and own.items() <= written.items()
    with (
        Image.open(tmp_path / "out" / "01.palette.png") as shown,
        Image.open(tmp_path / "out" / "01.labels.png") as grey,
    ):
        assert shown.mode == "P" and np.array_equal(np.array(shown), np.array(grey))
    # In place of what an earlier run has made.
    assert batch(photos, tmp_path / "batch", name).new == 0 and files(tmp_path / "batch") == merged


def test_palettes_of_a_batch(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    assert batch(photos, tmp_path / "out", "palette").merged is None
    with Image.open(tmp_path / "out" / "labels" / "01.png.png") as picture:
        assert picture.mode == "P" and picture.getpalette()[:3] != [0, 0, 0]
        assert np.array_equal(np.array(picture), np.array(Image.open(photos / "01.png")).argmax(-1))


@pytest.mark.parametrize("name", ["coco", "cvat"])
def test_what_was_written_is_given_as_masks(name: str, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    assert segment(photos, "--out", tmp_path / "out", "--format", name).exit_code == 0
    given = tmp_path / "out" / FORMATS[name].merged.name
    told = segment(photos, "--out", tmp_path / "again", "--masks", given, "--task", "instance", "--json")
    assert told.exit_code == 0, told.output
    for result in json.loads(told.stdout)["results"]:
        before = json.loads((tmp_path / "out" / f"{Path(result['photo']).stem}.json").read_text())
        assert sorted((one["label"], one["area"]) for one in result["segments"]) == sorted(
            (one["label"], one["area"]) for one in before["segments"]
        )
    segmenter = Segmenter(colour_model(), "cpu")
    results = segmenter([photos / "01.png", photos / "02.png"], WORDS, task="instance", masks=given)
    assert [len(result.segments) for result in results] == [3, 2]


def test_wrong_calls(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    Image.open(photos / "01.png").save(photos / "01.jpg")
    for format, said in (
        ("bmp", "--format: no format is called 'bmp': choose one of coco"),
        ("yolo", "the format yolo cannot tell it from"),
    ):
        told = segment(photos, "--out", tmp_path / "out", "--format", format)
        assert told.exit_code == 2 and said in told.stderr and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="cannot tell it from"):
        batch(photos, tmp_path / "out", "yolo")
    assert not (tmp_path / "out").exists()

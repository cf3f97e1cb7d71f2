"""A batch: whole after kills, carried on past bad photos, never mixed with another one."""

import json
import random
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lexiseg.bulk import BatchError, run_batch
from lexiseg.images import Photo
from lexiseg.segmenter import Segmenter
from tests.bulk.colour_batch import WORDS, batch, write_photos
from tests.bulk.killing import Killer, contents, records
from tests.colour_model import colour_model

FORMATS = ["coco", "png", "parquet", "labelstudio"]


@pytest.mark.slow  # processes that import everything
@pytest.mark.parametrize("format", FORMATS)
def test_killed_at_any_moment_and_resumed_to_the_same_bytes(tmp_path: Path, format: str) -> None:
    """Twenty kills altogether."""
    photos, out = write_photos(tmp_path / "photos", 30), tmp_path / "killed"
    (photos / "05.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "tests.bulk.colour_batch", str(photos), str(out), format, "0.1"]
    killer = Killer(command, out, 29, random.Random(format), pause=0.2)
    killer.kill_runs(5)
    killer.finish()
    assert len(set(killer.told)) > 2 and killer.told[-1] == 29
    done = batch(photos, tmp_path / "whole", format)
    assert (done.photos, done.new, list(done.failures)) == (30, 29, ["05.png"])
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("format", ["coco", "png"])
def test_leftovers_of_a_kill_do_not_count(tmp_path: Path, format: str) -> None:
    """Half a record, a label map without its record, temporary files, half a list, no merged file."""
    photos = write_photos(tmp_path / "photos", 4)
    batch(photos, tmp_path / "whole", format)
    shutil.copytree(tmp_path / "whole", out := tmp_path / "torn")
    half = out / "records" / "01.png.json"
    half.write_bytes(half.read_bytes()[:40])
    (out / "records" / "02.png.json").unlink()
    (out / "records" / "inner" / ".00.png.json.abc.part").write_bytes(b"{")
    (out / "failures.jsonl").write_text('{"photo": "01')
    (out / "coco.json").unlink(missing_ok=True)
    assert batch(photos, out, format).new == 2
    assert contents(out) == contents(tmp_path / "whole")


# pycocotools 2.0 asks numpy for copies in an old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_coco_file(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 5), tmp_path / "out"
    done = batch(photos, out)
    assert done.merged == out / "coco.json" and (done.photos, done.new, done.failures) == (5, 5, {})
    data = COCO(str(done.merged))
    names = [data.imgs[number]["file_name"] for number in sorted(data.imgs)]
    assert names == ["01.png", "02.png", "04.png", "inner/00.png", "inner/03.png"]
    assert sorted(data.anns) == list(range(1, 2 + 2 + 2 + 3 + 3 + 1))
    assert [category["name"] for category in data.loadCats([1, 2, 3])] == ["red", "green", "blue"]
    for number, image in data.imgs.items():
        rgb = np.array(Image.open(photos / image["file_name"]))
        for annotation in data.imgToAnns[number]:  # each stripe where it is in the photo
            assert (data.annToMask(annotation) == (rgb[..., annotation["category_id"] - 1] > 0)).all()


def test_label_maps(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 4), tmp_path / "out"
    assert batch(photos, out, "png").merged is None
    for path in photos.rglob("*.png"):
        name = path.relative_to(photos).as_posix()
        labels = np.array(Image.open(out / "labels" / f"{name}.png"))
        assert (labels == np.array(Image.open(path)).argmax(-1)).all()
        record = json.loads((out / "records" / f"{name}.json").read_text())
        assert {entry["id"] for entry in record["segments"]} == set(labels.ravel().tolist())


def test_bad_photos_are_listed_and_tried_again(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    whole = (photos / "02.png").read_bytes()
    (photos / "02.png").write_bytes(whole[:60])
    (photos / "empty.jpg").write_bytes(b"")
    done = batch(photos, out)
    assert (done.photos, done.new) == (4, 2)
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert {line["photo"]: line["error"] for line in lines} == done.failures
    assert "damaged or cut short" in done.failures["02.png"] and "is empty" in done.failures["empty.jpg"]
    (photos / "02.png").write_bytes(whole)
    done = batch(photos, out)
    assert done.new == 1 and list(done.failures) == ["empty.jpg"]
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 3


def failing(monkeypatch: pytest.MonkeyPatch, error: Callable[[str], Exception | None]) -> None:
    segment = Segmenter._segment

    def _segment(self: Segmenter, photo: Photo, *arguments: object) -> object:
        found = error(photo.name)
        if found is not None:
            raise found
        return segment(self, photo, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "_segment", _segment)


def test_what_a_model_fails_on_is_that_photos_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = write_photos(tmp_path / "photos", 4), tmp_path / "out"
    with monkeypatch.context() as context:
        failing(context, lambda name: RuntimeError("sizes of\n tensors") if name == "02.png" else None)
        done = batch(photos, out)
    assert done.failures == {"02.png": "the model failed (RuntimeError: sizes of tensors)"} and done.new == 3
    assert batch(photos, out).new == 1


def test_a_model_that_fails_on_all_photos_ends_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the tenth in a row, wherever that is; ten of several kinds, or of bad photos, do not."""
    photos, out = write_photos(tmp_path / "photos", 25), tmp_path / "out"
    with monkeypatch.context() as context:
        failing(context, lambda name: RuntimeError("device lost") if name > "04.png" else None)
        with pytest.raises(BatchError, match=r"out: 10 photos in a row, the last 19.png: .*device lost.*; what is fin"):
            batch(photos, out)
    assert len(records(out)) == 3 and not (out / "coco.json").exists()
    with monkeypatch.context() as context:
        failing(context, lambda name: RuntimeError("a") if int(name[-6:-4]) % 2 else KeyError("b"))
        assert len(batch(photos, out).failures) == 22
    assert batch(photos, out).new == 22


def test_photos_may_come_go_and_change(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    batch(photos, out)
    (photos / "01.png").unlink()
    shutil.copy(photos / "02.png", photos / "inner" / "00.png")
    shutil.copy(photos / "02.png", photos / "03.png")
    assert batch(photos, out).new == 2
    images = json.loads((out / "coco.json").read_text())["images"]
    assert [(image["file_name"], image["height"]) for image in images] == [
        ("02.png", 28),
        ("03.png", 28),
        ("inner/00.png", 28),
    ]
    (photos / "03.png").write_bytes(b"no longer a picture")
    assert list(batch(photos, out).failures) == ["03.png"]
    assert not (out / "records" / "03.png.json").exists()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    batch(photos, out)
    before = contents(out)
    for changed, named in (
        ({"task": "panoptic"}, "task"),
        ({"min_score": 0.5}, "min_score"),
        ({"format": "png"}, "format"),
    ):
        with pytest.raises(BatchError, match=rf"out: holds results of other settings \({named}\)"):
            batch(photos, out, **changed)  # type: ignore[arg-type]
    with pytest.raises(BatchError, match=r"other settings \(words\)"):
        run_batch(Segmenter(colour_model(), "cpu"), photos, "red, blue", out)
    other = colour_model()
    other.system.scorer.logit_scale.data.fill_(2.0)
    with pytest.raises(BatchError, match=r"other settings \(weights\)"):
        run_batch(Segmenter(other, "cpu"), photos, WORDS, out)
    other = colour_model()
    other.system.generator.stride = 2
    with pytest.raises(BatchError, match=r"other settings \(rules of the model\)"):
        run_batch(Segmenter(other, "cpu"), photos, WORDS, out)
    assert contents(out) == before
    assert batch(photos, out, min_score=0).new == 0  # what is meant by saying nothing


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "coco.json").write_text("precious")
    with pytest.raises(BatchError, match="holds other files, and no batch"):
        batch(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == {"coco.json": b"precious"}
    batch(photos, tmp_path / "other")
    (tmp_path / "other" / "batch.json").write_text("[]")
    with pytest.raises(BatchError, match="batch.json: damaged"):
        batch(photos, tmp_path / "other")
    with pytest.raises(BatchError, match="no format is called 'bmp'"):
        batch(photos, tmp_path / "third", "bmp")
    with pytest.raises(ValueError, match="no task is called 'all'"):
        batch(photos, tmp_path / "third", task="all")
    assert not (tmp_path / "third").exists()


def test_progress_tells_rate_and_time_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    batch(photos, out, progress=True)
    assert re.search(r"segmenting: 100%.* 3/3 \[\d\d:\d\d<\d\d:\d\d, .*photo/s\]", capfd.readouterr().err)
    (photos / "01.png").write_bytes(b"no picture")
    batch(photos, out, progress=True)
    told = capfd.readouterr().err
    assert "2/3" in told and "3/3" in told and "0/3" not in told  # what is finished is not counted in the rate
    batch(photos, out)
    assert capfd.readouterr().err == ""  # nobody is looking


def test_one_process_at_a_time(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    batch(photos, out)
    with (out / "batch.json").open("rb") as file:
        pytest.importorskip("fcntl").flock(file, 2)  # exclusively
        with pytest.raises(BatchError, match="out: another process is at work there"):
            batch(photos, out)
    assert batch(photos, out).new == 0


def test_reading_goes_on_while_the_model_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first photo is segmented, the next ones are read already, and no more than these."""
    from lexiseg.bulk import segmenting

    photos, read, ahead = write_photos(tmp_path / "photos", 8), [], []
    whole, segment = segmenting._read, Segmenter._segment
    monkeypatch.setattr(segmenting, "_read", lambda photo: (read.append(photo.name), whole(photo))[1])

    def slowly(self: Segmenter, *arguments: object) -> object:
        time.sleep(0.05)
        ahead.append(len(read) - len(ahead) - 1)
        return segment(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "_segment", slowly)
    assert batch(photos, tmp_path / "out").new == 8
    assert ahead == [2, 2, 2, 2, 2, 2, 1, 0]

"""The command line, on a model that knows three colours."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from lexiseg.apps.recipes import RECIPES
from lexiseg.images import Canvas, read_image
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.model_folder import save_model_folder
from tests.colour_model import colour_model
from tests.data.publishers import voc
from tests.zoo.conftest import GENERATOR, TOWERS

WORDS = "red, green | grass, blue"


pytestmark = pytest.mark.usefixtures("colours_by_name")


def lexiseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def segment(*arguments: object, classes: str = WORDS, model: str = "colours") -> Result:
    return lexiseg("segment", *arguments, "--classes", classes, "--model", model, "--device", "cpu")


def photo(path: Path, height: int = 40, width: int = 60) -> Path:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, : width // 2, 0] = 200
    rgb[:, width // 2 :, 2] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb).save(path)
    return path


def test_tiles(tmp_path: Path) -> None:
    path = photo(tmp_path / "large.png", 150, 300)
    done = segment(path, "--out", tmp_path, "--tile", 128, "--overlap", 16, "--context", 0.2, "--task", "panoptic")
    assert done.exit_code == 0, done.output
    segments = json.loads((tmp_path / "large.json").read_text(encoding="utf-8"))["segments"]
    assert sorted(entry["label"] for entry in segments) == ["blue", "red"]


def placed(path: Path) -> Path:
    """A photo with the tags of a GeoTIFF, in UTM zone 50 N."""
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32650)
    tags = {33550: (0.5, 0.5, 0.0), 33922: (0.0, 0.0, 0.0, 448000.0, 4418000.0, 0.0), 34735: keys}
    with Image.open(photo(path.with_suffix(".png"))) as plain:
        plain.save(path, tiffinfo=tags)
    return path


def test_a_geotiff_is_written_where_it_lies(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    path, other = placed(tmp_path / "aerial.tif"), photo(tmp_path / "other.png")
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:-50])
    done = segment(path, other, tmp_path / "cut.tif", "--out", tmp_path / "out", "--json", "--bands", "3,2,1")
    assert done.exit_code == 1, done.output
    told = json.loads(done.stdout)
    assert [set(entry["files"]) for entry in told["results"]] == [
        {"overlay", "labels", "json", "geotiff", "geojson"},
        {"overlay", "labels", "json"},
    ]
    assert "cannot be read as a GeoTIFF" in told["failures"][0]["error"]
    outlines = json.loads((tmp_path / "out" / "aerial.geojson").read_text(encoding="utf-8"))
    # Red is on the left, blue on the right, and the bands are the other way round.
    assert {feature["properties"]["class"] for feature in outlines["features"]} == {"red", "blue"}
    left = min(outlines["features"], key=lambda feature: feature["geometry"]["coordinates"][0][0][0])
    assert left["properties"]["class"] == "blue"
    for bands, problem in (("1,x,3", "give numbers from one on"), ("9,1,2", "has 3 bands, not 9,1,2")):
        done = segment(path, "--out", tmp_path / "out", "--bands", bands)
        assert done.exit_code != 0
        assert problem in " ".join(done.output.split())


def test_without_rasterio_a_reference_is_lost_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    path = placed(tmp_path / "aerial.tif")
    done = segment(path, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "aerial.tif: its georeference is not kept; for that: pip install 'lexiseg[geo]'" in done.output
    assert sorted(file.suffix for file in (tmp_path / "out").iterdir()) == [".json", ".png", ".png"]
    assert segment(path, "--out", tmp_path / "out", "--bands", "3,2,1").exit_code == 2
    for options, said in (
        (("--overlap", 16), "--tile"),
        (("--tile", 128, "--overlap", 100), "use 0 to 42"),
        (("--tile", 128, "--task", "instance"), "not joined across tiles"),
    ):
        refused = segment(path, "--out", tmp_path, *options)
        assert refused.exit_code == 2
        assert said in refused.output


def test_one_photo(tmp_path: Path) -> None:
    path = photo(tmp_path / "a b.jpg")
    done = segment(path, "--out", tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == [
        "a b.json",
        "a b.labels.png",
        "a b.overlay.png",
    ]
    labels = np.array(Image.open(tmp_path / "results" / "a b.labels.png"))
    assert (labels[20, 10], labels[20, 50]) == (0, 2)
    assert "red" in done.stdout
    assert "share" in done.stdout
    assert "50.0 %" in done.stdout
    assert done.stderr == ""


def test_several_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexiseg.images.LOOKS", (48,))
    path = photo(tmp_path / "a.jpg")
    assert segment(path, "--out", tmp_path / "results", "--augment").exit_code == 0
    assert json.loads((tmp_path / "results" / "a.json").read_text())["segments"]
    done = segment(path, "--out", tmp_path / "results", "--augment", "--task", "instance")
    assert done.exit_code == 2 and "only the semantic task" in done.stderr


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_json(tmp_path: Path, task: str) -> None:
    paths = [photo(tmp_path / "a.jpg"), tmp_path / "missing.jpg", photo(tmp_path / "b.png")]
    done = segment(*paths, "--task", task, "--out", tmp_path / "o", "--json")
    assert done.exit_code == 1
    printed = json.loads(done.stdout)
    assert [entry["photo"] for entry in printed["results"]] == [str(paths[0]), str(paths[2])]
    assert {s["label"] for s in printed["results"][0]["segments"]} == {"red", "blue"}
    assert all(Path(file).is_file() for entry in printed["results"] for file in entry["files"].values())
    assert printed["failures"] == [{"photo": str(paths[1]), "error": "there is no such file; check the path"}]


def test_skipping_is_for_models_that_can(tmp_path: Path) -> None:
    done = segment(photo(tmp_path / "a.png"), "--out", tmp_path / "results", "--skip-decided")
    assert done.exit_code == 2
    assert "skip_decided is for models with a Mask-Adapter" in done.output


def test_fifty_photos_with_five_broken_ones(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(45):
        photo(folder / f"{number:02}.png", 16 + number, 30)
    whole = photo(folder / "x.jpg", 64, 64).read_bytes()
    (folder / "x.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_bytes(b"no picture at all")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (2000, 2000)).save(folder / "large.png")
    done = segment(folder, "--out", tmp_path / "o", "--max-pixels", "1")
    assert done.exit_code == 1
    assert len(list((tmp_path / "o").glob("*.json"))) == 45
    assert len(list((tmp_path / "o").glob("*.overlay.png"))) == 45
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    for name, said in {
        "x.jpg": "is damaged or cut short",
        "empty.jpg": "is empty",
        "text.png": "is not an image",
        "moving.gif": "has 2 frames",
        "large.png": "more than the limit",
    }.items():
        (line,) = (line for line in lines if f"/{name}:" in line)
        assert said in line
    assert lines[-1] == "lexiseg: 45 of 50 photos done, 5 failed"
    assert "photos" in done.stdout  # the table counts them


def test_two_photos_of_one_name_do_not_share_a_file(tmp_path: Path) -> None:
    paths = [
        photo(tmp_path / "one" / "a.jpg"),
        photo(tmp_path / "two" / "a.jpg", 30, 30),
        photo(tmp_path / "two" / "A.png"),
        photo(tmp_path / "a-2.jpg"),
        photo(tmp_path / "one" / "a.jpg"),  # the same file once more
    ]
    done = segment(*paths, "--out", tmp_path / "o")
    assert done.exit_code == 0
    written = {path.name: json.loads(path.read_text())["photo"] for path in (tmp_path / "o").glob("*.json")}
    assert written == {
        "a.json": str(paths[0]),
        "a-3.json": str(paths[1]),
        "A-4.json": str(paths[2]),
        "a-2.json": str(paths[3]),
    }


def test_no_photo_is_replaced_by_a_result_and_no_result_is_taken_for_a_photo(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    other = photo(tmp_path / "a.overlay.png")  # somebody's own picture
    before = other.read_bytes()
    assert segment(tmp_path, "--out", tmp_path).exit_code == 0
    assert other.read_bytes() == before
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["a-2.json", "a.overlay.json"]
    assert segment(tmp_path, "--out", tmp_path).exit_code == 0  # a second time, among its own results
    assert sorted(p.name for p in tmp_path.glob("*.json")) == ["a-2.json", "a.overlay.json"]


def test_words_from_a_file_and_background(tmp_path: Path) -> None:
    path = photo(tmp_path / "a.png")
    words = tmp_path / "words.yaml"
    words.write_text("- {name: blue, thing: false, color: [1, 2, 3]}\n- red\n")
    assert segment(path, "--out", tmp_path, "--background", classes=str(words)).exit_code == 0
    written = json.loads((tmp_path / "a.json").read_text())
    assert [word["label"] for word in written["words"]] == ["blue", "red", "background"]
    assert written["words"][0]["is_thing"] is False


def test_nothing_found(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (128, 128, 128)).save(tmp_path / "grey.png")
    done = segment(tmp_path / "grey.png", "--task", "panoptic", "--out", tmp_path)
    assert done.exit_code == 0
    assert "nothing found" in done.stdout


BAD_WORDS = {
    "empty": ("", "empty"),
    "only commas": (",,,", "empty"),
    "hole": ("sky,,car", "class 2"),
    "empty synonym": ("sky, car ||", "class 2"),
    "twice": ("sky, car, sky", "sky"),
    "twice as synonym": ("sky, car | sky", "sky"),
    "missing file": ("nowhere/words.yaml", "no such file"),
    "too long": ("x" * 3000, "a phrase has at most"),
    "broken yaml": ("broken.yaml", "not valid YAML"),
    "broken json": ("broken.json", "not valid JSON"),
    "wrong shape": ("number.json", "must be a list"),
    "unknown key": ("key.json", "unknown key"),
    "bad colour": ("color.json", "color"),
    "empty file": ("empty.txt", "empty"),
    "only comments": ("comments.txt", "only comments"),
    "no text": ("binary.txt", "UTF-8"),
    "folder": ("folder.txt", "a folder"),
    "no name": ("noname.json", "has no name"),
    "two keys": ("keys.json", "sky"),
    "huge file": ("huge.txt", "larger than"),
}


@pytest.fixture
def word_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("- [sky, road\n- car")
    (tmp_path / "broken.json").write_text('["sky", ')
    (tmp_path / "number.json").write_text("7")
    (tmp_path / "key.json").write_text('[{"name": "sky", "colour": [1, 2, 3]}]')
    (tmp_path / "color.json").write_text('[{"name": "sky", "color": [1, 2, 999]}]')
    (tmp_path / "noname.json").write_text('[{"synonyms": ["heavens"]}]')
    (tmp_path / "keys.json").write_text('{"sky": [], "sky": []}')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "comments.txt").write_text("# sky\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "huge.txt").write_bytes(b"word\n" * 1_000_000)
    (tmp_path / "folder.txt").mkdir()
    return tmp_path


@pytest.mark.parametrize("kind", BAD_WORDS)
def test_bad_words_are_a_wrong_call(word_files: Path, kind: str) -> None:
    classes, expected = BAD_WORDS[kind]
    done = segment(photo(word_files / "a.png"), classes=classes)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("lexiseg: --classes: ")
    assert expected in line
    assert done.stdout == ""
    assert not (word_files / "out").exists()


def test_other_wrong_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = photo(tmp_path / "a.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "notes").mkdir()
    cases = {
        "no model or folder is called": segment(path, model="street-teeny"),
        "a folder without images": segment(tmp_path / "none"),
        "cannot be made": segment(path, "--out", tmp_path / "file" / "x"),
        "no device is called": lexiseg("segment", path, "--classes", "red", "--device", "gpu", "--model", "colours"),
        "lexiseg.json: missing": segment(path, model=str(tmp_path / "notes")),
    }
    for expected, done in cases.items():
        assert done.exit_code == 2, (expected, done.output)
        (line,) = done.stderr.splitlines()
        assert expected in line
    for arguments in (["segment"], ["segment", path], ["segment", "--classes", "sky"], ["nonsense"]):
        assert lexiseg(*arguments).exit_code == 2
    assert lexiseg("segment", path, "--classes", "red", "--task", "things").exit_code == 2


def test_bad_photos_do_not_end_a_batch_even_if_all_are_bad(tmp_path: Path) -> None:
    done = segment(tmp_path / "a.jpg", tmp_path / "b.jpg", "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 3
    assert done.stdout == ""


def test_results_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    good, blocked = photo(tmp_path / "good.png"), photo(tmp_path / "blocked.png")
    (tmp_path / "o" / "blocked.overlay.png").mkdir(parents=True)
    done = segment(blocked, good, "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert "cannot be written" in done.stderr
    assert (tmp_path / "o" / "good.json").is_file()


def test_given_masks(tmp_path: Path) -> None:
    path, labels = photo(tmp_path / "a.jpg"), np.zeros((40, 60), np.uint8)
    labels[5:20, 3:20], labels[30:, 40:] = 4, 9
    Image.fromarray(labels).save(tmp_path / "labels.png")
    for task, values in (("semantic", {0, 2, 255}), ("panoptic", {0, 1, 2}), ("instance", {0, 1, 2})):
        out = tmp_path / task
        done = segment(path, "--task", task, "--masks", tmp_path / "labels.png", "--out", out)
        assert done.exit_code == 0, done.output
        assert set(np.unique(Image.open(out / "a.labels.png"))) == values
    found = json.loads((tmp_path / "instance" / "a.json").read_text())["segments"]
    assert {s["mask_id"]: (s["label"], s["area"]) for s in found} == {4: ("red", 255), 9: ("blue", 200)}


def test_given_masks_for_many_photos(tmp_path: Path) -> None:
    photos = [photo(tmp_path / "photos" / name) for name in ("a.jpg", "b.png", "c.jpg", "d.jpg")]
    folder = tmp_path / "masks"
    folder.mkdir()
    np.save(folder / "a.npy", np.ones((2, 40, 60), bool))
    Image.fromarray(np.ones((40, 60), np.uint8)).save(folder / "b.png")
    (folder / "c.json").write_text(json.dumps([{"size": [40, 60], "counts": [30, 70]}]))
    done = segment(tmp_path / "photos", "--task", "instance", "--masks", folder, "--out", tmp_path / "o", "--json")
    assert done.exit_code == 1
    printed = json.loads(done.stdout)
    assert [len(entry["segments"]) for entry in printed["results"]] == [2, 1]
    assert [failure["photo"] for failure in printed["failures"]] == [str(path) for path in photos[2:]]
    assert "c.json: entry 1: its counts do not add up" in printed["failures"][0]["error"]
    assert "d.png: there is no such file" in printed["failures"][1]["error"]


def test_wrong_masks_are_a_wrong_call(tmp_path: Path) -> None:
    paths = [photo(tmp_path / "a.jpg"), photo(tmp_path / "b.png")]
    for masks, expected in (
        (tmp_path / "none", "there is no such file or folder"),
        (
            paths[1],
            "one file for 2 photos; give a folder of files named like them (.png, .npy, .npz, .json, .xml, .zip)",
        ),
        (tmp_path, "the photos are in this folder too"),
    ):
        done = segment(*paths, "--masks", masks, "--out", tmp_path / "o")
        assert done.exit_code == 2
        assert expected in " ".join(done.stderr.split()) and done.stderr.startswith(f"lexiseg: --masks {masks}: ")


def test_models() -> None:
    done = lexiseg("models")
    assert done.exit_code == 0
    assert "street-tiny" in done.stdout
    assert "non-commercial" in done.stdout
    assert "PQ 26.8" in done.stdout
    listed = json.loads(lexiseg("models", "--json").stdout)
    assert {"name", "title", "state", "published", "weights_licence"} <= set(listed[0])


def test_models_tells_what_the_card_says_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXISEG_MODELS", str(tmp_path))
    folder = tmp_path / "fcclip-rn50"
    folder.mkdir()
    settings = {
        "format": 1,
        "builder": "fcclip",
        "templates": "photo1",
        "card": {"measured": {"camvid": {"miou": 50.2}}},
    }
    (folder / "lexiseg.json").write_text(json.dumps(settings))
    assert "measured on camvid: miou 50.2" in lexiseg("models").stdout
    (folder / "lexiseg.json").write_text("{}")
    done = lexiseg("models")
    assert done.exit_code == 0
    assert str(folder) in done.stdout


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"nothing")
    for path in (tmp_path / "a.pth", tmp_path / "missing.pth"):
        done = lexiseg("convert", path)
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert path.name in line


def labelled_photos(folder: Path) -> Path:
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 1
    for name in ("p0", "p1", "p2"):
        photo(folder / "images" / f"{name}.jpg")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    description = {"name": "sides", "classes": ["left", "right"], "splits": {"test": ["p0", "p1", "p2"]}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled_photos(tmp_path / "sides")
    call = ("eval", "--benchmark", data, "--model", "colours", "--device", "cpu")
    done = lexiseg(*call, "--words", "red, blue", "--out", tmp_path / "o", "--json")
    assert done.exit_code == 0, done.output
    measured = json.loads(done.stdout)
    assert measured["photos"] == 3
    assert measured["miou"]["gt"] > 90
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        "colours.sides.test.json",
        "colours.sides.test.md",
        "colours.sides.test.records",
    ]
    assert "mIoU, rule `gt`" in lexiseg(*call, "--words", "red, blue", "--limit", 1).stdout
    (tmp_path / "list.txt").write_text("0:invalid_class_id\n1:red,crimson\n2:blue\n")
    told = json.loads(lexiseg(*call, "--class-list", tmp_path / "list.txt", "--json").stdout)
    assert told["classes"][0]["phrases"] == ["red", "crimson"]
    accuracy = json.loads(lexiseg(*call, "--words", "red, blue", "--given-masks", "classes", "--json").stdout)
    assert accuracy["mask_accuracy"]["mean"] == 100
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    other = lexiseg(*call, "--words", "red, blue", "--out", tmp_path / "shared")
    assert (other.exit_code, other.stdout) == (0, ""), "the first process has the numbers"


def test_eval_of_several_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, models = labelled_photos(tmp_path / "sides"), {name: colour_model(name) for name in ("first", "second")}
    monkeypatch.setattr("lexiseg.segmenter.load", lambda name, device: models[str(name)])
    call = ("eval", "--benchmark", data, "--model", "first", "--model", "second", "--words", "red, blue")
    done = lexiseg(*call, "--device", "cpu", "--out", tmp_path / "o", "--html")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "o" / "second.sides.test.html").is_file()
    assert "| second | first | mIoU | +0.0 | +0.0 to +0.0 | no |" in done.stdout
    assert (tmp_path / "o" / "comparison.sides.test.json").is_file()
    told = json.loads(lexiseg(*call, "--device", "cpu", "--json").stdout)
    assert [entry["model"] for entry in told["models"]] == ["first", "second"]


def test_eval_wrong_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXISEG_DATA", str(tmp_path / "prepared"))
    data = labelled_photos(tmp_path / "sides")
    call = ("eval", "--benchmark", data, "--model", "colours", "--device", "cpu")
    for wrong, message in (
        (("--words", "red"), "2 classes"),
        (("--split", "nowhere"), "no split 'nowhere'"),
        (("--words", ""), "empty"),
        (("--measures", "miou,nonsense"), "no measure is called 'nonsense'"),
        (("--words", "red, blue", "--class-list", "x"), "give one of them"),
        (("--class-list", tmp_path / "absent.txt"), "no such file"),
        (("--html",), "the page needs a folder"),
    ):
        done = lexiseg(*call, *wrong)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
    for benchmark, message in (
        (tmp_path / "nothing.zip", "no benchmark or file is called"),
        ("voc-21", "lexiseg data prepare voc-21 --source DIR"),
        (tmp_path, "no dataset.json inside"),
    ):
        done = lexiseg("eval", "--benchmark", benchmark, "--model", "colours")
        assert done.exit_code == 2
        (line,) = done.stderr.splitlines()
        assert message in line


def test_data_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXISEG_DATA", str(tmp_path / "prepared"))
    listed = lexiseg("data", "prepare")
    assert listed.exit_code == 0
    assert "voc-21" in listed.stdout
    assert "VOCtrainval_11-May-2012.tar" in listed.stdout
    voc(tmp_path / "source")
    done = lexiseg("data", "prepare", "voc-21", "--source", tmp_path / "source")
    assert done.exit_code == 1, done.output  # three of 1449 photos
    assert "3 photos of PASCAL VOC-21" in done.stdout
    assert "3 photos where PASCAL VOC-21, background by its name has 1449" in done.stderr
    assert (tmp_path / "prepared/voc-21/dataset.json").is_file()
    (tmp_path / "empty").mkdir()
    for wrong, message in (
        (("nonsense",), "choose one of"),
        (("voc-21",), "give the folder with its files as --source"),
        (("voc-20", "--source", tmp_path / "empty"), "nothing in it"),
        (("cityscapes", "--source", tmp_path / "source"), "3 parts of Cityscapes are missing"),
    ):
        done = lexiseg("data", "prepare", *wrong)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
    assert len(done.stderr.splitlines()) == 4


def test_train_lists_recipes_and_shows_their_options() -> None:
    listed = lexiseg("train")
    assert listed.exit_code == 0
    assert lexiseg("train", "--help").stdout == listed.stdout
    for name in RECIPES:
        assert name in listed.stdout
        shown = lexiseg("train", name, "--help")
        assert shown.exit_code == 0, shown.output
        assert "--out" in shown.stdout
    for wrong in (
        ["nonsense"],
        ["tiny-text"],
        ["tiny-text", "--out", "x", "--steps", "many"],
        ["tiny-text", "--nonsense"],
    ):
        assert lexiseg("train", *wrong).exit_code == 2
    assert "choose one of" in lexiseg("train", "nonsense").stderr


def test_train_passes_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, object] = {}

    def recipe(
        data: Path,
        out: Path,
        mixture: dict[str, float],
        steps: int = 5,
        deadline: float | None = None,
        start: Path | None = None,
    ) -> bool:
        given.update(locals())
        return False

    monkeypatch.setattr("lexiseg.train.recipes.tiny_tower.train", recipe)
    done = lexiseg("train", "street-tiny-tower", "--data", "d", "--out", tmp_path, "--minutes", "2", "--start", "s")
    assert done.exit_code == 0, done.output
    assert "goes on from here" in done.stderr
    assert (given["data"], given["out"], given["steps"], given["start"]) == (Path("d"), tmp_path, 5, Path("s"))
    assert given["mixture"]["camvid"] > 0
    assert 100 < given["deadline"] - time.time() < 121


def test_a_model_folder_of_the_real_kind(tmp_path: Path) -> None:
    """Random weights: the words mean nothing, but everything between the files and the files runs."""
    torch.manual_seed(0)
    system, text = fcclip(TOWERS["resnet"], device="cpu", **GENERATOR), text_encoder(TOWERS["resnet"], device="cpu")
    folder = save_model_folder(
        tmp_path / "toy",
        system,
        text,
        builder="fcclip",
        arguments={"tower": TOWERS["resnet"], **GENERATOR},
        templates="photo1",
        canvas=Canvas(64, 96),
    )
    paths = [photo(tmp_path / "a.jpg"), photo(tmp_path / "b.jpg", 50, 33)]
    for task in ("semantic", "panoptic", "instance"):
        done = segment(*paths, "--task", task, "--out", tmp_path / task, model=str(folder))
        assert done.exit_code == 0, done.output
        assert json.loads((tmp_path / task / "b.json").read_text())["model"] == "toy"
        assert read_image(tmp_path / task / "b.labels.png").size_hw == (50, 33)


def test_help_is_fast_and_names_the_commands() -> None:
    program = (
        "import sys\n"
        "from lexiseg.apps.cli import app\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)\n"
        "app(['--help'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for command in ("segment", "models", "convert", "train", "eval", "data"):
        assert command in done.stdout

"""`lexiseg batch`."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from tests.bulk.colour_batch import WORDS, batch, write_photos

pytestmark = pytest.mark.usefixtures("colours_by_name")


def lexiseg(*arguments: object, classes: str = WORDS) -> Result:
    told = ("batch", *arguments, "--classes", classes, "--model", "colours", "--device", "cpu")
    return CliRunner().invoke(app, [str(argument) for argument in told])


def test_it_says_what_it_did(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    done = lexiseg(photos, "--out", out)
    assert done.exit_code == 0 and done.stdout == f"{out / 'coco.json'}: 3 of 3 photos, 3 new\n", done.output
    assert lexiseg(photos, "--out", out).stdout == f"{out / 'coco.json'}: 3 of 3 photos, 0 new\n"
    batch(photos, tmp_path / "called")
    assert (tmp_path / "called" / "coco.json").read_bytes() == (out / "coco.json").read_bytes()


def test_failures(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "out"
    (photos / "bad.jpg").write_bytes(b"no picture")
    done = lexiseg(photos, "--out", out, "--format", "png", "--task", "panoptic")
    assert done.exit_code == 1 and f"{out}: 3 of 4 photos, 3 new" in done.stdout
    assert done.stderr == f"lexiseg: 1 photos failed: {out / 'failures.jsonl'}\n"
    assert json.loads((out / "failures.jsonl").read_text())["photo"] == "bad.jpg"


def test_wrong_calls_are_told_in_one_line(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    assert lexiseg(photos, "--out", out).exit_code == 0
    write_photos(tmp_path / "taken", 1)
    for options, said in (
        ((photos, "--out", out, "--task", "panoptic"), "holds results of other settings (task)"),
        ((photos, "--out", out, "--tile", 256), "holds results of other settings (tiles)"),
        ((photos, "--out", tmp_path / "taken"), "holds other files, and no batch"),
        ((photos / "missing", "--out", out), "there is no such folder or file"),
        ((photos, "--out", photos), "what lies in the folder for the results does not count"),
    ):
        done = lexiseg(*options)
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.output
    assert "other settings (words)" in lexiseg(photos, "--out", out, classes="red").stderr


def test_ray_may_have_an_address_and_never_takes_the_input_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    monkeypatch.setitem(sys.modules, "ray", None)
    for options in (
        (photos, "--out", out, "--ray"),
        ("--ray", photos, "--out", out),
        (photos, "--ray", "--out", out, "--workers", 2),
        (photos, "--out", out, "--ray", "auto"),
        (photos, "--ray", "10.0.0.1:6379", "--out", out),
        (photos, "--ray=head:6379", "--out", out),
    ):
        done = lexiseg(*options)
        assert done.exit_code == 2 and "pip install 'lexiseg[ray]'" in done.stderr, done.output
    done = lexiseg(photos, "--out", out, "--workers", 2)
    assert done.exit_code == 2 and "are of --ray: give that too" in done.stderr
    assert lexiseg(photos, "--out", out).exit_code == 0


def test_options_that_change_results_are_part_of_the_batch(tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos", 2), tmp_path / "out"
    assert lexiseg(photos, "--out", out, "--augment").exit_code == 0
    done = lexiseg(photos, "--out", out)
    assert done.exit_code == 2 and "holds results of other settings (augmented, weights)" in done.stderr
    assert "skip_decided is for models with" in lexiseg(photos, "--out", tmp_path / "b", "--skip-decided").stderr
    assert "give their size as --tile" in lexiseg(photos, "--out", tmp_path / "c", "--context", 0.5).stderr
    done = lexiseg(photos, "--out", "s3://bucket/out")
    assert done.exit_code == 2 and "results are written to a folder" in done.stderr

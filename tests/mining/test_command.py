"""`lexiseg data mine` and what follows it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from lexiseg.data.pairs import MaskWordPairs
from lexiseg.mining import running
from tests.colour_model import colour_model
from tests.mining.colour_photos import write_photos


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "miner_model", lambda settings, device: colour_model())


def mine(folder: Path, *arguments: object) -> Result:
    source = write_photos(folder)
    told = ("data", "mine", source.captions, "--images", source.images, "--out", folder / "out", "--device", "cpu")
    return CliRunner().invoke(app, [str(argument) for argument in (*told, *arguments)])


def test_pairs_counts_and_sheet(tmp_path: Path) -> None:
    done = mine(tmp_path, "--words", "red, green, blue, cloud", "--captions-per-photo", 2, "--shard-photos", 3)
    assert done.exit_code == 0, done.output
    assert "17 nouns, 17 pairs of 4 words" in done.output and "sheet.png" in done.output
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert names == ["plan.json", *(f"shard-0000{n}.zip" for n in range(3)), "sheet.png", "summary.json", "words.tsv"]
    assert len(MaskWordPairs(tmp_path / "out")) == 17
    again = mine(tmp_path, "--words", "red, green, blue, cloud", "--captions-per-photo", 2, "--shard-photos", 3)
    assert again.exit_code == 0 and again.output == done.output


def test_a_photo_that_cannot_be_read(tmp_path: Path) -> None:
    write_photos(tmp_path)
    source = tmp_path / "captions.tsv"
    source.write_text("0.png\tred\nmissing.png\tred\n")
    told = ("data", "mine", source, "--images", tmp_path / "images", "--out", tmp_path / "out", "--words", "red")
    done = CliRunner().invoke(app, [str(argument) for argument in told])
    assert done.exit_code == 1 and "missing.png" in done.output and "1 pairs" in done.output


def test_wrong_calls_are_told_in_one_line(tmp_path: Path) -> None:
    assert mine(tmp_path, "--words", "violet").exit_code == 2
    assert mine(tmp_path, "--words", "red").exit_code == 0
    done = mine(tmp_path, "--words", "red", "--mutual")
    assert done.exit_code == 2 and "made otherwise (settings.filters differ)" in done.output
    lone = CliRunner().invoke(app, ["data", "mine", str(tmp_path / "captions.tsv"), "--out", str(tmp_path / "x")])
    assert lone.exit_code == 2 and "folder of their photos" in lone.output

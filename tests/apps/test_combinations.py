"""Every combination of docs/combinations.md, built of small random parts on disk and run by the commands on a photo."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from lexiseg.scoring.fusion import GeometricEnsemble, PowerProduct, RegionOnly, RegionWithVoid
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model
from tests.eva_towers import EVA_TOWERS
from tests.proposals.tiny_transformers import tiny_eomt, tiny_mask2former, tiny_sam, tiny_sam2, tiny_sam3
from tests.zoo.toy_folders import TRANSFORMER, toy_model, toy_open_clip

PAGE = Path(__file__).resolve().parents[2] / "docs" / "combinations.md"
WORDS = "sky, tree | bush, water, building | temple"
SIZE = (96, 64)

POINTS = ["points_per_side=3", "min_quality=-1e9", "min_stability=-1"]
"""A random SAM finds none of its masks good."""

CLASSIFIERS = {
    "FC-CLIP": "fcclip",
    "FC-CLIP on a CLIP ResNet": "resnet",
    "MAFT+": "maftplus",
    "Mask-Adapter on FC-CLIP": "mask_adapter_fcclip",
    "Mask-Adapter on MAFT+": "mask_adapter_maftplus",
    "MaskCLIP++ (with its ensemble)": "maskclip_pp",
    "OVSeg": "ovseg",
    "MAFT": "maft",
    "clustered": "clustered",
    "a CLIP alone (open_clip)": "open_clip",
}
"""Row of the table -> part."""

GENERATORS = {
    "its own": "own",
    "given masks": "given",
    "FC-CLIP's": "fcclip",
    "MAFT+'s": "maftplus",
    "OVSeg's": "ovseg",
    "MAFT's": "maft",
    "clusters": "clustered",
    "Mask2Former": "mask2former",
    "EoMT": "eomt",
    "SAM": "sam",
    "SAM 2": "sam2",
    "SAM 3": "sam3",
}
"""Column of the table -> part."""

TASKS = ("semantic", "panoptic", "instance")


def verdict(fuse: Any) -> str:
    """How the two parts are put together, as the table says it."""
    if isinstance(fuse, RegionOnly):
        return "CLIP"
    if isinstance(fuse, PowerProduct):
        return "both"
    if isinstance(fuse, RegionWithVoid) or (fuse.alpha, fuse.beta) == (1, 1):
        return "CLIP + void"
    assert isinstance(fuse, GeometricEnsemble)
    return "both"


def lexiseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("parts")
    made = {
        builder: toy_model(root / builder, builder, seed=number)
        for number, builder in enumerate(
            ("fcclip", "maftplus", "mask_adapter_fcclip", "mask_adapter_maftplus", "clustered")
        )
    }
    made["maskclip_pp"] = toy_model(root / "maskclip_pp", "maskclip_pp", EVA_TOWERS["eva02"], seed=8)
    made["resnet"] = toy_model(root / "resnet", "fcclip", "resnet", seed=9)
    made["ovseg"] = toy_model(root / "ovseg", "ovseg", TRANSFORMER, seed=11)
    made["maft"] = toy_model(root / "maft", "maft", TRANSFORMER, seed=12)
    made["open_clip"] = toy_open_clip(root / "open_clip", seed=10)
    for make in (tiny_mask2former, tiny_eomt, tiny_sam, tiny_sam2, tiny_sam3):
        name = make.__name__.removeprefix("tiny_")
        made[name] = root / name
        made[name].mkdir()
        make(made[name])
    return made


@pytest.fixture(scope="module")
def photo(china_photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real photo, made small, with masks of it beside it: its left half and a small window."""
    folder = tmp_path_factory.mktemp("photo")
    with Image.open(china_photo) as picture:
        picture.resize(SIZE).save(folder / "china.jpg")
    labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    labels[:, : SIZE[0] // 2] = 1
    labels[50:54, 80:83] = 2
    Image.fromarray(labels).save(folder / "masks.png")
    return folder / "china.jpg"


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], str]:
    """(row, column) -> cell of the table in the documents."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    first = next(number for number, row in enumerate(rows) if row[0] == "classifier \\ generator")
    columns, found = rows[first][1:], {}
    for row in rows[first + 2 :]:
        if len(row) != len(columns) + 1:
            break
        found |= {(row[0], column): cell for column, cell in zip(columns, row[1:], strict=True)}
    return found


def built(parts: dict[str, Path], regions: str, proposals: str, out: Path) -> Path:
    """The folder of a combination, made by the command."""
    if proposals == "own":
        return parts[regions]
    drawn = "given" if proposals == "given" else parts[proposals]
    settings = [part for text in POINTS if proposals.startswith("sam") for part in ("--setting", text)]
    done = lexiseg("compose", "--proposals", drawn, "--regions", parts[regions], "--out", out, *settings)
    assert done.exit_code == 0, done.output
    assert str(out) in done.stdout
    return out


def check(folder: Path, photo: Path, out: Path, task: str, given: bool) -> None:
    masks = ["--masks", photo.parent / "masks.png"] if given else []
    done = lexiseg("segment", photo, "--model", folder, "--classes", WORDS, "--task", task, "--out", out, *masks)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["china.json", "china.labels.png", "china.overlay.png"]
    written: dict[str, Any] = json.loads((out / "china.json").read_text())
    assert (written["width"], written["height"], written["task"], written["model"]) == (*SIZE, task, folder.name)
    with Image.open(out / "china.labels.png") as picture, Image.open(out / "china.overlay.png") as overlay:
        labels = np.array(picture)
        assert overlay.width % SIZE[0] == 0 and overlay.mode == "RGB"
    assert labels.shape == SIZE[::-1]
    for segment in written["segments"]:
        assert 0 <= segment["score"] <= 1 and 0 < segment["area"] <= labels.size
        if task != "instance":
            assert segment["area"] == (labels == segment["id"]).sum()
    if given and task != "semantic":
        assert {segment["mask_id"]: segment["area"] for segment in written["segments"]} == {1: 48 * 64, 2: 12}


def _pairs() -> Iterator[Any]:
    for number, (row, regions) in enumerate(CLASSIFIERS.items()):
        for column, proposals in GENERATORS.items():
            if (regions, proposals) == ("open_clip", "own"):
                continue
            yield pytest.param(row, column, TASKS[number % 3], id=f"{regions}-{proposals}")


PAIRS = list(_pairs())


@pytest.mark.parametrize(("row", "column", "task"), PAIRS)
def test_every_combination_runs(
    row: str,
    column: str,
    task: str,
    table: dict[tuple[str, str], str],
    parts: dict[str, Path],
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[Model] = []

    def look_on(*arguments: Any) -> Model:
        loaded.append(load(*arguments))
        return loaded[-1]

    monkeypatch.setattr("lexiseg.segmenter.load", look_on)
    folder = built(parts, CLASSIFIERS[row], GENERATORS[column], tmp_path / "pair")
    check(folder, photo, tmp_path / "out", task, given=column == "given masks")
    # Any model names given masks, composed for it or not, and then its own fusion has no part in it.
    found = "CLIP" if column == "given masks" else verdict(loaded[-1].system.fuse)
    assert table[row, column] == found, f"docs/combinations.md: {row}, {column}"


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("row", "column", "usual"), PAIRS)
def test_every_combination_runs_every_task(
    row: str, column: str, usual: str, task: str, parts: dict[str, Path], photo: Path, tmp_path: Path
) -> None:
    folder = built(parts, CLASSIFIERS[row], GENERATORS[column], tmp_path / "pair")
    check(folder, photo, tmp_path / "out", task, given=column == "given masks")


def test_the_table_is_about_these_parts(table: dict[tuple[str, str], str]) -> None:
    expected = {(row, column) for row in CLASSIFIERS for column in GENERATORS}
    assert set(table) == expected
    assert table["a CLIP alone (open_clip)", "its own"] == "–"


def test_in_a_process_of_its_own(parts: dict[str, Path], photo: Path, tmp_path: Path) -> None:
    folder = built(parts, "mask_adapter_fcclip", "sam2", tmp_path / "pair")
    command = [sys.executable, "-m", "lexiseg.apps.cli", "segment", str(photo), "--model", str(folder)]
    options = ["--classes", WORDS, "--task", "panoptic", "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and (tmp_path / "out" / "china.overlay.png").is_file()


def test_pairs_that_cannot_work_are_a_wrong_call(parts: dict[str, Path], photo: Path, tmp_path: Path) -> None:
    given = built(parts, "fcclip", "given", tmp_path / "given")
    cases: list[tuple[list[object], str]] = [
        (["--proposals", given, "--regions", parts["fcclip"]], "given is itself composed"),
        (["--proposals", "given", "--regions", parts["fcclip"], "--alpha", 0.5], "knows no classes"),
        (["--proposals", parts["sam"], "--regions", parts["fcclip"], "--setting", "points=3"], "no setting points"),
        (["--proposals", parts["sam"], "--regions", parts["fcclip"], "--setting", "points"], "write NAME=NUMBER"),
        (["--proposals", "no-such", "--regions", parts["fcclip"]], "no model or folder is called 'no-such'"),
    ]
    for arguments, expected in cases:
        done = lexiseg("compose", *arguments, "--out", tmp_path / "none")
        assert done.exit_code == 2, done.output
        (line,) = done.stderr.splitlines()
        assert re.search(expected, line), line
    assert not (tmp_path / "none").exists()
    done = lexiseg("segment", photo, "--model", given, "--classes", "sky", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "draws no masks of its own: give the photos' masks" in done.stderr

"""Training the image tower, on photos of a few colours."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lexiseg.data.packages import LabelledPhotos
from lexiseg.train.lexicon import load_lexicon
from lexiseg.train.loop import RunState, run
from lexiseg.train.recipes import tiny_tower
from lexiseg.train.recipes.tiny_clip import CONFIG, write
from lexiseg.train.recipes.tiny_tower import DenseStage, LabelTable, Photos, Tower, build_table, label_losses
from tests.train.recipes.stripes import package

COCO = ["person", "car", "door", "window", "sky", "building", "tree"]


@pytest.fixture
def packages(tmp_path: Path) -> list[LabelledPhotos]:
    return [
        package(tmp_path, "camvid", ["sky", "building", "road", "pedestrian", "tree"]),
        package(tmp_path, "coco_panoptic", COCO),
        package(tmp_path, "coco_things", COCO, ignored=True),
    ]


@pytest.fixture
def table(packages: list[LabelledPhotos]) -> LabelTable:
    return build_table(packages, load_lexicon())


def test_table_knows_what_excludes_what(table: LabelTable) -> None:
    def rivals(key: str, name: str) -> set[str]:
        return {c for c, flag in zip(table.concepts, table.rival[table.rows[key, name]], strict=True) if flag}

    assert "window" not in rivals("camvid", "building")  # its buildings have windows
    assert "window" in rivals("coco", "building")  # COCO labels both
    assert "person" not in rivals("camvid", "pedestrian")
    assert "road" in rivals("camvid", "pedestrian")
    none = {c for c, flag in zip(table.concepts, table.rival[table.none_row], strict=True) if flag}
    assert none == {"person", "car"}
    agree = {c for c, flag in zip(table.concepts, table.agree[table.none_row] == 0, strict=True) if flag}
    assert not agree & {"person", "car", "pedestrian"}
    assert "sky" in agree


def test_words_without_photos_are_wrong_where_something_else_is_shown(table: LabelTable) -> None:
    unseen = {c for c, flag in zip(table.concepts, table.unseen, strict=True) if flag}
    assert {"lake", "temple"} <= unseen
    assert not unseen & {"sky", "building", "shadow"}  # two have photos, the third may lie on anything
    rival = dict(zip(table.concepts, table.rival[table.rows["camvid", "building"]].tolist(), strict=True))
    assert rival["lake"] and not rival["temple"]
    assert not any(listed[table.unseen].any() for listed in table.sets.values())


def test_losses_by_hand(table: LabelTable) -> None:
    column = {c: i for i, c in enumerate(table.concepts)}
    logits = torch.zeros(2, len(column))
    logits[0, column["building"]] = 1.0
    rows = torch.tensor([table.rows["camvid", "building"], table.none_row])
    candidates = torch.zeros(2, len(column), dtype=torch.bool)
    candidates[:, [column["building"], column["sky"], column["window"]]] = True
    first, union = label_losses(logits, rows, candidates, table, smoothing=0.0)
    # Sky is the only full rival in the running: a window may be part of the building and counts a little; "none" has
    # no say here.
    assert float(first) == pytest.approx(np.log((np.e + 2) / (np.e + tiny_tower.PART_WEIGHT)), abs=1e-5)
    weights = table.agree.exp()
    agree = float(weights[rows[0]].sum()) - 1 + np.e
    everything = len(column) - 1 + np.e
    none = float(weights[table.none_row].sum()) / len(column)
    assert float(union) == pytest.approx((np.log(everything / agree) - np.log(none)) / 2, abs=1e-5)


def test_coco_things_leave_unlabelled_pixels_to_the_none_row(packages: list[LabelledPhotos], table: LabelTable) -> None:
    photos = Photos(packages[2], "train", table)
    rows = np.asarray(photos.photos[0].rows)
    assert (rows[-1] == table.none_row).all()
    assert {cutout.row for cutout in photos.cutouts} == {table.rows["coco", "person"], table.rows["coco", "car"]}


def test_a_few_steps_learn_and_can_be_exported(
    packages: list[LabelledPhotos], table: LabelTable, tmp_path: Path
) -> None:
    plan = replace(tiny_tower.FIRST, phases=((0.5, 64, 2), (1.0, 96, 2)))
    torch.manual_seed(0)
    lexicon = load_lexicon()
    names = {n: F.normalize(torch.randn(256), dim=0) for c in table.concepts for n in lexicon.concepts[c].names}
    tower = Tower()
    stage = DenseStage(
        tower, [Photos(p, "train", table) for p in packages], [1.0] * 3, table, lexicon, names, total_steps=6, plan=plan
    )
    state = RunState(tower, torch.optim.AdamW(tower.parameters()))
    assert run(stage, state, 6, tmp_path / "tower", learning_rate=1e-3, warmup=2, log_every=3)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "tower" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(losses))

    image, rows, key = stage.crop(random.Random(3), 64)
    assert image.shape == (64, 64, 3)
    assert rows.shape == (16, 16)
    assert key in ("camvid", "coco")

    (tmp_path / "text").mkdir()
    torch.save({"averaged": {"text_projection": torch.zeros(2, 3)}}, tmp_path / "text" / "checkpoint.pt")
    write(tmp_path / "tower", tmp_path / "text", tmp_path / "clip")
    assert json.loads((tmp_path / "clip" / "config.json").read_text()) == CONFIG
    assert (tmp_path / "clip" / "clip.safetensors").stat().st_size < 20e6

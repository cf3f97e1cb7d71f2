"""MaskCLIP++ on masks of one's own: the whole command on toys, in every format, killed and started again."""

import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from lexiseg.apps.cli import app
from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.data.user_masks import DataProblems
from lexiseg.evaluation import evaluate_model
from lexiseg.proposals.fcclip import FCCLIPGenerator
from lexiseg.train.mask_report import Named, agreement, change_of
from lexiseg.train.recipes import maskclip_pp as recipe
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.maskclip_pp import maskclip_pp
from lexiseg.zoo.model_folder import load_folder, save_model_folder
from lexiseg.zoo.untuned import untuned
from tests.eva_towers import EVA_TOWERS
from tests.zoo.conftest import GENERATOR, TOWERS
from tests.zoo.test_untuned import clip_folder, tuned_folder

OPTIONS: dict[str, Any] = {"steps": 2, "batch": 2, "crop": 64, "seed": 3}


def pixels(number: int, height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A photo and its labels: left bright (0), right dark (2), one row of 1 below, the last column unlabelled."""
    labels = np.full((height, width), 2, np.uint8)
    labels[:, : width // 2] = 0
    labels[-8:] = 1
    image = np.random.default_rng(number).integers(0, 60, (height, width, 3))
    image += np.array([180, 90, 0])[labels][..., None]
    labels[:, -1] = 255
    return image.astype(np.uint8), labels


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, id in enumerate("abcdef"):
        image, labels = pixels(number, 40 + number)
        Image.fromarray(image).save(folder / "images" / f"{id}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{id}.png")
    (folder / "classes.txt").write_text("wall | brick wall\ngrass\ndog\n")
    return folder


def as_package(folder: Path) -> Path:
    splits = {"train": list("abcd"), "val": list("ef")}
    description = {"name": "mine", "classes": ["wall", "grass", "dog"], "image_suffix": ".png", "splits": splits}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def as_coco(folder: Path, ids: str, name: str) -> Path:
    """The photos of a folder of label pictures as a COCO panoptic file."""
    document: dict[str, Any] = {
        "categories": [{"id": 5 * n, "name": word} for n, word in enumerate(("wall", "grass", "dog"), 1)],
        "images": [{"id": n, "file_name": f"{id}.png"} for n, id in enumerate(ids)],
        "annotations": [],
    }
    (folder / name).mkdir()
    for number, id in enumerate(ids):
        labels = np.asarray(Image.open(folder / "labels" / f"{id}.png")).astype(int)
        segments = np.where(labels == 255, 0, 300 + labels)
        colours = np.stack([segments % 256, segments // 256, 0 * segments], -1).astype(np.uint8)
        Image.fromarray(colours).save(folder / name / f"{id}.png")
        listed = [{"id": 300 + n, "category_id": 5 * (n + 1), "iscrowd": 0} for n in range(3)]
        document["annotations"].append({"image_id": number, "file_name": f"{id}.png", "segments_info": listed})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Path:
    return clip_folder(tmp_path / "clip", TOWERS["convnext linear"], templates=["a photo of a {}.", "{}"])


def report_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


# ------------------------------------------------------------------------------------------------------------ settings


def test_schedule_goes_from_the_rate_to_its_last() -> None:
    """More points, and the groups, are compared with recorded ones by tools/parity.py."""
    rates = [2e-4 * recipe.cosine_schedule(step, 20_000) for step in (0, 10_000, 20_000)]
    assert rates == pytest.approx([2e-4, 1.05e-4, 1e-5])
    assert 1e-4 * recipe.cosine_schedule(100, 100, last=0.1) == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("tower", "expected"),
    [
        ("convnext_base_w_320", (2e-4, 1e-3, "fixed", 1024)),
        ("convnext_large_d_320", (1e-4, 1e-3, "fixed", 1024)),
        ("convnext_xxlarge", (1e-4, 1e-3, "fixed", 1024)),
        ("RN50x16", (2e-4, 1e-2, "batch", 1024)),
        ("EVA02-B-16", (2e-4, 1e-2, "fixed", 512)),
        ("EVA02-L-14-336", (2e-4, 1e-2, "fixed", 448)),
        ("EVA01-g-14-plus", (2e-4, 1e-2, "fixed", 448)),
    ],
)
def test_habits_are_those_of_the_paper(tower: str, expected: tuple[Any, ...]) -> None:
    habits = recipe.habits_of(tower, 512)
    assert (habits.learning_rate, habits.tower_scale, habits.batch_norm, habits.crop) == expected
    assert habits.smallest_scale == 0.1


def test_crops_of_both_mappers() -> None:
    image, labels = pixels(0, 80, 120)
    photo = PanopticPhoto(image, labels.astype(np.int32) + 1, {1: 0, 2: 1, 3: 2})
    arguments = (64, (0.5, 2.0), 32, torch.device("cpu"))
    images, targets = recipe.batch_of(random.Random(1), [photo, photo], "large-scale", *arguments)
    assert images.sizes_hw == ((64, 64),) * 2 and all(len(target.labels) == 3 for target in targets)
    seen = set()
    for seed in range(12):
        images, targets = recipe.batch_of(random.Random(seed), [photo], "short-edge", *arguments)
        assert max(images.sizes_hw[0]) <= 64 and images.canvas_hw[0] % 32 == 0
        assert targets[0].masks.flatten(1).any(1).all()  # what a crop has lost is gone
        seen.add((images.sizes_hw[0], len(targets[0].labels)))
    assert len(seen) > 3


# --------------------------------------------------------------------------------------------------------- the command


def test_label_pictures_end_to_end(mine: Path, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data", mine, "--start", start, "--out", out, "--hold-out", "Grass"]
    for name, value in OPTIONS.items():
        arguments += [f"--{name}", value]
    done = CliRunner().invoke(app, ["train", "maskclip-pp", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "| seen classes | 2 |" in done.output and "| unseen classes (grass) | 1 |" in done.output
    assert "called the same as before among" in done.output and done.output.strip().endswith(
        (out / "report.md").read_text().strip()
    )
    model = load_folder(out / "model")
    assert model.training_phrases == ("wall", "brick wall", "dog")  # what was held out is unknown to it
    assert model.card["settings"]["steps"] == 2 and not model.mix_templates
    given = untuned(start).embedder.state_dict()
    assert not torch.equal(
        model.system.embedder.state_dict()["trunk.trunk.stem.0.weight"], given["trunk.trunk.stem.0.weight"]
    )
    again = CliRunner().invoke(app, ["train", "maskclip-pp", *map(str, arguments)])  # complete: it only tells
    assert again.exit_code == 0 and "| seen classes | 2 |" in again.output


def test_numbers_are_those_of_the_evaluation(mine: Path, start: Path, tmp_path: Path) -> None:
    data = as_package(mine)
    out = tmp_path / "out"
    assert recipe.train_masks(data, out, str(start), similarity="template-mix", **OPTIONS)
    told = report_of(out)["mask_accuracy_percent"]["seen classes"]
    measured = evaluate_model(out / "model", data, split="val", given_masks="classes", device="cpu", progress=False)
    assert told["after"] == pytest.approx(100 * measured.masks.mean, abs=1e-3)
    assert told["masks"] == 6


def test_coco_panoptic_with_validation_and_a_second_set(mine: Path, start: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    train, val = as_coco(mine, "abcd", "train"), as_coco(mine, "ef", "val")
    other = tmp_path / "second"
    for part in ("images", "labels"):
        (other / part).mkdir(parents=True)
    image, labels = pixels(9)
    Image.fromarray(image).save(other / "images" / "x.png")
    Image.fromarray(labels).save(other / "labels" / "x.png")
    (other / "classes.txt").write_text("brick\nlawn\ndog\n")
    out = tmp_path / "out"
    arguments = {"val": val, "unseen": other, "words": "tuned", "crops": "short-edge", "alignment": "off"}
    assert recipe.train_masks(train, out, str(start), **arguments, **OPTIONS)
    told = report_of(out)
    rows = told["mask_accuracy_percent"]
    assert {title: row["masks"] for title, row in rows.items()} == {
        "seen classes": 6,
        "unseen classes": 0,
        "second, unseen classes": 2,
        "second, seen classes": 1,
    }
    assert told["settings"]["similarity"] == "template-mean" and told["settings"]["words"] == "tuned"
    words = [load_folder(folder).text_encoder().state_dict() for folder in (start, out / "model")]
    changed = {name for name, tensor in words[0].items() if not torch.equal(tensor, words[1][name])}
    assert "transformer.resblocks.0.attn.in_proj_weight" in changed and "token_embedding.weight" not in changed


@pytest.mark.parametrize("name", ["resnet", "eva02"])
def test_other_towers_and_their_options(name: str, mine: Path, tmp_path: Path) -> None:
    tower = TOWERS[name] if name in TOWERS else EVA_TOWERS[name]
    start = tuned_folder(tmp_path / "tuned", tower)
    options = {**OPTIONS, "crop": 64 if name in TOWERS else 56, "batches": "official"}
    options["precision"] = "bfloat16" if name == "resnet" else "float16"
    assert recipe.train_masks(mine, tmp_path / "out", str(start), **options)
    assert report_of(tmp_path / "out")["settings"]["batch_norm"] == ("batch" if name == "resnet" else "fixed")


def test_the_embedded_model_is_a_start(mine: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "steps": 1, "short_edge": 96}
    assert recipe.train_masks(mine, tmp_path / "out", "street-tiny", similarity="template-mix", **options)
    assert report_of(tmp_path / "out")["settings"]["tower_scale"] == 0.1


def test_no_generator_stays_in_memory(tmp_path: Path) -> None:
    tower = TOWERS["convnext mlp"]
    arguments = {"tower": tower, "generator_tower": tower, "short_edge": 64, **GENERATOR}
    folder = save_model_folder(
        tmp_path / "whole",
        maskclip_pp(**arguments, device="cpu"),
        text_encoder(tower, device="cpu"),
        builder="maskclip_pp",
        arguments=arguments,
        templates="fcclip14",
        mix_templates=False,
    )
    gc.collect()
    model = untuned(folder)
    gc.collect()
    assert not any(type(thing) is FCCLIPGenerator for thing in gc.get_objects())
    assert set(model.arguments) == {"tower", "short_edge"}


def test_it_learns(mine: Path, start: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "steps": 60, "learning_rate": 3e-3, "tower_scale": 1.0, "smallest_scale": 1.0}
    recipe.train_masks(mine, tmp_path / "out", str(start), similarity="template-mix", **options)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_a_run_killed_outright_goes_on_with_the_same_losses(mine: Path, start: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "steps": 100, "save_every": 20}
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    recipe.train_masks(mine, whole, str(start), **options)
    command = [sys.executable, "-m", "lexiseg.apps.cli", "train", "maskclip-pp", "--data", mine, "--start", start]
    command += [
        "--out",
        torn,
        *(part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen([str(part) for part in command], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (torn / "log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (torn / "model").exists()
    recipe.train_masks(mine, torn, str(start), **options)
    logs = []
    for out in (whole, torn):
        lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        logs.append({line["step"]: (line["loss"], line["norm"], line["lr"]) for line in lines})
    assert logs[0] == logs[1] and list(logs[0]) == [20, 40, 60, 80, 100]
    states = [load_folder(out / "model").system.state_dict() for out in (whole, torn)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert report_of(whole) == report_of(torn)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_wrong_data_is_told_before_anything_is_loaded(mine: Path, tmp_path: Path) -> None:
    (mine / "labels" / "a.png").unlink()
    (mine / "labels" / "zz.png").write_bytes(b"")
    done = CliRunner().invoke(
        app, ["train", "maskclip-pp", "--data", str(mine), "--start", "nobody", "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 2
    lines = done.stderr.strip().splitlines()
    assert [line.split(": ")[1].rpartition("/")[2] for line in lines] == ["a.png", "zz.png"]
    assert all(line.startswith("lexiseg: ") for line in lines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hold_out": "gras"}, "no class is called 'gras'; did you mean 'grass'"),
        ({"hold_out": "wall, grass, dog"}, "no class is left to train on"),
        ({"crops": "none"}, "--crops none: choose one of large-scale, short-edge"),
        ({"alignment": "off", "similarity": "pseudo-text"}, "--alignment off"),
        ({"precision": "float8"}, "--precision float8: choose one of"),
        ({"steps": 0}, "--steps 0: give a number above 0"),
    ],
)
def test_what_is_refused(options: dict[str, Any], told: str, mine: Path, start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        recipe.train_masks(mine, tmp_path / "out", str(start), **options)


def test_a_photo_of_both_splits_is_refused(mine: Path, tmp_path: Path) -> None:
    path = as_package(mine) / "dataset.json"
    path.write_text(path.read_text().replace('"val": ["e"', '"val": ["d"'))
    with pytest.raises(DataProblems, match="d: the photo is d of train and in val too"):
        recipe.train_masks(mine, tmp_path / "out")
    archive = shutil.make_archive(str(tmp_path / "mine"), "zip", mine.parent, "mine")  # where files have no path
    with pytest.raises(DataProblems, match="'d' is a photo of both splits"):
        recipe.train_masks(Path(archive), tmp_path / "zipped")


def test_other_settings_and_other_classes_are_refused(mine: Path, start: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not recipe.train_masks(mine, out, str(start), deadline=0.0, **OPTIONS)
    with pytest.raises(ValueError, match="a run with another batch and another seed began there"):
        recipe.train_masks(mine, out, str(start), **{**OPTIONS, "batch": 1, "seed": 4})
    train, val = as_coco(mine, "abcd", "train"), as_coco(mine, "ef", "val")
    val.write_text(val.read_text().replace("wall", "fence"))
    with pytest.raises(DataProblems, match="its classes differ from those of"):
        recipe.train_masks(train, out, str(start), val=val, **OPTIONS)


# ---------------------------------------------------------------------------------------------------------- the report


def test_changes_and_agreement() -> None:
    """Two photos of one mask of each of two classes: from one right of four to three."""
    before = torch.tensor([[[0, 0], [1, 1], [1, 1]], [[1, 0], [1, 1], [2, 0]]], dtype=torch.float64)
    after = torch.tensor([[[1, 1], [1, 1], [1, 1]], [[1, 0], [1, 1], [2, 0]]], dtype=torch.float64)
    one, other = Named(before, (1, 0, 0, 0)), Named(after, (0, 1, 0, 0))
    everything = torch.ones(2, dtype=torch.bool)
    change = change_of(one, other, everything)
    assert (change.before, change.after, change.masks) == (0.25, 0.75, 4)
    low, high = change.interval
    assert 0 <= low <= 0.5 <= high <= 1
    assert change_of(one, other, torch.tensor([True, False])).to_dict()["difference"] == 50.0
    assert change_of(one, other, ~everything).to_dict()["before"] is None
    assert agreement(one, other) == 0.5
    again = Named.from_dict(json.loads(json.dumps(one.to_dict())))
    assert torch.equal(again.counts, one.counts) and again.answers == one.answers

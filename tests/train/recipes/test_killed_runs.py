"""Recipes in processes of their own that are killed in the middle: the same command goes on to the same losses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lexiseg.train.loop import LOG
from lexiseg.zoo.model_folder import load_folder
from tests.train.recipes.test_maftplus import toy_model, toy_package

STEPS = 7
COMMON = ["--batch", "1", "--steps", str(STEPS), "--save-every", "2", "--log-every", "1"]
RECIPES = {
    "maftplus": ["--short-edge", "128", "--long-edge", "192", "--points", "16", *COMMON],
    "maftplus of segments": ["--targets", "segments", "--crop", "128", "--points", "16", *COMMON],
    "mask-adapter": [
        *("--warmup-steps", str(STEPS), "--warmup-batch", "1", "--warmup-crop", "64"),
        *("--crop", "64", "--adapter-width", "8", "--long-edge", "96", *COMMON),
    ],
}
LIMIT_S = 120


def logs(out: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Stage -> step -> its numbers, but for the time; of a step done twice, the later ones."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for log in out.rglob(LOG):
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        found[log.parent.name] = {line.pop("step"): line for line in lines if line.pop("seconds") >= 0}
    return found


def begin(recipe: str, data: Path, start: Path, out: Path) -> subprocess.Popen[bytes]:
    options = ["--data", str(data), "--start", str(start), "--out", str(out), *RECIPES[recipe]]
    command = [sys.executable, "-m", "lexiseg.apps.cli", "train", recipe.split()[0], *options]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_and_resumed_to_the_same_losses(recipe: str, tmp_path: Path) -> None:
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start")
    whole, torn = tmp_path / "whole" / "run", tmp_path / "torn" / "run"
    assert begin(recipe, data, start, whole).wait(LIMIT_S) == 0
    expected = logs(whole)
    assert all(set(steps) == set(range(1, STEPS + 1)) for steps in expected.values())

    for stage in range(1, len(expected) + 1):  # killed once in each of its stages, past a checkpoint
        process, deadline = begin(recipe, data, start, torn), time.time() + LIMIT_S
        while sum(len(steps) for steps in logs(torn).values()) < (stage - 1) * STEPS + 3:
            assert process.poll() is None and time.time() < deadline, "it ended before it could be killed"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (torn / "model").exists()
    assert begin(recipe, data, start, torn).wait(LIMIT_S) == 0
    assert logs(torn) == expected
    once, again = (load_folder(out / "model").system.state_dict() for out in (whole, torn))
    assert all(x.equal(again[name]) for name, x in once.items())

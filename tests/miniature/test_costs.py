"""Time and memory of real models, each in a process of its own."""

import json
import shutil
from pathlib import Path

import pytest

from lexiseg.miniature import costs as module
from lexiseg.miniature.costs import COSTS, PACKAGE, costs
from tests.zoo.toy_folders import toy_model


@pytest.mark.slow
def test_systems_take_turns(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(package, data / PACKAGE)
    models = {name: toy_model(tmp_path / name, "fcclip", seed=0) for name in ("one", "other")}
    monkeypatch.setattr(module, "TURNS", 1)
    found = costs(models, data, tmp_path)
    assert list(found) == ["one", "other"] and found["one"].times_first == 1
    assert all(cost.seconds > 0 and (cost.peak_memory_mb or 0) > 100 for cost in found.values())
    written = json.loads((tmp_path / COSTS).read_text())
    written["costs"]["other"]["seconds"] = 7.0
    (tmp_path / COSTS).write_text(json.dumps(written))
    assert costs(models, data, tmp_path)["other"].seconds == 7  # read, not measured again
    models["other"] = toy_model(tmp_path / "trained further", "fcclip", seed=1)
    assert costs(models, data, tmp_path)["other"].seconds < 7  # another model by the same name: measured anew

"""Shards shared among processes by a real, local Ray: the same files as from one process alone."""

import sys
from pathlib import Path

import pytest

from lexiseg.data.pairs import shard_path, shard_paths
from lexiseg.mining import scaling
from lexiseg.mining.running import MiningError, Run, Settings, Source, mine
from tests.mining.colour_photos import write_photos
from tests.quiet_ray import quiet_ray
from tests.train.recipes.test_maftplus import toy_model


def start(tmp_path: Path, name: str, source: Source) -> Run:
    model = tmp_path / "model"
    if not model.exists():
        toy_model(model)
    settings = Settings(str(model), pooled=True, words="red, green, blue", captions=2, shard_photos=2)
    return Run.start(tmp_path / name, source, settings)


@pytest.mark.slow
@quiet_ray
def test_ray_makes_the_same_shards(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lexiseg[ray]'")
    source = write_photos(tmp_path)
    alone, shared = start(tmp_path, "alone", source), start(tmp_path, "shared", source)
    mine(alone.folder, source, alone.settings)
    assert scaling.mine_with_ray(shared, 2) > 0
    assert shared.missing == () and scaling.mine_with_ray(shared, 2) == 0
    shard_path(shared.folder, 1).unlink()
    scaling.mine_with_ray(shared, 2)
    first, second = (
        {number: path.read_bytes() for number, path in shard_paths(run.folder).items()} for run in (alone, shared)
    )
    assert first == second and len(first) == 4


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    run = start(tmp_path, "run", write_photos(tmp_path, 1))
    with pytest.raises(MiningError, match=r"pip install 'lexiseg\[ray\]'"):
        scaling.mine_with_ray(run, 2)

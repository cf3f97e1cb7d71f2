"""A batch on a real, local Ray of several processes."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lexiseg.bulk import BatchError, Workers
from lexiseg.cluster import Cluster
from tests.bulk.colour_batch import batch, colours, deadly_colours, other_colours, write_photos
from tests.bulk.killing import Killer, contents, local_cluster, records
from tests.quiet_ray import quiet_ray

pytest.importorskip("ray", reason="Ray is not installed: pip install 'lexiseg[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, int]]:
    with local_cluster(cpus=2) as (address, process):
        yield address, process


@pytest.mark.slow
@pytest.mark.parametrize("format", ["coco", "png", "parquet", "labelstudio"])
def test_killed_at_any_moment_and_resumed_to_the_same_bytes(
    tmp_path: Path, format: str, cluster: tuple[str, int]
) -> None:
    """Twenty kills altogether: of the process that holds the batch, and of workers."""
    photos, out = write_photos(tmp_path / "photos", 40), tmp_path / "killed"
    (photos / "05.png").write_bytes(b"no picture")
    (photos / "bad.png").write_bytes(b"")
    command = [sys.executable, "-m", "tests.bulk.colour_batch", str(photos), str(out), format, "0.3", cluster[0]]
    killer = Killer(command, out, 39, random.Random(format), pause=0.2)
    killer.kill_workers(2, cluster[1])
    whole = contents(out)
    for path in records(out)[::2]:  # so that there is work for those that follow
        path.unlink()
    killer.kill_runs(3)
    killer.finish()
    batch(photos, tmp_path / "alone", format)
    assert contents(out) == contents(tmp_path / "alone") == whole


@pytest.mark.slow
@quiet_ray
def test_a_cluster_of_its_own_and_what_goes_wrong_in_it(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As alone, byte for byte; then a photo that no process survives, and workers of another model."""
    photos = write_photos(tmp_path / "photos", 20)
    (photos / "05.png").write_bytes(b"no picture")
    alone = batch(photos, tmp_path / "alone", "png")
    shared = batch(photos, tmp_path / "shared", "png", workers=Workers(colours, Cluster(workers=2)))
    assert (shared.photos, shared.new, shared.failures) == (alone.photos, alone.new, alone.failures)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    (tmp_path / "shared" / "records" / "07.png.json").unlink()
    (tmp_path / "shared" / "records" / "13.png.json").unlink()
    import ray

    assert not ray.is_initialized()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    request.addfinalizer(ray.shutdown)
    deadly = batch(photos, tmp_path / "shared", "png", workers=Workers(deadly_colours, Cluster(workers=1)))
    assert deadly.new == 1 and list(deadly.failures) == ["05.png", "13.png"]
    assert "the process ended whenever it was at this photo" in deadly.failures["13.png"]
    with pytest.raises(BatchError, match=r"a worker would make other results \(weights\)"):
        batch(photos, tmp_path / "shared", "png", workers=Workers(other_colours, Cluster(workers=1)))
    again = batch(photos, tmp_path / "shared", "png")
    assert again.new == 1 and contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    photos = write_photos(tmp_path / "photos", 2)
    with pytest.raises(BatchError, match=r"pip install 'lexiseg\[ray\]'"):
        batch(photos, tmp_path / "out", workers=Workers(colours))
    assert batch(photos, tmp_path / "out").new == 2

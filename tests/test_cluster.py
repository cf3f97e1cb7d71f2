"""Work shared by a real, local Ray: items that kill, items that raise, processes that are replaced."""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lexiseg.cluster import Cluster, ClusterError, Lost, spread
from tests.quiet_ray import quiet_ray

pytest.importorskip("ray", reason="Ray is not installed: pip install 'lexiseg[ray]'")


class Shouting:
    """Makes letters large. "deadly" ends its process, "wrong" raises, "once" ends the first process that meets it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, items: Sequence[str]) -> Iterator[str]:
        for item in items:
            mark = self.folder / item
            if item == "deadly" or (item == "once" and not mark.exists()):
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if item == "wrong":
                raise KeyError("no such\n letter")
            yield item.upper()


@pytest.mark.slow
@quiet_ray
def test_what_kills_is_given_up_alone_and_the_rest_is_done(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    request.addfinalizer(ray.shutdown)
    items = [f"a{number}" for number in range(9)]
    items[2], items[5] = "once", "deadly"
    done = dict(spread(items, Shouting, (tmp_path,), Cluster(workers=2), together=3))
    assert done == {number: item.upper() for number, item in enumerate(items)} | {5: Lost()}
    with pytest.raises(ClusterError, match="^KeyError: 'no such.* letter'$"):
        list(spread(["a", "wrong"], Shouting, (tmp_path,), Cluster(workers=1)))
    assert ray.is_initialized()  # who has begun it ends it
    with pytest.raises(ClusterError, match="no machine of the cluster has room for a worker with 1 CPU, 1 GPU"):
        list(spread(["a"], Shouting, (tmp_path,), Cluster(workers=1, gpus=1)))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}])
def test_workers_of_nothing(wrong: dict[str, int]) -> None:
    with pytest.raises(ClusterError, match="give one worker at least"):
        Cluster(**wrong)


def test_a_wrong_address_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    with pytest.raises(ClusterError, match=f"^no cluster of Ray at 127.0.0.1:{port}: .*refused; check the address$"):
        list(spread(["a"], Shouting, (), Cluster(f"127.0.0.1:{port}")))


def test_nothing_to_do_needs_no_ray() -> None:
    assert list(spread([], Shouting, (), Cluster())) == []

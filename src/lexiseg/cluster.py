"""Work shared among processes by Ray Data, on this machine or on the machines of a cluster.

Items go to workers, each of which is made once in a process of its own. A process that dies, by whatever, is replaced
and its items are given out again, so a worker may meet an item twice: what it writes must be there whole or not at all.
An item that takes its process along again and again is given up by itself, and the others are done.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_DEATHS = 2
"""So often may processes die at items given out together before each is tried alone, and at an item alone."""
_OBJECT_STORE_BYTES = 256 * 2**20
"""Of a cluster started here. What travels is names; Ray would take a third of the memory."""

_REACHED_SECONDS = 10.0

_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will do in later releases, and speaks of in this one
}

Worker = Callable[[Sequence[Any]], Iterable[Any]]
"""Items -> what became of each, in their order."""


class ClusterError(ValueError):
    """Work that cannot be shared, or must stop. The message says why and what to do."""


@dataclass(frozen=True)
class Lost:
    """In the place of an outcome: the process died whenever it was at this item."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers are, and what each of them takes."""

    address: str | None = None
    """As for `ray.init`: "auto" or "host:port". None is what RAY_ADDRESS says, else as "local": a cluster that is
    started on this machine and ends with the work."""
    workers: int | None = None
    """None: as many as find room."""
    cpus: float = 1
    """Of each worker; PyTorch computes with so many threads."""
    gpus: float = 0
    """Of each worker; two share one with 0.5."""

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or (self.workers is not None and self.workers < 1):
            raise ClusterError(
                f"{self.workers} workers with {self.cpus:g} CPU, {self.gpus:g} GPU: give one worker at least, and each "
                "more than 0 CPU"
            )


@dataclass(frozen=True)
class _Stopped:
    """Why a worker cannot go on, nor would another one."""

    reason: str


def spread(
    items: Sequence[Any], make: Callable[..., Worker], arguments: tuple[Any, ...], cluster: Cluster, together: int = 1
) -> Generator[tuple[int, Any]]:
    """The numbers of the items with what the workers made of them, in the order in which they are done.

    make: called with `arguments` in every process; both are sent there. together: so many items are given out at once.
    Raises ClusterError where there is no Ray or no cluster, and with what a worker raised.
    """
    if not items:
        return
    with _connected(cluster) as ray:
        blocks = -(-len(items) // together)
        ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Ledger).remote()
        process: Any = _Process  # a class whose instances are called; Ray's types know functions alone
        rows = [{"number": number, "item": item} for number, item in enumerate(items)]
        done = ray.data.from_items(rows, override_num_blocks=blocks).map_batches(
            process,
            fn_constructor_args=(make, arguments, ledger),
            batch_size=together,
            compute=ray.data.ActorPoolStrategy(size=min(_fitting(ray, cluster), blocks)),
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus or None,
        )
        try:
            for row in done.iter_rows():
                if isinstance(row["outcome"], _Stopped):
                    raise ClusterError(row["outcome"].reason)
                yield int(row["number"]), row["outcome"]
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            raise ClusterError(f"Ray cannot go on ({type(error).__name__}: {reason}); the same call does") from None


class _Ledger:
    """Which items were begun, and how often; it lives in a process of its own."""

    def __init__(self) -> None:
        self.begun: Counter[Any] = Counter()

    def begin(self, what: Any) -> int:
        """How often it was begun before."""
        self.begun[what] += 1
        return self.begun[what] - 1

    def finish(self, what: Any) -> None:
        """Forgets it: that it is begun again is no fault of its own."""
        del self.begun[what]


class _Process:
    """A process of Ray Data with its worker. Ray gives what it was at to another one when it dies."""

    def __init__(self, make: Callable[..., Worker], arguments: tuple[Any, ...], ledger: Any) -> None:
        self.make, self.arguments, self.ledger = make, arguments, ledger
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        numbers, items = [int(number) for number in batch["number"]], list(batch["item"])
        outcomes: list[Any]
        try:
            if self.worker is None:
                self.worker = self.make(*self.arguments)
            if self._deaths_at("together", numbers[0]) < _DEATHS:
                outcomes = list(self.worker(items))
            else:
                outcomes = [self._alone(number, item) for number, item in zip(numbers, items, strict=True)]
        except Exception as error:  # of any kind: no other process would do better
            reason = " ".join(str(error).split())
            known = isinstance(error, ValueError | OSError) and reason
            outcomes = [_Stopped(reason if known else f"{type(error).__name__}: {reason}")] * len(numbers)
        return {"number": numbers, "outcome": outcomes}

    def _alone(self, number: int, item: Any) -> Any:
        assert self.worker is not None  # it was made before
        import ray

        if self._deaths_at("alone", number) >= _DEATHS:
            return Lost()
        (outcome,) = self.worker([item])
        ray.get(self.ledger.finish.remote(("alone", number)))
        return outcome

    def _deaths_at(self, how: str, number: int) -> int:
        import ray

        return int(ray.get(self.ledger.begin.remote((how, number))))


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, with a cluster behind it, and quiet."""
    for name, value in _RAY_SETTINGS.items():  # read when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray.data
    except ImportError:
        raise ClusterError("several workers need Ray: pip install 'lexiseg[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _start(ray, cluster)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        with ray.data.DataContext.current(context):
            yield ray
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, cluster: Cluster) -> None:
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address != "local":
            _reach(address)
            ray.init(address=address, **quiet)
            return
        cpus = cluster.cpus * (cluster.workers or max(1, int((os.cpu_count() or 1) / cluster.cpus)))
        ray.init(
            address="local",
            num_cpus=int(-(-cpus // 1)),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
    except Exception as error:  # Ray raises every kind of it, down to the plain one
        reason = " ".join(str(error).split())[:200].rstrip(".")
        here = address == "local"
        remedy = "try again when less else is running" if here else "check the address"
        raise ClusterError(f"no cluster of Ray at {'this machine' if here else address}: {reason}; {remedy}") from None


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at host:port; Ray would go on trying for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_SECONDS).close()


def _fitting(ray: Any, cluster: Cluster) -> int:
    """How many workers there are to be."""
    there = ray.cluster_resources()
    needs = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    room = min(int(there.get(kind, 0) / need) for kind, need in needs.items() if need)
    if not room:
        raise ClusterError(
            f"no machine of the cluster has room for a worker with {cluster.cpus:g} CPU, {cluster.gpus:g} GPU; give "
            "each less"
        )
    return min(room, cluster.workers or room)

"""Work shared among processes by Ray Data, on this machine or on the machines of a cluster.

Items go to workers, each of which is made once in a process of its own. A process that dies, by whatever, is replaced
and its items are given out again, so a worker may meet an item twice: what it writes must be there whole or not at all.
An item that takes its process along again and again is given up by itself, and the others are done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_RETRIES = 2
"""Times that items are given out again after the death of their process, together and then each alone."""
_OBJECT_STORE_BYTES = 256 * 2**20
"""Of a cluster started here. What travels is names; Ray would take a third of the memory."""

Worker = Callable[[Sequence[Any]], Iterable[Any]]
"""Items -> what became of each, in their order."""


class ClusterError(ValueError):
    """Work that cannot be shared, or must stop. The message says why and what to do."""


class Lost:
    """In the place of an outcome: the process died whenever it was at this item."""


@dataclass(frozen=True)
class Cluster:
    """Where the workers are, and what each of them takes."""

    address: str | None = None
    """As for `ray.init`: "auto", "host:port" or "ray://host:port". None is what RAY_ADDRESS says, else as "local": a
    cluster that is started on this machine and ends with the work."""
    workers: int | None = None
    """None: as many as find room."""
    cpus: float = 1
    """Of each worker; PyTorch computes with so many threads."""
    gpus: float = 0
    """Of each worker; two share one with 0.5."""


@dataclass(frozen=True)
class _Stopped:
    """Why a worker cannot go on, nor would another one."""

    reason: str


def spread(
    items: Sequence[Any], make: Callable[..., Worker], arguments: tuple[Any, ...], cluster: Cluster, together: int = 1
) -> Iterator[tuple[int, Any]]:
    """The numbers of the items with what the workers made of them, in the order in which they are done.

    make: called with `arguments` in every process; both are sent there. together: so many items are given out at once.
    Raises ClusterError where there is no Ray or no cluster, and with what a worker raised.
    """
    with _connected(cluster) as ray:
        waiting = set(range(len(items)))
        for size in (together, 1):
            rows = [{"number": number, "item": items[number]} for number in sorted(waiting)]
            if not rows:
                break
            for number, outcome in _pass(ray, rows, make, arguments, cluster, size):
                if isinstance(outcome, _Stopped):
                    raise ClusterError(outcome.reason)
                if number in waiting:
                    waiting.remove(number)
                    yield number, outcome
        yield from ((number, Lost()) for number in sorted(waiting))


def _pass(
    ray: Any,
    rows: Sequence[dict[str, Any]],
    make: Callable[..., Worker],
    arguments: tuple[Any, ...],
    cluster: Cluster,
    size: int,
) -> Iterator[tuple[int, Any]]:
    """Gives out all rows; of those whose process died too often nothing comes back."""
    blocks = -(-len(rows) // size)
    process: Any = _Process  # a class whose instances are called; Ray's types know functions alone
    # What waits at a process that dies counts as given out: alone means that nothing waits.
    pool = ray.data.ActorPoolStrategy(
        size=min(_fitting(ray, cluster), blocks), max_tasks_in_flight_per_actor=1 if size == 1 else 2
    )
    done = ray.data.from_items(list(rows), override_num_blocks=blocks).map_batches(
        process,
        fn_constructor_args=(make, arguments),
        batch_size=size,
        compute=pool,
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus or None,
        max_restarts=-1,
        max_task_retries=_RETRIES,
    )
    for row in done.iter_rows():
        yield int(row["number"]), row["outcome"]


class _Process:
    """A process of Ray Data with its worker. It raises nothing, so that only its death is taken for one."""

    def __init__(self, make: Callable[..., Worker], arguments: tuple[Any, ...]) -> None:
        self.make, self.arguments = make, arguments
        self.worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        numbers = [int(number) for number in batch["number"]]
        outcomes: list[Any]
        try:
            if self.worker is None:
                self.worker = self.make(*self.arguments)
            outcomes = list(self.worker(list(batch["item"])))
        except Exception as error:  # of any kind: the caller is told, and decides
            reason = " ".join(str(error).split())
            known = isinstance(error, ValueError | OSError) and reason
            outcomes = [_Stopped(reason if known else f"{type(error).__name__}: {reason}")] * len(numbers)
        return {"number": numbers, "outcome": outcomes}


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, with a cluster behind it, and quiet."""
    try:
        import ray.data
    except ImportError:
        raise ClusterError("several workers need Ray: pip install 'lexiseg[ray]'") from None
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
        os.environ.setdefault(name, value)
    started = not ray.is_initialized()
    if started:
        _start(ray, cluster)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # `spread` sees to what is missing
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # deaths of processes with pages of traces
    try:
        with ray.data.DataContext.current(context):
            yield ray
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, cluster: Cluster) -> None:
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address and address != "local":
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
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClusterError(f"no cluster of Ray at {address or 'this machine'}: {reason}") from None


def _fitting(ray: Any, cluster: Cluster) -> int:
    """How many workers there are to be."""
    there = ray.cluster_resources()
    needs = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    room = min(int(there.get(kind, 0) / need) for kind, need in needs.items() if need)
    if not room:
        raise ClusterError(
            f"no machine of the cluster has room for a worker with {cluster.cpus:g} CPU, {cluster.gpus:g} GPU"
        )
    return min(room, cluster.workers or room)

"""The data engine in more than one process, by Ray Data: shards are shared among workers that load the model once each.

Shards are files that are there whole or not at all, and only missing ones are asked for: what is killed, a worker, a
machine or all, is made again by the same command. Every machine must see the folder of the run and the photos.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from lexiseg.mining.running import Miner, MiningError, Run


@dataclass
class ShardWorker:
    """One process of Ray Data: makes the shards it is given."""

    run: Run
    device: str

    def __post_init__(self) -> None:
        self.miner = Miner(self.run, self.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """{"shard": number} -> the same with "pairs", how many it has."""
        number = int(row["shard"])
        return {"shard": number, "pairs": self.miner.mine(number)}


def mine_with_ray(run: Run, workers: int, device: str = "cpu") -> int:
    """Makes what is missing of a run; how many pairs that are. device: of every worker, "cuda" for a GPU each.

    Where no cluster of Ray can be reached (see `ray.init` and RAY_ADDRESS) one is started on this machine, for the time
    of the call.
    """
    try:
        import ray
    except ImportError as error:
        raise MiningError(
            "several workers need Ray: pip install 'lexiseg[ray]'; without --workers one does all"
        ) from error
    missing = run.missing
    if not missing:
        return 0
    started = not ray.is_initialized()
    if started:
        elsewhere = bool(os.environ.get("RAY_ADDRESS"))
        ray.init(log_to_driver=False, num_cpus=None if elsewhere else workers + 1, include_dashboard=False)
    try:
        rows = ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
        worker: Any = ShardWorker  # a class whose instances are called; Ray's types know functions alone
        done = rows.map(
            worker,
            fn_constructor_args=(run, device),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
            num_cpus=1,
            num_gpus=1 if device == "cuda" else None,
        )
        return sum(int(row["pairs"]) for row in done.take_all())
    finally:
        if started:
            ray.shutdown()

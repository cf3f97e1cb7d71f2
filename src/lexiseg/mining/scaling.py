"""The data engine in more than one process, by Ray Data: shards are shared among workers that load the model once each.

Shards are files that are there whole or not at all, and only missing ones are asked for: what is killed, a worker, a
machine or all, is made again by the same command. Every machine must see the folder of the run and the photos.
"""

from __future__ import annotations

from collections.abc import Sequence

from lexiseg.cluster import Cluster, ClusterError, Lost, spread
from lexiseg.mining.running import Miner, MiningError, Run


class ShardWorker:
    """One process: makes the shards it is given."""

    def __init__(self, run: Run, device: str) -> None:
        self.miner = Miner(run, device)

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        """How many pairs each of the shards has."""
        return [self.miner.mine(number) for number in numbers]


def mine_with_ray(run: Run, workers: int, device: str = "cpu") -> int:
    """Makes what is missing of a run; how many pairs that are. device: of every worker, "cuda" for a GPU each.

    Where RAY_ADDRESS names no cluster, one is started on this machine for the time of the call.
    """
    missing, pairs = run.missing, 0
    if not missing:
        return 0
    cluster = Cluster(workers=workers, gpus=1 if device == "cuda" else 0)
    try:
        for number, found in spread(missing, ShardWorker, (run, device), cluster):
            if isinstance(found, Lost):
                raise MiningError(
                    f"{run.folder}: the process ended whenever it was at shard {missing[number]}; it may need more "
                    "memory than there is"
                )
            pairs += found
    except ClusterError as error:
        raise MiningError(str(error)) from None
    return pairs

"""Is a batch that is killed again and again the same in the end, byte for byte, alone and on Ray?

    python -m benchmarks.kills PHOTOS [--kills 20] [--ray] [--formats coco png parquet labelstudio] [--seed 7]

Runs `lexiseg batch` on a folder of photos as a process of its own and kills it with SIGKILL at random moments: before
the first new photo, between photos, in the middle of one, and while all are put into one file. The kills are shared
among the formats. With --ray a local cluster of several processes computes, and half of the kills hit the process that
holds the batch, the other half one of the workers. In the end all files are compared with those of one run, alone, that
nobody disturbed.
"""

import argparse
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from lexiseg.images import find_images
from tests.bulk.killing import Killer, contents, local_cluster

LEXISEG = "from lexiseg.apps.cli import main; main()"
WORDS = "sky, building | house, road | street, sidewalk, tree, car, pedestrian | person, pole"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--formats", nargs="+", default=["coco", "png", "parquet", "labelstudio"])
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    count, generator = len(find_images(given.photos)), random.Random(given.seed)
    everything = True
    with (
        tempfile.TemporaryDirectory() as temporary,
        local_cluster(cpus=2) if given.ray else nullcontext(("", 0)) as (address, cluster),
    ):
        for number, format in enumerate(given.formats):
            start = time.monotonic()
            out, whole = Path(temporary, f"{format}-killed"), Path(temporary, f"{format}-whole")
            base = [sys.executable, "-c", LEXISEG, "batch", str(given.photos.resolve()), "--classes", WORDS]
            base += ["--task", "panoptic", "--format", format, "--device", "cpu", "--out"]
            ray = ["--workers", "2", "--ray", address] if given.ray else []
            killer = Killer([*base, str(out), *ray], out, count, generator, patience=900)
            kills = given.kills * (number + 1) // len(given.formats) - given.kills * number // len(given.formats)
            of_workers = kills // 2 if given.ray else 0
            if of_workers:
                killer.kill_workers(of_workers, cluster)
            killer.kill_runs(kills - of_workers)
            killer.finish()
            Killer([*base, str(whole)], whole, count, generator, patience=900).finish()
            same = contents(out) == contents(whole)
            everything &= same
            print(
                f"{format}: {of_workers} workers and {kills - of_workers} runs killed, with {killer.told} of {count} "
                f"records there; {len(contents(out))} files, {'equal' if same else 'DIFFERENT'}; "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
    sys.exit(0 if everything else 1)


if __name__ == "__main__":
    main()

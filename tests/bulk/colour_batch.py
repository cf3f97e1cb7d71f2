"""Photos of coloured stripes, and a batch of them by itself:

python -m tests.bulk.colour_batch INPUT OUT FORMAT SECONDS [ADDRESS]
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from PIL import Image

from lexiseg.bulk import Outcome, Workers, run_batch
from lexiseg.bulk.folder import BatchFolder
from lexiseg.cluster import Cluster
from lexiseg.images import Photo
from lexiseg.segmenter import Segmenter
from tests.colour_model import COLOURS, colour_model
from tests.mining.colour_photos import striped

WORDS = "red, green | grass, blue"


def write_photos(folder: Path, count: int) -> Path:
    """Photos of two or three stripes, every third one in a folder of its own."""
    for number in range(count):
        path = folder / ("inner" if number % 3 == 0 else "") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = [COLOURS[(number + place) % 3] for place in range(2 + number % 2)]
        Image.fromarray(striped(*colours, side=24 + 2 * number)).save(path)
    return folder


def batch(photos: Path | str, out: Path, format: str = "coco", **choices: object) -> Outcome:
    return run_batch(colours(), photos, WORDS, out, format=format, **choices)  # type: ignore[arg-type]


def colours() -> Segmenter:
    return Segmenter(colour_model(), "cpu")


def other_colours() -> Segmenter:
    """Of other weights."""
    segmenter = colours()
    segmenter.model.system.scorer.logit_scale.data.fill_(2.0)
    return segmenter


def deadly_colours() -> Segmenter:
    """Ends its process at one photo, as if the memory did not suffice."""
    segment = Segmenter._segment

    def deadly(self: Segmenter, photo: Photo, *arguments: object) -> object:
        if photo.name == "13.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return segment(self, photo, *arguments)  # type: ignore[arg-type]

    Segmenter._segment = deadly  # type: ignore[method-assign, assignment]
    return colours()


def slow_colours(seconds: float) -> Segmenter:
    """With time to be killed in: before a record is written, and between its files."""
    write, record = BatchFolder.write, BatchFolder._record

    def slow_write(*arguments: object) -> None:
        time.sleep(seconds)
        write(*arguments)  # type: ignore[arg-type]

    def slow_record(self: BatchFolder, name: str) -> Path:
        time.sleep(seconds / 10)
        return record(self, name)

    BatchFolder.write, BatchFolder._record = slow_write, slow_record  # type: ignore[method-assign]
    return colours()


def main(photos: Path, out: Path, format: str, seconds: float, address: str | None = None) -> None:
    load = partial(slow_colours, seconds)
    workers = None if address is None else Workers(load, Cluster(address, workers=2))
    run_batch(load(), photos, WORDS, out, format=format, workers=workers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]), *sys.argv[5:6])

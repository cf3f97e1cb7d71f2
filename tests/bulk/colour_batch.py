"""Photos of coloured stripes, and a batch of them by itself:

python -m tests.bulk.colour_batch INPUT OUT FORMAT SECONDS
"""

import sys
import time
from pathlib import Path

from PIL import Image

from lexiseg.bulk import Outcome, run_batch
from lexiseg.bulk.folder import BatchFolder
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
    return run_batch(Segmenter(colour_model(), "cpu"), photos, WORDS, out, format=format, **choices)  # type: ignore[arg-type]


def slow_batch(photos: Path, out: Path, format: str, seconds: float) -> None:
    """With time to be killed in: before a record is written, and between its files."""
    write, record = BatchFolder.write, BatchFolder._record

    def slow_write(*arguments: object) -> None:
        time.sleep(seconds)
        write(*arguments)  # type: ignore[arg-type]

    def slow_record(self: BatchFolder, name: str) -> Path:
        time.sleep(seconds / 10)
        return record(self, name)

    BatchFolder.write, BatchFolder._record = slow_write, slow_record  # type: ignore[method-assign]
    batch(photos, out, format)


if __name__ == "__main__":
    slow_batch(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))

"""Photos of coloured stripes with captions, for the model of `tests.colour_model`; and a run on them by itself:

python -m tests.mining.colour_photos CAPTIONS IMAGES OUT
"""

import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lexiseg.mining import running
from lexiseg.mining.running import Settings, Source
from tests.colour_model import COLOURS, colour_model

SETTINGS = Settings(pooled=True, words="red, green, blue, cloud", captions=2, shard_photos=2)


def striped(*colours: str, side: int = 48) -> np.ndarray:
    """uint8 [side, side * n, 3]: one stripe per colour."""
    stripes = np.zeros((side, side * len(colours), 3), np.uint8)
    for number, colour in enumerate(colours):
        stripes[:, number * side : (number + 1) * side, COLOURS.index(colour)] = 230
    return stripes


def write_photos(folder: Path, count: int = 7) -> Source:
    """Photos of two stripes each; every second caption names a third word, too."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        first, second = COLOURS[number % 3], COLOURS[(number + 1) % 3]
        Image.fromarray(striped(first, second)).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png\ta {first} stripe, and a {second} one{' under a cloud' if number % 2 else ''}")
        lines.append(f"{number}.png\tsomething {second}")
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    return Source(str(folder / "captions.tsv"), str(folder / "images"))


def mine_slowly(source: Source, out: Path, seconds: float) -> None:
    """The run of the tests, with time to be killed in."""
    running.miner_model = lambda settings, device: colour_model()
    slow = running.write_shard

    def write(path: Path, shard: running.Shard) -> None:
        time.sleep(seconds)
        slow(path, shard)

    running.write_shard = write
    running.mine(out, source, SETTINGS)


if __name__ == "__main__":
    mine_slowly(Source(sys.argv[1], sys.argv[2]), Path(sys.argv[3]), 0.2)

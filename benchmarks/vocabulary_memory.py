"""Does peak memory stay flat when the vocabulary and the photo grow?

    python benchmarks/vocabulary_memory.py [--model NAME] [--words 8 150 847] [--sizes 640x427 4000x3000]

Every measurement is a process of its own. The photo is china.jpg of scikit-learn, enlarged; the words are made up, that
changes neither time nor memory. "First" is the first call, which encodes the words; "again" the second one.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = Path(__file__)


def measure(model: str, words: int, width: int, height: int) -> dict[str, float]:
    """In this process: seconds of two calls, and the peak memory of the process in MB."""
    import resource

    import sklearn
    from PIL import Image

    from lexiseg import Segmenter

    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    photo = Image.open(folder / "china.jpg").resize((width, height), Image.Resampling.BICUBIC)
    segmenter = Segmenter.from_pretrained(model, device="cpu")
    names = [f"object number {number}" for number in range(words)]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        segmenter(photo, names)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"first_s": seconds[0], "again_s": seconds[1], "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="street-tiny")
    parser.add_argument("--words", type=int, nargs="+", default=[8, 150, 847])
    parser.add_argument("--sizes", nargs="+", default=["640x427", "4000x3000"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.model, *options.one)))
        return
    print(f"{'photo':>10} {'words':>6} {'first s':>8} {'again s':>8} {'peak MB':>8}")
    for size in options.sizes:
        width, height = size.lower().split("x")
        for words in options.words:
            command = [sys.executable, str(PROGRAM), "--model", options.model, "--one", str(words), width, height]
            environment = {**os.environ, "LEXISEG_CACHE": "off"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{size:>10} {words:>6} {found['first_s']:>8.2f} {found['again_s']:>8.2f} {found['peak_mb']:>8.0f}")


if __name__ == "__main__":
    main()

"""What a photo costs each system, in time and memory.

The systems take turns, each time in a process of its own that does nothing else before or beside it, with all threads:
what else the machine does meanwhile falls on all of them alike, and ratios can be trusted further than seconds.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from lexiseg.evaluation.looking import peak_memory_mb
from lexiseg.miniature.material import open_package
from lexiseg.segmenter import Segmenter
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import replacing, sha256_of

COSTS = "costs.json"
TURNS = 3
PHOTOS = 10
PACKAGE, SPLIT = "labelmefacade", "test"


@dataclass(frozen=True)
class Cost:
    """Of one system."""

    seconds: float
    """Per photo: the median of all."""
    times_first: float
    """As often as the first system's: the median over the turns of the ratio of medians."""
    peak_memory_mb: int | None
    """Of the process, the model and the photos in it."""


def costs(models: Mapping[str, Path], data: Path, out: Path) -> dict[str, Cost]:
    """models: name -> model folder, the one to compare with first. Read from out/costs.json where that is of them."""
    written = out / COSTS
    digests = {name: digest_of(folder) for name, folder in models.items()}
    if written.is_file():
        known = json.loads(written.read_text(encoding="utf-8"))
        if known.get("models") == digests:
            return {name: Cost(**known["costs"][name]) for name in models}
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as alone:
        turns = [
            {name: alone.submit(look, folder, data).result() for name, folder in models.items()} for _ in range(TURNS)
        ]
    first = next(iter(models))
    found = {}
    for name in models:
        ratios = [median(turn[name][0]) / median(turn[first][0]) for turn in turns]
        seconds = median(second for turn in turns for second in turn[name][0])
        memory = [turn[name][1] for turn in turns]
        peak = None if None in memory else round(max(number for number in memory if number is not None))
        found[name] = Cost(round(seconds, 3), round(median(ratios), 2), peak)
    with replacing(written) as temporary:
        content = {"models": digests, "costs": {name: asdict(cost) for name, cost in found.items()}}
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return found


def digest_of(folder: Path) -> str:
    """SHA-256 of the names and contents of all files in a model folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = [f"{path.relative_to(folder).as_posix()} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def look(model: Path, data: Path) -> tuple[list[float], float | None]:
    """Seconds of each photo but the first, which also pays for the words; and the peak of this process's memory, MB."""
    package = open_package(data, PACKAGE)
    vocabulary = Vocabulary.parse(list(package.classes))
    segmenter = Segmenter.from_pretrained(model, "cpu")
    seconds = []
    for photo in package.ids(SPLIT)[: PHOTOS + 1]:
        image = package.photo(photo).image
        begun = time.perf_counter()
        segmenter(image, vocabulary)
        seconds.append(time.perf_counter() - begun)
    return seconds[1:], peak_memory_mb("cpu")[0]

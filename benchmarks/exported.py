"""Exported files against PyTorch: how far they agree, what smaller weights cost, and how fast they are.

    python benchmarks/exported.py DATA [--model street-tiny] [--photos 50] [--split test] [--size HxW] [--out FOLDER]

DATA: labelled photos, a folder or a zip with dataset.json, whose classes are the words. Every variant is exported and
asked about the same photos, on the canvas that PyTorch uses. int8 measures its ranges on photos of another split. A row
per variant: the share of the pixels with PyTorch's class, mIoU (rule `gt`) with its 95 % interval, the difference to
PyTorch with the interval of the difference, and the time over PyTorch's, the median over the photos: of the network
alone and of the whole way from pixels to a label map, with one thread and, on every eighth photo, with two. Each photo
goes through all of them one after the other, so that whatever else the machine does meets them all. Written are
exported.json, exported.md and the files, which the next run takes as they are. Exit status 1 if a float32 file agrees
on less than 99.9 % of the pixels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import Candidate, Evaluation, Plan, compare, evaluate
from lexiseg.export import export_model
from lexiseg.export.checking import LEAST_AGREEMENT, as_percent, reference
from lexiseg.export.writing import make_smaller
from lexiseg.exported import ExportedSegmenter
from lexiseg.exported.description import Precision
from lexiseg.images import Photo
from lexiseg.outcomes import Scored, prediction_of
from lexiseg.postprocess import Frame
from lexiseg.results import Task
from lexiseg.types import Images, Prediction, SemanticMap, Size
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model

PYTORCH = "PyTorch"
OTHER_THREADS_PHOTOS = 8
"""With the first number of threads all photos are looked at, with the others every eighth."""
CALIBRATION_PHOTOS = 12


@dataclass(frozen=True)
class Variant:
    """One way of exporting."""

    name: str
    precision: Precision = "float32"
    any_size: bool = False
    """Else for the canvas of the photos."""
    baked: bool = True
    """The words are in the file."""


VARIANTS = (
    Variant("float32, any size, any words", any_size=True, baked=False),
    Variant("float32"),
    Variant("float16", "float16"),
    Variant("int8", "int8"),
)


@dataclass
class Seconds:
    """Of one runner on all photos, in their order."""

    network: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


class PyTorchRunner:
    """The model itself, on the canvas of a file."""

    def __init__(self, model: Model, exported: ExportedSegmenter, words: Vocabulary) -> None:
        self.segmenter = reference(model, exported)
        self.canvas, self.outputs = self.segmenter.model.canvas, model.outputs
        self.bank = self.segmenter.prepare(words).bank

    @torch.inference_mode()
    def run(self, images: Images) -> Scored:
        proposals, scores = self.segmenter.model.system(images, self.bank)
        return Scored(proposals.mask_logits[0], scores.class_probs[0], scores.void_prob[0], told_from_void=True)


class ExportedRunner:
    """A file."""

    def __init__(self, path: Path, words: Vocabulary, threads: int) -> None:
        segmenter = ExportedSegmenter.load(path, "cpu", threads=threads)
        self.graph = segmenter.graphs[0]
        self.canvas, self.outputs = self.graph.canvas, segmenter.description.outputs
        self.feed = segmenter.prepare(words).feed

    def run(self, images: Images) -> Scored:
        return self.graph.run(images, self.feed)


def look(runner: PyTorchRunner | ExportedRunner, photo: Photo, words: Vocabulary, seconds: Seconds) -> SemanticMap:
    """One photo, timed."""
    start = time.perf_counter()
    images = runner.canvas([photo])
    middle = time.perf_counter()
    scored = runner.run(images)
    seconds.network.append(time.perf_counter() - middle)
    frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
    with torch.inference_mode():
        found = prediction_of(scored, words, "semantic", frame, runner.outputs)
    seconds.whole.append(time.perf_counter() - start)
    assert isinstance(found, SemanticMap)
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over the photos, but for the first two: there memory is still being laid out."""
    return statistics.median(a / b for a, b in zip(ours[2:] or ours, theirs[2:] or theirs, strict=True))


def export_all(
    model: Model, words: Vocabulary, size_hw: Size, photos: Sequence[Photo], folder: Path, wanted: Sequence[Variant]
) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for variant in wanted:
        path = folder / f"{variant.precision}-{'any' if variant.any_size else 'fixed'}.onnx"
        paths[variant.name] = path
        exact = folder / "float32-fixed.onnx"
        if path.is_file():
            continue
        if variant.precision != "float32" and exact.is_file():
            make_smaller(exact, path, variant.precision, photos)
            continue
        export_model(
            model,
            path,
            vocabulary=words if variant.baked else None,
            sizes=[] if variant.any_size else [size_hw],
            precision=variant.precision,
            photos=photos if variant.precision == "int8" else photos[:2],
            least_agreement=0.0,
        )
    return paths


def measured(name: str, maps: dict[str, SemanticMap], data: LabelledPhotos, plan: Plan) -> Evaluation:
    """Of outcomes that are there already."""

    def predict(image: NDArray[np.uint8], vocabulary: Vocabulary, tasks: Sequence[Task]) -> dict[Task, Prediction]:
        return dict.fromkeys(tasks, maps[key_of(image)])

    outcome = evaluate(Candidate(name, predict), data, plan, progress=False)
    assert outcome is not None
    return outcome


def key_of(image: NDArray[np.uint8]) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="street-tiny")
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--split", default="test")
    parser.add_argument("--other-split", default="train", help="for the ranges of int8")
    parser.add_argument("--variants", default=",".join(str(i) for i in range(len(VARIANTS))), help="places in the list")
    parser.add_argument("--threads", default="1,2", help="all photos with the first number, every eighth with others")
    parser.add_argument("--out", type=Path, default=Path("out/exported"))
    options = parser.parse_args()
    model = load(Path(options.model) if Path(options.model).is_dir() else options.model)
    data = LabelledPhotos(options.data)
    plan = Plan.of(data, split=options.split, limit=options.photos, measures=["miou"])
    words = plan.look.vocabulary
    photos = [Photo(data.photo(name).image, name) for name in plan.ids]
    size_hw = model.canvas([photos[0]]).canvas_hw
    others = data.ids(options.other_split)
    step = max(1, len(others) // CALIBRATION_PHOTOS)
    calibration = [Photo(data.photo(name).image, name) for name in others[::step][:CALIBRATION_PHOTOS]]
    wanted = [VARIANTS[int(place)] for place in options.variants.split(",")]
    options.out.mkdir(parents=True, exist_ok=True)
    paths = export_all(model, words, size_hw, calibration, options.out, wanted)
    threads = [int(count) for count in options.threads.split(",")]
    told = compared(model, paths, words, photos, data, plan, threads)
    told |= {"model": model.name, "data": f"{data.name} {options.split}", "photos": len(photos), "canvas": size_hw}
    (options.out / "exported.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    table = as_markdown(told)
    (options.out / "exported.md").write_text(table, encoding="utf-8")
    print(table)
    exact = [row for row in told["rows"] if row["precision"] == "float32"]
    return int(any(row["same_labels"] < LEAST_AGREEMENT for row in exact))


def compared(
    model: Model,
    paths: dict[str, Path],
    words: Vocabulary,
    photos: Sequence[Photo],
    data: LabelledPhotos,
    plan: Plan,
    threads: Sequence[int],
) -> dict[str, Any]:
    seconds: dict[int, dict[str, Seconds]] = {count: defaultdict(Seconds) for count in threads}
    maps: dict[str, dict[str, SemanticMap]] = defaultdict(dict)
    same: dict[str, int] = defaultdict(int)
    for count in threads:
        torch.set_num_threads(count)
        runners: dict[str, PyTorchRunner | ExportedRunner] = {
            name: ExportedRunner(path, words, count) for name, path in paths.items()
        }
        first = ExportedSegmenter.load(next(iter(paths.values())), "cpu", threads=count)
        runners = {PYTORCH: PyTorchRunner(model, first, words), **runners}
        for photo in tqdm(
            photos if count == threads[0] else photos[::OTHER_THREADS_PHOTOS], unit="photo", desc=f"{count} threads"
        ):
            found = {name: look(runner, photo, words, seconds[count][name]) for name, runner in runners.items()}
            if count == threads[0]:
                for name, labels in found.items():
                    maps[name][key_of(photo.rgb)] = labels
                    same[name] += int((labels.labels == found[PYTORCH].labels).sum())
    pixels = sum(photo.rgb.shape[0] * photo.rgb.shape[1] for photo in photos)
    base = measured(PYTORCH, maps[PYTORCH], data, plan)
    rows = []
    for name, path in paths.items():
        own = measured(name, maps[name], data, plan)
        difference = compare(own, base)
        description = ExportedSegmenter.load(path, "cpu").description
        rows.append(
            {
                "variant": name,
                "precision": description.precision,
                "mebibytes": round(path.stat().st_size / 2**20, 1),
                "same_labels": same[name] / pixels,
                **miou_of(own),
                "less_pytorch": round(100 * difference.value, 3),
                "less_pytorch_95": [round(100 * edge, 3) for edge in difference.interval],
                "time_over_pytorch": {
                    str(count): {
                        part: round(ratio(getattr(own_s[name], part), getattr(own_s[PYTORCH], part)), 3)
                        for part in ("network", "whole")
                    }
                    for count, own_s in seconds.items()
                },
            }
        )
    return {"pytorch": miou_of(base), "pixels": pixels, "rows": rows}


def miou_of(evaluation: Evaluation) -> dict[str, Any]:
    assert evaluation.semantic is not None
    edges = evaluation.semantic.miou_interval["gt"]
    return {
        "miou": round(100 * evaluation.semantic.miou["gt"], 2),
        "miou_95": None if edges is None else [round(100 * edge, 2) for edge in edges],
    }


def as_markdown(told: dict[str, Any]) -> str:
    counts = list(told["rows"][0]["time_over_pytorch"])
    times = [f"time / PyTorch's, threads: {count}; network, whole" for count in counts]
    headings = ["file", "MiB", "same class as PyTorch", "mIoU (95 %)", "less PyTorch's (95 %)", *times]
    lines = [
        f"{told['model']}, {told['photos']} photos of {told['data']}, canvas {told['canvas']}; PyTorch: mIoU "
        f"{told['pytorch']['miou']} ({_range(told['pytorch']['miou_95'])}).",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for row in told["rows"]:
        cells = [
            row["variant"],
            str(row["mebibytes"]),
            as_percent(row["same_labels"]),
            f"{row['miou']} ({_range(row['miou_95'])})",
            f"{row['less_pytorch']:+.2f} ({_range(row['less_pytorch_95'])})",
            *(f"{own['network']:.2f}, {own['whole']:.2f}" for own in row["time_over_pytorch"].values()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _range(edges: Sequence[float]) -> str:
    return f"{edges[0]:g} to {edges[1]:g}"


if __name__ == "__main__":
    sys.exit(main())

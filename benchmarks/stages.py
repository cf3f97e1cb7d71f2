"""Where do the time and the memory of one picture go?

    python benchmarks/stages.py MODEL... [--photo FILE] [--words 150] [--rounds 3] [--task semantic] [--device cpu]

A row per stage: seconds (the median of the rounds), share of the whole, and the highest memory of the process while the
stage ran, in MB. Models whose undecided proposals can be told apart are measured once more with the others skipped: all
stages together, the share of the proposals that were computed, and the ratio of the two times, both of this run.

MODEL is a name or a folder. A model of official size with made-up weights comes from a manifest:

    python tools/procedural_checkpoint.py manifest-NAME.json official.safetensors
    lexiseg convert official.safetensors --out FOLDER
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg import postprocess
from lexiseg.images import read_image
from lexiseg.postprocess import Frame
from lexiseg.selection import Selection, Selector, can_select, for_instances, for_panoptic, for_semantic
from lexiseg.system import System
from lexiseg.types import Images, Prediction, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import OutputSettings

STAGES = ("canvas", "encoder", "generator", "embedder", "scorer", "fusion", "output")


class Meter:
    """Seconds and peak memory of named pieces of work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = {}
        self.peak_mb: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        self._reset_peak()
        start = time.perf_counter()
        outcome = work(*arguments)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        self.peak_mb[name] = max(self.peak_mb.get(name, 0.0), self._peak())
        return outcome

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def _reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # forgets the highest resident size so far

    def _peak(self) -> float:
        """Highest memory since the reset; where the system cannot forget, since the start of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        if sys.platform == "linux":
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) / 2**10
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def no_encoder(images: Images) -> None:
    """Of systems whose parts share no trunk."""


def output(task: str, masks: Tensor, probs: Tensor, void: Tensor, frame: Frame, settings: OutputSettings) -> Prediction:
    if task == "semantic":
        return postprocess.semantic(masks, probs, frame, settings.sigmoid_at or "canvas")
    sigmoid_at = settings.sigmoid_at or "output"
    if task == "instance":
        return postprocess.instances(masks, probs, frame, top=settings.top_instances, sigmoid_at=sigmoid_at)
    return postprocess.panoptic(
        masks,
        probs,
        void,
        torch.ones(probs.shape[1], dtype=torch.bool, device=probs.device),
        frame,
        object_mask_threshold=settings.object_mask_threshold,
        overlap_threshold=settings.overlap_threshold,
        sigmoid_at=sigmoid_at,
    )


def select(
    task: str, system: System, images: Images, text: TextBank, frame: Frame, settings: OutputSettings
) -> Selection:
    selector = Selector(system, images, text)
    if task == "semantic":
        return for_semantic(selector, frame)
    if task == "instance":
        return for_instances(selector, settings.top_instances)
    return for_panoptic(selector, settings.object_mask_threshold)


def measure(name: str, photo: Path, words: int, rounds: int, task: str, device: str) -> None:
    model = load(Path(name) if Path(name).is_dir() else name, device)
    system, meter = model.system, Meter(torch.device(device))
    picture = read_image(photo)
    vocabulary = Vocabulary.parse([f"object number {number}" for number in range(words)])
    print(f"\n{model.name}: {photo.name} {picture.rgb.shape[1]} x {picture.rgb.shape[0]}, {words} words, {task}")

    def place() -> Images:
        return model.canvas([picture]).to(device)

    def encode() -> TextBank:
        return model.text_bank(vocabulary).to(device)

    with torch.inference_mode():
        text = meter("words (once)", encode)
        for _ in range(rounds):
            images = meter("canvas", place)
            features = meter("encoder", system.encoder or no_encoder, images)
            proposals = meter("generator", system.generator, images, features, text)
            regions = meter("embedder", system.embedder, images, features, proposals.mask_logits)
            logits = meter("scorer", system.scorer, regions, text)
            scores = meter("fusion", system.fuse, proposals, logits, regions.valid, text)
            frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
            masks, probs, void = proposals.mask_logits[0], scores.class_probs[0], scores.void_prob[0]
            meter("output", output, task, masks, probs, void, frame, model.outputs)
    print(f"canvas {images.canvas_hw[1]} x {images.canvas_hw[0]}, {masks.shape[0]} proposals")
    total = sum(meter.median(stage) for stage in STAGES)
    print(f"{'stage':14} {'seconds':>8} {'share':>6} {'peak MB':>8}")
    print(f"{'words (once)':14} {meter.median('words (once)'):8.2f} {'':6} {meter.peak_mb['words (once)']:8.0f}")
    for stage in STAGES:
        print(f"{stage:14} {meter.median(stage):8.3f} {meter.median(stage) / total:6.1%} {meter.peak_mb[stage]:8.0f}")
    print(f"{'all':14} {total:8.3f} {1:6.1%} {max(meter.peak_mb[stage] for stage in STAGES):8.0f}")
    if not can_select(system):
        return
    with torch.inference_mode():
        for _ in range(rounds):
            few = meter("skipping", select, task, system, images, text, frame, model.outputs)
    rest = meter.median("canvas") + meter.median("output")
    whole = meter.median("skipping") + rest
    print(
        f"{'all, skipping':14} {whole:8.3f} {whole / total:6.1%} {meter.peak_mb['skipping']:8.0f}   "
        f"{len(few.computed)} of {few.count} proposals computed"
    )


def main() -> None:
    import sklearn

    china = Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--photo", type=Path, default=china, help="default: china.jpg of scikit-learn")
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", choices=("semantic", "panoptic", "instance"), default="semantic")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for model in options.models:
        measure(model, options.photo, options.words, options.rounds, options.task, options.device)


if __name__ == "__main__":
    main()

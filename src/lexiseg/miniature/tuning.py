"""Each system, trained from the same base on the same photos by its own recipe, and set behind the same generator.

A system is a classifier of masks here: its own generator, where its recipe trains one, is left aside. How much its
verdict weighs against the generator's is chosen on validation photos, for all systems alike.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lexiseg.evaluation import evaluate_model
from lexiseg.miniature.material import TOGETHER, open_package
from lexiseg.segmenter import Segmenter
from lexiseg.train.recipes import maftplus, mask_adapter
from lexiseg.train.recipes.embedded import CANVAS, OUTPUTS
from lexiseg.weights.files import replacing
from lexiseg.zoo.loading import compose_folder

WEIGHTS = (0.25, 0.5, 0.75)
"""Of the classifier's verdict, tried out."""
JUDGES = ("camvid", "msrc")
"""Packages whose val splits choose."""


@dataclass(frozen=True)
class Start:
    """What a training begins with."""

    material: Path
    base: Path
    """The model folder of the base."""
    seed: int
    share: float
    """Of the usual steps: less than 1 to try the benchmark out."""
    deadline: float | None

    def steps(self, usual: int) -> int:
        return max(1, round(self.share * usual))

    @property
    def together(self) -> Path:
        return self.material / f"{TOGETHER}.zip"

    @property
    def common(self) -> Mapping[str, Any]:
        return {"start": str(self.base), "seed": self.seed, "deadline": self.deadline}


Tuning = Callable[[Start, Path], bool]
"""Trains, or goes on training, in a folder, and leaves the model in `model` there; whether it is complete."""


def tune_maftplus(start: Start, out: Path) -> bool:
    return maftplus.train_package(
        start.together, out, steps=start.steps(400), batch=2, short_edge=256, long_edge=384, points=2048, **start.common
    )


def tune_mask_adapter(start: Start, out: Path) -> bool:
    return mask_adapter.train_package(
        start.together,
        out,
        warmup_steps=start.steps(400),
        warmup_batch=4,
        warmup_crop=192,
        steps=start.steps(120),
        batch=2,
        crop=256,
        adapter_width=96,
        **start.common,
    )


@dataclass(frozen=True)
class Entrant:
    """A system, or a variant of one that a claim is about."""

    name: str
    title: str
    tune: Tuning | None = None
    """None: the base as it is."""
    variant_of: str | None = None


ENTRANTS = (
    Entrant("fcclip", "FC-CLIP"),
    Entrant("maftplus", "MAFT+", tune_maftplus),
    Entrant("mask-adapter", "Mask-Adapter", tune_mask_adapter),
)


def assemble(start: Start, tuned: Path, out: Path, photos: int) -> Path:
    """The base's generator before a tuned classifier: a model folder in `out`, with what was tried in out/tried.json.

    photos: of each judge, for the choice of the weight.
    """
    tried = out / "tried.json"
    if not tried.is_file():
        means = {weight: validation_miou(start, tuned, weight, photos) for weight in WEIGHTS}
        chosen = max(WEIGHTS, key=means.__getitem__)
        pair: dict[str, Any] = {"alpha": chosen, "beta": chosen, "canvas": CANVAS, "outputs": OUTPUTS}
        compose_folder(out / out.name, start.base, tuned, **pair)
        shown = {str(weight): round(100 * mean, 2) for weight, mean in means.items()}
        with replacing(tried) as temporary:
            temporary.write_text(json.dumps({"weight": chosen, "validation mIoU": shown}) + "\n", encoding="utf-8")
    return out / out.name


def validation_miou(start: Start, tuned: Path, weight: float, photos: int) -> float:
    """Mean over the judges of the mIoU, 0..1."""
    segmenter = Segmenter.compose(start.base, tuned, "cpu", alpha=weight, beta=weight, canvas=CANVAS, outputs=OUTPUTS)
    found = []
    for judge in JUDGES:
        package = open_package(start.material, judge)
        answer = evaluate_model(
            segmenter, package, split="val", limit=photos, measures=("miou",), device="cpu", progress=False
        )
        assert answer.semantic is not None
        found.append(answer.semantic.miou["gt"])
    return statistics.fmean(found)

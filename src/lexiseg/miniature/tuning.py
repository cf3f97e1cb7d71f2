"""Each system, trained from the same base on the same photos by its own recipe, and set behind the same generator.

A system is a classifier of masks here: its own generator, where its recipe trains one, is left aside. How much its
verdict weighs against the generator's is chosen on validation photos, for all systems alike.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lexiseg.evaluation import evaluate_model
from lexiseg.images import Canvas
from lexiseg.miniature.base import WEIGHT
from lexiseg.miniature.material import CAPTIONED, TOGETHER, open_package
from lexiseg.miniature.questions import Question
from lexiseg.mining.running import Miner, Run, Settings, Source
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.segmenter import Segmenter
from lexiseg.system import System
from lexiseg.train.recipes import maft, maftplus, mask_adapter, maskclip_pp, ovseg, tiny_vit
from lexiseg.train.recipes.embedded import OUTPUTS
from lexiseg.types import Images, Proposals, Scores, TextBank
from lexiseg.weights.files import replacing
from lexiseg.zoo.loading import compose_folder, load, settings_of
from lexiseg.zoo.model_folder import SETTINGS_FILE, save_model_folder

MODEL = "model"
"""The folder in which every training leaves its model."""
ASSEMBLED = "systems"
"""The folder of the models that are measured."""
TRIED = "tried.json"
"""The weights of the verdict that were tried, and the one that is used."""
CANVAS = Canvas(short_edge=256, long_edge=384, multiple=32)
"""For all systems alike, and for MAFT+'s training. On validation photos the base does better at this size than at the
360 x 600 of the embedded models."""
CROP_SIDE = 96
"""Of masked crops, pixels."""
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
    shared: Path
    """For what is made once for all seeds."""
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
    def common(self) -> dict[str, Any]:
        return {"start": str(self.base), "seed": self.seed, "deadline": self.deadline}


Tuning = Callable[[Start, Path], bool]
"""Trains, or goes on training, in a folder, and leaves the model in `model` there; whether it is complete."""


def tune_maftplus(start: Start, out: Path) -> bool:
    return maftplus.train_package(
        start.together,
        out,
        steps=start.steps(960),
        batch=2,
        short_edge=CANVAS.short_edge,
        long_edge=CANVAS.long_edge,
        points=2048,
        **start.common,
    )


def take_transfer_away(start: Start, out: Path) -> bool:
    """MAFT+ of the same seed, its words as they were before they saw the image."""
    tuned = load(out.parent / f"maftplus-{start.seed}" / MODEL)
    settings = settings_of(start.base)
    state = tuned.system.state_dict()
    save_model_folder(
        out / MODEL,
        {name: value for name, value in state.items() if not name.startswith("scorer.transfer.")},
        tuned.text_encoder(),
        builder=settings.builder,
        arguments=settings.arguments,
        templates=list(tuned.templates),
        canvas=tuned.canvas,
        training_phrases=tuned.training_phrases,
    )
    return True


def tune_mask_adapter(start: Start, out: Path, below: Path | None = None) -> bool:
    """below: the model the adapter stands on; None is the base."""
    return mask_adapter.train_package(
        start.together,
        out,
        warmup_steps=start.steps(400),
        warmup_batch=4,
        warmup_crop=192,
        steps=start.steps(60),
        batch=2,
        crop=256,
        adapter_width=48,
        learning_rate=1e-3,
        **start.common | ({} if below is None else {"start": str(below)}),
    )


def tune_maskclip_pp(start: Start, out: Path, alignment: str = "on") -> bool:
    report = maskclip_pp.train_masks(
        start.together,
        out,
        steps=start.steps(320),
        batch=4,
        crop=224,
        smallest_scale=0.6,
        tower_scale=0.1,
        alignment=alignment,
        **start.common,
    )
    return report is not False


def tune_ovseg(start: Start, out: Path, order: str = "full-prompts") -> bool:
    pairs = mined(start)
    return pairs is not None and ovseg.train_pairs(
        pairs,
        out,
        order=order,
        epochs=4 * start.share,
        prompt_epochs=4 * start.share,
        batch=32,
        learning_rate=1e-4,
        prompt_learning_rate=0.02,
        crop_side=CROP_SIDE,
        template="own",
        **start.common,
    )


def mined(start: Start) -> Path | None:
    """Pairs from the captions, by the base; None where time has run out first."""
    folder = start.shared / "pairs"
    settings = Settings(model=str(start.base), crop_side=CROP_SIDE)
    run = Run.start(folder, Source(str(start.material / f"{CAPTIONED}.zip")), settings)
    miner = Miner(run, "cpu") if run.missing else None
    for number in run.missing:
        if start.deadline is not None and time.time() > start.deadline:
            return None
        assert miner is not None
        miner.mine(number)
    return folder


def read_crops(start: Start, out: Path) -> bool:
    """The base's CLIP shown masked crops, as it is."""
    found, system, arguments = ovseg.start_system(start.base, "full", CROP_SIDE, torch.device("cpu"))
    text = found.text_encoder()
    parts: dict[str, Any] = {"templates": list(found.templates), "canvas": found.canvas}
    save_model_folder(out / MODEL, system, text, builder="ovseg_given", arguments=arguments, **parts)
    return True


def tune_maft(start: Start, out: Path) -> bool:
    teacher = shared_transformer(start)
    return teacher is not None and maft.train_package(
        start.together,
        out,
        start=str(teacher),
        masks=str(start.base),
        steps=start.steps(400),
        batch=8,
        crop=192,
        learning_rate=3e-4,
        seed=start.seed,
        deadline=start.deadline,
    )


def shared_transformer(start: Start) -> Path | None:
    """A small transformer that gives whole pictures the embeddings of the base's tower, and knows nothing of masks.

    Its model folder; None where time has run out before it was complete.
    """
    out = start.shared / "transformer"
    steps = start.steps(tiny_vit.STEPS)
    if (out / MODEL / SETTINGS_FILE).is_file() or tiny_vit.train(
        start.material, out, teacher=str(start.base), steps=steps, deadline=start.deadline
    ):
        return out / MODEL
    return None


def take_transformer(start: Start, out: Path) -> bool:
    """MAFT before its training."""
    teacher = shared_transformer(start)
    if teacher is not None:
        shutil.copytree(teacher, out / MODEL, dirs_exist_ok=True)
    return teacher is not None


@dataclass(frozen=True)
class Entrant:
    """A system, or a variant of one that a claim is about."""

    name: str
    title: str
    tune: Tuning | None = None
    """None: the base as it is."""
    variant_of: str | None = None
    """Variants are asked to name true masks, nothing else."""
    trained: bool = True
    """What was not trained has one seed."""
    ready: Callable[[Start, Path], Path] | None = None
    """Makes the model that is measured in the benchmark's folder, in the place of training and assembling."""
    after: str | None = None
    """The entrant whose model this one is made of."""

    def answers(self, question: Question) -> bool:
        return self.variant_of is None or question.given_masks is not None


ENTRANTS = (
    Entrant("fcclip", "FC-CLIP", trained=False),
    Entrant("ovseg", "OVSeg", tune_ovseg),
    Entrant("maft", "MAFT, on a transformer", tune_maft),
    Entrant("maftplus", "MAFT+", tune_maftplus),
    Entrant("mask-adapter", "Mask-Adapter", tune_mask_adapter),
    Entrant("maskclip-pp", "MaskCLIP++", tune_maskclip_pp),
    Entrant("ovseg-frozen", "CLIP on masked crops", read_crops, "ovseg", trained=False),
    Entrant("ovseg-prompts", "OVSeg, prompts alone", partial(tune_ovseg, order="prompts"), "ovseg"),
    Entrant("maft-frozen", "MAFT before training", take_transformer, "maft", trained=False),
    Entrant("maftplus-plain-text", "MAFT+, words that do not see", take_transfer_away, "maftplus", after="maftplus"),
    Entrant("maskclip-pp-unaligned", "MaskCLIP++ unaligned", partial(tune_maskclip_pp, alignment="off"), "maskclip-pp"),
)
"""The systems and their variants."""


def training_folder(name: str, seed: int, out: Path) -> Path:
    """Where an entrant is trained; its model is in `MODEL` there."""
    return out / "tuned" / f"{name}-{seed}"


def measured_folder(name: str, seed: int, out: Path) -> Path:
    """Where the model of an entrant lies that is measured; its name is the name of the folder."""
    return out / ASSEMBLED / f"{name}-{seed}" / f"{name}-{seed}"


def assemble(start: Start, tuned: Path, out: Path, photos: int, generator: Path | None = None) -> Path:
    """A generator, the base's by default, before a tuned classifier: a model folder in `out`, named like it.

    What was tried is in out/tried.json. photos: of each judge, for the choice of the weight; with 0 nothing is tried.
    With given masks it does not matter.
    """
    drawn = start.base if generator is None else generator
    if not is_assembled(out):
        means = validation_miou(start.material, drawn, tuned, photos) if photos else {}
        chosen = max(means, key=means.__getitem__, default=WEIGHT)
        pair: dict[str, Any] = {"alpha": chosen, "beta": chosen, "canvas": CANVAS, "outputs": OUTPUTS}
        compose_folder(out / out.name, drawn, tuned, **pair)
        shown = {str(weight): round(100 * mean, 2) for weight, mean in means.items()}
        with replacing(out / TRIED) as temporary:
            temporary.write_text(json.dumps({"weight": chosen, "validation mIoU": shown}) + "\n", encoding="utf-8")
    return out / out.name


def is_assembled(out: Path) -> bool:
    """Whether `assemble` has done its work in this folder: what was tried is written last."""
    return (out / TRIED).is_file()


def validation_miou(material: Path, generator: Path, tuned: Path, photos: int) -> dict[float, float]:
    """Weight -> mean over the judges of the mIoU, 0..1. Every photo is read once for all weights.

    Raises ValueError where so few photos of a judge show none of its classes: a choice by nothing is none.
    """
    pair: dict[str, Any] = {"alpha": WEIGHT, "beta": WEIGHT, "canvas": CANVAS, "outputs": OUTPUTS}
    composed = Segmenter.compose(generator, tuned, "cpu", **pair).model
    system, fuse = ReadOnce(composed.system), composed.system.fuse
    assert isinstance(fuse, GeometricEnsemble)  # the base's generator knows classes
    segmenter = Segmenter(replace(composed, system=system), "cpu")
    packages = [open_package(material, judge) for judge in JUDGES]
    means = {}
    for weight in WEIGHTS:
        fuse.alpha = fuse.beta = weight
        found = []
        for package in packages:
            answer = evaluate_model(
                segmenter, package, split="val", limit=photos, measures=("miou",), device="cpu", progress=False
            )
            assert answer.semantic is not None
            if math.isnan(answer.semantic.miou["gt"]):
                raise ValueError(f"{package.name}: {photos} of its validation photos show no class; judge by more")
            found.append(answer.semantic.miou["gt"])
        means[weight] = statistics.fmean(found)
    return means


class ReadOnce(System):
    """A system that remembers what it read in each photo, so that other fusions of it cost nothing.

    For one vocabulary per photo: the words are not part of what it is remembered by.
    """

    def __init__(self, system: System) -> None:
        super().__init__(system.encoder, system.generator, system.embedder, system.scorer, system.fuse)
        self.remembered: dict[bytes, tuple[Proposals, Tensor, Tensor]] = {}

    def forward(self, images: Images, text: TextBank) -> tuple[Proposals, Scores]:
        photo = hashlib.sha256(images.pixels.numpy().tobytes()).digest()
        if photo not in self.remembered:
            features = self.encoder(images) if self.encoder is not None else None
            self.remembered[photo] = self.judge(images, features, text)
        proposals, region_logits, valid = self.remembered[photo]
        return proposals, self.fuse(proposals, region_logits, valid, text)

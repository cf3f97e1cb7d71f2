"""MaskCLIP++: a CLIP tuned to name true masks, on COCO, or on masks of your own.

High-Quality Mask Tuning Matters for Open-Vocabulary Segmentation (arXiv 2412.11464).

Data:      COCO 2017 train with panoptic annotations (133 classes), or COCO-Stuff-164k (171 classes, --crops short-edge)
Time:      20 000 steps of 4 photos: 2 to 4 hours on two GPUs of 24 GB
Expect:    mask accuracy, before / after: ADE20K-150 52.7 / 67.0, Context-59 54.6 / 85.2 (EVA02-L, words tuned)
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.images import place
from lexiseg.train.loop import RunState, run, share_of
from lexiseg.train.mask_tuning import (
    Batches,
    TrainingWords,
    Tuned,
    loss_of_masks,
    parameter_groups,
    seeing_crops,
)
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.recipes import fcclip
from lexiseg.train.recipes.fcclip import photo_numbers
from lexiseg.train.semantic_crops import semantic_crop, short_edges
from lexiseg.types import Images

TOTAL_STEPS = 20_000
BATCH = 4
LEARNING_RATE = 2e-4
LAST_RATE = 1e-5
GRADIENT_NORM = 0.01
TEXT_SCALE = 0.01
"""Of the learning rate, for the words' tower."""
TENTHS = range(3, 20)
"""Short edges of the crops on COCO-Stuff, in tenths of the crop."""
LONG_EDGE = 4096

CropRule = Literal["large-scale", "short-edge"]
"""How a crop is made of a photo: as FC-CLIP does (COCO panoptic), or as detectron2's semantic mapper (COCO-Stuff)."""


@dataclass(frozen=True)
class Corpus:
    """Photos with true masks, and their classes as words."""

    photos: Sequence[PanopticPhoto]
    words: TrainingWords


def cosine_schedule(step: int, total_steps: int, warmup: int = 0, last: float = LAST_RATE / LEARNING_RATE) -> float:
    """Factor on the learning rate: half a cosine from 1 down to `last`. There is no warm-up."""
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * step / total_steps))


def batch_of(
    rng: random.Random,
    photos: Sequence[PanopticPhoto],
    rule: CropRule,
    crop: int,
    scales: tuple[float, float],
    multiple: int,
    device: torch.device,
) -> tuple[Images, list[SegmentTargets]]:
    """Crops of the photos and their masks. scales: of the rule "large-scale", see `recipes.fcclip.augment`.

    By the rule "short-edge" crops may be smaller than `crop`, and segments that a crop has lost are gone; by the other
    one they stay, with an empty mask.
    """
    if rule == "large-scale":
        return fcclip.batch_of(rng, photos, crop, device, scales)
    edges = short_edges(crop, TENTHS)
    pairs = [semantic_crop(rng, photo.image, photo.ids, crop, edges, LONG_EDGE) for photo in photos]
    images = place([image for image, _ in pairs], [ids.shape for _, ids in pairs], multiple)
    targets = []
    for (_, ids), photo in zip(pairs, photos, strict=True):
        present = set(ids.reshape(-1).tolist())
        found = fcclip.targets_of(ids, {number: index for number, index in photo.classes.items() if number in present})
        targets.append(SegmentTargets(found.labels.to(device), found.masks.to(device)))
    return images.to(device), targets


def train(
    tuned: Tuned,
    corpora: Sequence[Corpus],
    out: Path,
    *,
    total_steps: int = TOTAL_STEPS,
    batch: int = BATCH,
    rule: CropRule = "large-scale",
    crop: int = 1024,
    scales: tuple[float, float] = fcclip.SCALES,
    learning_rate: float = LEARNING_RATE,
    tower_scale: float = 1e-3,
    text_scale: float = TEXT_SCALE,
    balanced: bool = True,
    batches: Batches = "alone",
    autocast: torch.dtype | None = None,
    seed: int = 0,
    **loop: Any,
) -> bool:
    """Tune a classifier on true masks, resuming from `out` where a run has begun there.

    Every step is of one corpus, drawn by its share of the photos, whose words are all that its masks compete for.
    batch: photos per step of all processes together. tower_scale, text_scale: see `parameter_groups`. Further keywords
    go to `loop.run`. Returns whether the training is complete.
    """
    groups = parameter_groups(tuned, learning_rate, tower_scale, text_scale)
    device = next(tuned.embedder.parameters()).device
    multiple = tuned.embedder.view.multiple
    rank, processes = share_of(batch)
    weights = [len(corpus.photos) for corpus in corpora]

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        # The same for all processes, unlike what `rng` draws.
        (corpus,) = random.Random(f"{seed} {step}").choices(corpora, weights)
        numbers = list(photo_numbers(seed, step, len(corpus.photos), batch))[rank::processes]
        chosen = [corpus.photos[number] for number in numbers]
        images, targets = batch_of(rng, chosen, rule, crop, scales, multiple, device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            text = corpus.words.draw(rng, tuned)
            loss, right = loss_of_masks(tuned, images, targets, text, balanced=balanced, batches=batches)
        return loss, {"loss": float(loss.detach()), "right": float(right)}

    schedule: Callable[[int, int, int], float] = partial(cosine_schedule, last=min(1.0, LAST_RATE / learning_rate))
    with seeing_crops(tuned):
        return run(
            loss_of,
            RunState(tuned.modules, torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)),
            total_steps,
            out,
            learning_rate=learning_rate,
            schedule=schedule,
            clip=GRADIENT_NORM,
            average_decay=0.0,  # the official training keeps no running average
            seed=seed,
            **loop,
        )

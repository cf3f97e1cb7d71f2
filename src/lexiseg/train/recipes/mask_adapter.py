"""Mask-Adapter on FC-CLIP or MAFT+, in two stages: true masks first, then true and generated ones.

Mask-Adapter (CVPR 2025, arXiv 2412.04533), section 3.3, with the settings of its released code.

Data:      COCO 2017 train: every segment of the panoptic annotations for FC-CLIP, a mask per class of COCO-Stuff for
           MAFT+
Time:      295 717 steps of 8 crops of 768 x 768 (20 epochs), then 49 286 of 24 crops of 1024 x 1024 (10 epochs);
           the second stage took about a day on four large GPUs
Expect:    zero-shot ADE20K: 36.6 mIoU on FC-CLIP with ConvNeXt-L, 35.6 and 38.2 on MAFT+ base and large; users who
           kept the last step of the first stage, and not the best one on true masks, report about one point less

Command:   lexiseg train mask-adapter --data PACKAGE --start MODEL --out RUN, which runs both stages and leaves the
           model in RUN/model

Everything but the adapter is frozen; on FC-CLIP the void embedding trains with it, and with it the generator's void.
The official runs used float16 with loss scaling. Here autocast is bfloat16, which needs no scaling, where the device
has it.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.data.package_splits import PackageSegments
from lexiseg.data.packages import LabelledPhotos
from lexiseg.images import Canvas
from lexiseg.layers.text_logits import template_mean, text_logits
from lexiseg.proposals.fcclip import FCCLIPGenerator, fcclip_generator
from lexiseg.regions.mask_adapter import MaskAdapter, MaskAdapterPool
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.image_conditioned import ImageConditioned
from lexiseg.system import System
from lexiseg.text_bank import text_bank
from lexiseg.train.loop import LOG_EVERY, SAVE_EVERY, RunState, run, share_of
from lexiseg.train.mask_adapter import (
    WARMUP_SLOTS,
    AdapterCriterion,
    OverlapMatcher,
    label_loss,
    mixed_slots,
    present,
    stack,
    truth_slots,
)
from lexiseg.train.points import uniform
from lexiseg.train.recipes.fcclip import batch_of, photo_numbers
from lexiseg.types import Features, Images, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load, settings_of
from lexiseg.zoo.mask_adapter import CANVAS, FCCLIP_OVERLAP_THRESHOLD, MAFTPLUS_OVERLAP_THRESHOLD
from lexiseg.zoo.model_folder import BUILDERS, Model, OutputSettings, save_model_folder

LEARNING_RATE = 1e-4
GRADIENT_NORM = 1.0
WARMUP_STEPS, WARMUP_DROPS, WARMUP_BATCH, WARMUP_CROP = 295_717, (260_231, 283_888), 8, 768
WARMUP_DECAY = 0.05
TOTAL_STEPS, DROPS, BATCH, CROP = 49_286, (43_371, 47_314), 24, 1024

Schedule = Callable[[int, int, int], float]


@dataclass(frozen=True)
class Habits:
    """Where the second stages of the released models differ."""

    binarisation: float
    """From which probability on a pixel counts as generated, for the matcher."""
    detach_truth: bool
    trains_void: bool
    weight_decay: float
    schedule: Schedule


def step_schedule(
    step: int, total_steps: int, warmup: int = 0, *, drops: Sequence[int] = DROPS, of: int = TOTAL_STEPS
) -> float:
    """Factor on the learning rate: a tenth after each drop. The drops move with the length of the training."""
    return 0.1 ** sum(step >= round(drop * total_steps / of) for drop in drops)


def polynomial_schedule(step: int, total_steps: int, warmup: int = 0) -> float:
    """Factor on the learning rate, down to zero."""
    return (1 - step / total_steps) ** 0.9


ON_FCCLIP = Habits(0.4, detach_truth=True, trains_void=True, weight_decay=0.05, schedule=step_schedule)
ON_MAFTPLUS = Habits(0.5, detach_truth=False, trains_void=False, weight_decay=2e-5, schedule=polynomial_schedule)


@dataclass(frozen=True)
class Parts:
    """The slots of a system with an adapter, by their kinds."""

    encoder: nn.Module
    generator: FCCLIPGenerator
    embedder: MaskAdapterPool
    scorer: Cosine | ImageConditioned

    @property
    def habits(self) -> Habits:
        return ON_MAFTPLUS if isinstance(self.scorer, ImageConditioned) else ON_FCCLIP


def parts_of(system: System) -> Parts:
    """Everything frozen and in evaluation mode but the adapter, which trains."""
    encoder, generator, embedder, scorer = system.encoder, system.generator, system.embedder, system.scorer
    if (
        encoder is None
        or not isinstance(generator, FCCLIPGenerator)
        or not isinstance(embedder, MaskAdapterPool)
        or not isinstance(scorer, Cosine | ImageConditioned)
    ):
        raise TypeError("this recipe trains the adapter of a system with FC-CLIP's generator and a shared encoder")
    system.eval().requires_grad_(False)
    embedder.adapter.requires_grad_(True)
    return Parts(encoder, generator, embedder, scorer)


def region_rows(
    scorer: Cosine | ImageConditioned, text: TextBank, void: nn.Embedding, dense: Tensor
) -> tuple[Tensor, Tensor, int]:
    """What slots are compared with, void last: rows [A + 1, D] or, of every picture, [B, A + 1, D]; class_of; K + 1."""
    rows = torch.cat((template_mean(text.region), functional.normalize(void.weight, dim=-1)))
    class_of = torch.cat((text.class_of, text.class_of.new_tensor([text.num_classes])))
    if isinstance(scorer, ImageConditioned):
        rows = scorer.transfer(rows, dense)
    return rows, class_of, text.num_classes + 1


def embeds_and_logits(
    parts: Parts, features: Features, masks: Tensor, text: TextBank, void: nn.Embedding
) -> tuple[Tensor, Tensor]:
    """masks [B, S, H, W] in 0..1 on the canvas -> embeds [B, S, D], logits [B, S, K + 1]."""
    dense = parts.embedder.dense(features)
    embeds = parts.embedder.embed(features, parts.embedder.adapter(dense, masks))
    rows, class_of, columns = region_rows(parts.scorer, text, void, dense)
    with torch.autocast(rows.device.type, enabled=False):
        scale = torch.as_tensor(parts.scorer.logit_scale, device=rows.device).float()
        return embeds, text_logits(embeds.float(), rows.float(), class_of, columns, scale)


def parameter_groups(
    adapter: MaskAdapter, void: nn.Embedding, weight_decay: float, learning_rate: float = LEARNING_RATE
) -> list[dict[str, Any]]:
    """One optimiser group per trainable parameter.

    Only the norm before the last convolution and the void embedding are not decayed. The norms of the blocks and of
    the mask stem are, and the scales of the blocks: the official trainer did not take them for norms.
    """
    spared = {id(parameter) for parameter in (*adapter.norm.parameters(), void.weight)}
    return [
        {"params": [p], "lr": learning_rate, "weight_decay": 0.0 if id(p) in spared else weight_decay}
        for p in (*adapter.parameters(), void.weight)
        if p.requires_grad
    ]


def warm_up(
    system: System,
    text: TextBank,
    photos: Sequence[PanopticPhoto],
    out: Path,
    *,
    total_steps: int = WARMUP_STEPS,
    batch: int = WARMUP_BATCH,
    crop: int = WARMUP_CROP,
    learning_rate: float = LEARNING_RATE,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    **loop: Any,
) -> bool:
    """The first stage: the adapter learns to look at true masks. The generator takes no part.

    It has a void embedding of its own, random, which is pushed away from everything and thrown away at the end.
    text: the rows of the photos' classes, encoded once. batch: crops per step of all processes together. Further
    keywords go to `loop.run`. Returns whether the training is complete.
    """
    parts = parts_of(system)
    device = parts.generator.void_embedding.weight.device
    torch.manual_seed(seed)
    void = nn.Embedding(1, parts.generator.void_embedding.embedding_dim, device=device)

    def loss_of(images: Images, targets: list[Any]) -> dict[str, Tensor]:
        draw = uniform(device)
        masks, labels = stack([truth_slots(present(target), WARMUP_SLOTS, draw) for target in targets])
        with torch.no_grad():
            features = parts.encoder(images)
        _, logits = embeds_and_logits(parts, features, masks, text, void)
        return {"loss_ce": AdapterCriterion.class_weight * label_loss(logits, labels)}

    schedule = partial(step_schedule, drops=WARMUP_DROPS, of=WARMUP_STEPS)
    sizes = Sizes(total_steps, batch, crop, learning_rate)
    return _train(parts, void, WARMUP_DECAY, schedule, loss_of, photos, out, sizes, autocast, seed, loop)


def train(
    system: System,
    text: TextBank,
    photos: Sequence[PanopticPhoto],
    out: Path,
    *,
    total_steps: int = TOTAL_STEPS,
    batch: int = BATCH,
    crop: int = CROP,
    learning_rate: float = LEARNING_RATE,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    **loop: Any,
) -> bool:
    """The second stage: true masks, generated ones that lie on them, and those true ones as the generator sees them.

    The adapter comes from the first stage. Arguments as for `warm_up`.
    """
    parts = parts_of(system)
    habits, void = parts.habits, parts.generator.void_embedding
    void.requires_grad_(habits.trains_void)
    device = void.weight.device
    criterion = AdapterCriterion(habits.detach_truth)
    matcher = OverlapMatcher(binarisation=habits.binarisation, most=criterion.plan.pairs)

    def loss_of(images: Images, targets: list[Any]) -> dict[str, Tensor]:
        draw = uniform(device)
        with torch.no_grad():
            features = parts.encoder(images)
            mask_logits = parts.generator(images, features, text).mask_logits
        slots = []
        for logits, target in zip(mask_logits, map(present, targets), strict=True):
            truth = truth_slots(target, criterion.plan.truth, draw)
            pairs = matcher(logits, target, draw)
            slots.append(mixed_slots(logits, target, pairs, truth, parts.embedder.mask_threshold, criterion.plan))
        masks, labels = stack(slots)
        embeds, logits = embeds_and_logits(parts, features, masks, text, void)
        return criterion.weighted(criterion(embeds, logits, labels))

    sizes = Sizes(total_steps, batch, crop, learning_rate)
    return _train(parts, void, habits.weight_decay, habits.schedule, loss_of, photos, out, sizes, autocast, seed, loop)


@dataclass(frozen=True)
class Sizes:
    """How long, how large, how fast."""

    total_steps: int
    batch: int
    crop: int
    learning_rate: float


def _train(
    parts: Parts,
    void: nn.Embedding,
    weight_decay: float,
    schedule: Schedule,
    losses_of: Callable[[Images, list[Any]], dict[str, Tensor]],
    photos: Sequence[PanopticPhoto],
    out: Path,
    sizes: Sizes,
    autocast: torch.dtype | None,
    seed: int,
    loop: dict[str, Any],
) -> bool:
    """Both stages: the same photos, optimiser and loop."""
    device = void.weight.device
    rank, processes = share_of(sizes.batch)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        numbers = list(photo_numbers(seed, step, len(photos), sizes.batch))[rank::processes]
        images, targets = batch_of(rng, [photos[number] for number in numbers], sizes.crop, device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            losses = losses_of(images, targets)
        total = torch.stack(list(losses.values())).sum()
        return total, {"loss": float(total.detach()), **{name: float(x.detach()) for name, x in losses.items()}}

    groups = parameter_groups(parts.embedder.adapter, void, weight_decay, sizes.learning_rate)
    trained = nn.ModuleDict({"adapter": parts.embedder.adapter, "void": void})
    return run(
        loss_of,
        RunState(trained, torch.optim.AdamW(groups, lr=sizes.learning_rate, betas=(0.9, 0.999), eps=1e-8)),
        sizes.total_steps,
        out,
        learning_rate=sizes.learning_rate,
        schedule=schedule,
        clip=GRADIENT_NORM,
        average_decay=0.0,  # the official training keeps no running average
        seed=seed,
        **loop,
    )


def start_system(
    model: str | Path, adapter_width: int, device: torch.device
) -> tuple[Model, System, str, dict[str, Any]]:
    """A model on this machine, the same with an adapter, and the builder and arguments that make such a system.

    A model that has an adapter stays as it is; FC-CLIP and MAFT+ get a fresh one.
    """
    settings = settings_of(model)
    found = load(model, device)
    if isinstance(found.system.embedder, MaskAdapterPool):
        return found, found.system, settings.builder, dict(settings.arguments)
    builder = f"mask_adapter_{settings.builder}"
    if builder not in BUILDERS:
        raise ValueError(f"{model}: its builder is {settings.builder!r}; an adapter stands on FC-CLIP or on MAFT+")
    function = BUILDERS[builder].system
    # Exponents were chosen without an adapter, and are left behind.
    kept = {*inspect.signature(function).parameters, *inspect.signature(fcclip_generator).parameters} - {
        "alpha",
        "beta",
    }
    arguments = {name: value for name, value in settings.arguments.items() if name in kept}
    arguments["adapter_width"] = adapter_width
    system = function(**arguments, device=device)
    fresh = {name: x for name, x in system.state_dict().items() if name.startswith("embedder.adapter.")}
    system.load_state_dict({**fresh, **found.system.state_dict()})
    return found, system, builder, arguments


def train_package(
    data: Path,
    out: Path,
    start: str = "street-tiny",
    split: str = "train",
    warmup_steps: int = WARMUP_STEPS,
    warmup_batch: int = WARMUP_BATCH,
    warmup_crop: int = WARMUP_CROP,
    steps: int = TOTAL_STEPS,
    batch: int = BATCH,
    crop: int = CROP,
    long_edge: int = CANVAS.long_edge,
    adapter_width: int = 768,
    learning_rate: float = LEARNING_RATE,
    device: str = "cpu",
    seed: int = 0,
    save_every: int = SAVE_EVERY,
    log_every: int = LOG_EVERY,
    deadline: float | None = None,
) -> bool:
    """Both stages on a package of labelled photos, for `start`, a name of the zoo or a folder; whether it is complete.

    The classes of the package are the words. On FC-CLIP objects are masks of their own, where the package tells them
    apart; on MAFT+ a class is one mask. warmup_steps: 0 leaves the first stage out. long_edge: to which the model
    brings photos. learning_rate: the official one unless given; a narrow adapter needs a larger one. The same command
    goes on where a run was stopped. When it is complete, the model is in out/model.
    """
    package = LabelledPhotos(data)
    torch.manual_seed(seed)
    where = torch.device(device)
    model, system, builder, arguments = start_system(start, adapter_width, where)
    on_maftplus = isinstance(system.scorer, ImageConditioned)
    vocabulary = Vocabulary.parse(list(package.classes))
    bank = text_bank(vocabulary, model.templates, model.text_encoder, vocabulary.phrases)
    text = TextBank(bank.query.to(where), bank.region.to(where), bank.class_of.to(where), bank.seen.to(where))
    photos = PackageSegments(package, split, by_region=not on_maftplus)
    shared: dict[str, Any] = {
        "learning_rate": learning_rate,
        "autocast": torch.bfloat16 if where.type == "cuda" else None,
        "seed": seed,
        "save_every": save_every,
        "log_every": log_every,
        "deadline": deadline,
    }
    sizes: dict[str, Any] = {"total_steps": warmup_steps, "batch": warmup_batch, "crop": warmup_crop}
    if warmup_steps and not warm_up(system, text, photos, out / "warm-up", **sizes, **shared):
        return False
    if not train(system, text, photos, out / "mixed", total_steps=steps, batch=batch, crop=crop, **shared):
        return False
    overlap = MAFTPLUS_OVERLAP_THRESHOLD if on_maftplus else FCCLIP_OVERLAP_THRESHOLD
    save_model_folder(
        out / "model",
        system,
        model.text_encoder(),
        builder=builder,
        arguments=arguments,
        templates=list(model.templates),
        canvas=Canvas(long_edge, long_edge, model.canvas.multiple),
        outputs=OutputSettings(overlap_threshold=overlap),
        training_phrases=vocabulary.phrases,
        card={"title": f"Mask-Adapter on {package.name}", "started_from": model.name, "steps": [warmup_steps, steps]},
    )
    return True

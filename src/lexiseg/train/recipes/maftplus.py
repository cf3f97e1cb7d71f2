"""MAFT+ on COCO-Stuff: generator, CLIP's image trunk and the transfer trained together, CLIP held near where it was.

Collaborative Vision-Text Representation Optimizing for Open-Vocabulary Segmentation (ECCV 2024, arXiv 2408.00744).

Data:      COCO-Stuff-164k, train2017: 118 287 photos labelled with 171 classes, 255 for none
Time:      60 000 steps (base; 55 000 for large) of 8 photos: about 14 hours on eight A100
Expect:    zero-shot mIoU, base / large: ADE20K-150 34.6 / 36.1, Context-59 57.5 / 59.4, VOC-20 95.4 / 96.5

Command:   lexiseg train maftplus --data PACKAGE --start MODEL --out RUN, which leaves the tuned model in RUN/model
Panoptic:  with --targets segments --steps 55000 --norm-order before_sum, on COCO panoptic, as far as is known: the
           configuration of that run was not published

Start from a system whose trunk and projection are CLIP's own, generator and transfer random: the trunk is copied when
training begins, and the copy is what the compensation loss compares with. The words stay CLIP's. The official run used
float16 with loss scaling; here it is bfloat16 on a GPU, which needs no scaling, and float32 on a CPU.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.data.package_splits import PackagePhotos, PackageSegments
from lexiseg.data.packages import LabelledPhoto, LabelledPhotos
from lexiseg.geometry import fit_short_edge, round_up
from lexiseg.images import Canvas, Photo, place
from lexiseg.layers.dense_projection import DenseOrder
from lexiseg.proposals.fcclip import FCCLIPGenerator, fcclip_generator
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.scoring.image_conditioned import ImageConditioned, NormOrder
from lexiseg.system import System
from lexiseg.text_bank import text_bank
from lexiseg.train.loop import LOG_EVERY, SAVE_EVERY, RunState, run, share_of
from lexiseg.train.losses import Criterion
from lexiseg.train.mask_aware import compensation_loss, mask_aware_loss
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import Draw
from lexiseg.train.recipes import fcclip
from lexiseg.train.recipes.fcclip import CROP, photo_numbers
from lexiseg.types import Features, Images, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load, settings_of
from lexiseg.zoo.maftplus import OBJECT_MASK_THRESHOLD, OVERLAP_THRESHOLD, maftplus
from lexiseg.zoo.model_folder import Model, OutputSettings, save_model_folder

LEARNING_RATE = 1e-4
TRUNK_SCALE = 0.1
"""Of the learning rate, for CLIP's trunk."""
WEIGHT_DECAY = 2e-5
TOTAL_STEPS = 60_000
BATCH = 8
GRADIENT_NORM = 0.01
SEED = 123
CANVAS = Canvas()
"""Whole photos at the size of the test: no crop, no colour jitter, no fixed size."""
COMPENSATION_WEIGHT = 0.1
NO_CLASS = 255

Targets = Literal["classes", "segments"]
StochasticDepth = Literal["off", "official"]
"""Whether paths of the trunks are dropped; see `stochastic_depth`."""
STUDENT_STAYS = 5000
"""Steps to the first evaluation of the official run, which put the tuned trunk into training mode."""


@dataclass(frozen=True)
class Tuned:
    """The slots of a system in training, by their kinds, and the original of its encoder."""

    encoder: nn.Module
    generator: FCCLIPGenerator
    embedder: nn.Module
    scorer: ImageConditioned
    teacher: nn.Module


def prepare(system: System) -> Tuned:
    """Trunk, generator and transfer trainable, all else frozen; a copy of the trunk set aside.

    Everything is in evaluation mode. CLIP's projection and its scale stay as they are.
    """
    encoder, generator, scorer = system.encoder, system.generator, system.scorer
    if encoder is None or not isinstance(generator, FCCLIPGenerator) or not isinstance(scorer, ImageConditioned):
        raise TypeError("this recipe trains an FC-CLIP generator, a shared encoder and an image-conditioned scorer")
    system.eval().requires_grad_(False)
    teacher = copy.deepcopy(encoder)
    for part in (encoder, generator, scorer.transfer):
        part.requires_grad_(True)
    return Tuned(encoder, generator, system.embedder, scorer, teacher)


def parameter_groups(tuned: Tuned) -> list[dict[str, Any]]:
    """One optimiser group per trainable parameter, by the rule of `recipes.fcclip`.

    The trunk learns ten times slower; the scale of its layers (`gamma`) is a bare parameter and decays.
    """
    return [
        {**group, "lr_scale": scale}
        for part, scale in ((tuned.encoder, TRUNK_SCALE), (tuned.generator, 1.0), (tuned.scorer, 1.0))
        for group in fcclip.parameter_groups(part, LEARNING_RATE * scale, WEIGHT_DECAY)
    ]


def optimizer(tuned: Tuned) -> torch.optim.AdamW:
    """The official optimiser."""
    return torch.optim.AdamW(parameter_groups(tuned), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)


def polynomial_schedule(step: int, total_steps: int, warmup: int = 0) -> float:
    """Factor on the learning rate: down to zero, nearly straight. There is no warm-up."""
    return (1 - step / total_steps) ** 0.9


def stochastic_depth(tuned: Tuned, mode: StochasticDepth, step: int) -> None:
    """Puts the two trunks into the mode of a step.

    "off": evaluation mode, both. "official": as the official code has it by accident. Its teacher drops paths all the
    time, so that its answers are noisy; the tuned trunk does from the first evaluation on, because encoding the words
    had left it in evaluation mode. Meant for the ConvNeXts: a batch norm would learn new statistics on the way.
    """
    official = mode == "official"
    for encoder, drops in ((tuned.teacher, official), (tuned.encoder, official and step >= STUDENT_STAYS)):
        if drops and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in encoder.modules()):
            raise ValueError("stochastic depth as in the official training is for trunks without batch norm")
        for layer in encoder.children():  # not the encoder itself, which refuses while it counts as frozen
            layer.train(drops)


def losses_of(
    tuned: Tuned,
    images: Images,
    targets: Sequence[SegmentTargets],
    text: TextBank,
    criterion: Criterion,
    draw: Draw | None = None,
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Weighted losses of one batch by name: the criterion's, loss_mask_aware and loss_compensation.

    The generator reads the maps detached, and the regions the masks: what tunes CLIP are the last two alone. One pass
    of the trunk serves both.
    """
    with torch.autocast(images.pixels.device.type, dtype=autocast, enabled=autocast is not None):
        features = tuned.encoder(images)
        with torch.no_grad():
            original = tuned.teacher(images).dense
        detached = Features(maps=tuple(level.detach() for level in features.maps), dense=features.dense.detach())
        predictions = [step.proposals for step in tuned.generator.all_steps(images, detached, text)]
        mask_logits = predictions[-1].mask_logits.detach()
        region_logits = tuned.scorer(tuned.embedder(images, features, mask_logits), text)
    return {
        **criterion.weighted(criterion(predictions, targets, draw)),
        "loss_mask_aware": mask_aware_loss(region_logits, mask_logits, targets),
        "loss_compensation": COMPENSATION_WEIGHT * compensation_loss(features.dense, original),
    }


def augment(
    rng: random.Random, photo: LabelledPhoto, canvas: Canvas = CANVAS
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The whole photo at the size of the test, flipped every other time -> image [h, w, 3], labels [h, w]."""
    image = canvas.resize(Photo(photo.image, photo.id))
    height, width = fit_short_edge(photo.labels.shape, canvas.short_edge, canvas.long_edge)
    labels = np.asarray(Image.fromarray(photo.labels).resize((width, height), Image.Resampling.NEAREST))
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return image, labels


def targets_of(labels: NDArray[np.uint8], ignore: int = NO_CLASS) -> SegmentTargets:
    """labels [H, W] -> one mask per class that occurs. Unlabelled pixels are outside all of them."""
    present = [int(label) for label in np.unique(labels) if label != ignore]
    numbers = torch.tensor(present, dtype=torch.int64)
    return SegmentTargets(labels=numbers, masks=torch.from_numpy(labels.astype(np.int64)) == numbers[:, None, None])


def batch_of(
    rng: random.Random, photos: Sequence[LabelledPhoto], canvas: Canvas, device: torch.device, ignore: int = NO_CLASS
) -> tuple[Images, list[SegmentTargets]]:
    """Augmented photos on one canvas, and what is on them."""
    pairs = [augment(rng, photo, canvas) for photo in photos]
    sizes = [labels.shape for _, labels in pairs]
    height, width = round_up((max(h for h, _ in sizes), max(w for _, w in sizes)), canvas.multiple)
    targets = []
    for _, labels in pairs:
        padded = np.full((height, width), ignore, np.uint8)
        padded[: labels.shape[0], : labels.shape[1]] = labels
        found = targets_of(padded, ignore)
        targets.append(SegmentTargets(found.labels.to(device), found.masks.to(device)))
    images = place([image for image, _ in pairs], sizes, canvas.multiple)
    return Images(images.pixels.to(device), images.sizes_hw, images.original_hw), targets


def train(
    system: System,
    text: TextBank,
    photos: Sequence[LabelledPhoto] | Sequence[PanopticPhoto],
    out: Path,
    *,
    total_steps: int = TOTAL_STEPS,
    batch: int = BATCH,
    canvas: Canvas = CANVAS,
    crop: int = CROP,
    criterion: Criterion | None = None,
    depth: StochasticDepth = "off",
    ignore: int = NO_CLASS,
    autocast: torch.dtype | None = None,
    seed: int = SEED,
    **loop: Any,
) -> bool:
    """Train `system` on `photos`, resuming from `out` where a run has begun there.

    text: the rows of the photos' classes, encoded once. batch: photos per step of all processes together. Labelled
    photos are shown whole, at the size of `canvas`, with a mask per class; panoptic ones as FC-CLIP's training does, in
    crops [crop, crop] with a mask per segment. depth: see `stochastic_depth`. To resume, give the same system the run
    began with: its trunk is what is compared with.
    Further keywords go to `loop.run`. Returns whether the training is complete.
    """
    criterion = criterion or Criterion()
    tuned = prepare(system)
    device = tuned.generator.void_embedding.weight.device
    rank, processes = share_of(batch)

    def drawn(rng: random.Random, chosen: list[Any]) -> tuple[Images, list[SegmentTargets]]:
        if isinstance(chosen[0], PanopticPhoto):
            return fcclip.batch_of(rng, chosen, crop, device)
        return batch_of(rng, chosen, canvas, device, ignore)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        numbers = list(photo_numbers(seed, step, len(photos), batch))[rank::processes]
        images, targets = drawn(rng, [photos[number] for number in numbers])
        stochastic_depth(tuned, depth, step)
        losses = losses_of(tuned, images, targets, text, criterion, autocast=autocast)
        total = torch.stack(list(losses.values())).sum()
        shown = ("loss_ce", "loss_mask", "loss_dice", "loss_mask_aware", "loss_compensation")
        return total, {"loss": float(total.detach()), **{name: float(losses[name].detach()) for name in shown}}

    schedule: Callable[[int, int, int], float] = polynomial_schedule
    return run(
        loss_of,
        RunState(system, optimizer(tuned)),
        total_steps,
        out,
        learning_rate=LEARNING_RATE,
        schedule=schedule,
        clip=GRADIENT_NORM,
        average_decay=0.0,  # the official training keeps no running average
        seed=seed,
        **loop,
    )


def start_system(
    model: str | Path, norm_order: NormOrder, dense_order: DenseOrder, device: torch.device
) -> tuple[Model, System, dict[str, Any]]:
    """A model on this machine, the MAFT+ system made of it, and the arguments that build such a system.

    A MAFT+ model stays as it is. Of an FC-CLIP model trunk, projection and generator are kept, and a fresh transfer is
    put between CLIP and the words.
    """
    settings = settings_of(model)
    found = load(model, device)
    if settings.builder == "maftplus":
        return found, found.system, dict(settings.arguments)
    generator = found.system.generator
    if not isinstance(found.system.embedder, MaskPool) or not isinstance(generator, FCCLIPGenerator):
        raise ValueError(f"{model}: its builder is {settings.builder!r}; MAFT+ starts from FC-CLIP or from MAFT+")
    sizes = set(inspect.signature(fcclip_generator).parameters) & set(settings.arguments)
    arguments: dict[str, Any] = {
        "tower": settings.arguments["tower"],
        "norm_order": norm_order,
        "dense_order": dense_order,
        **{name: settings.arguments[name] for name in sorted(sizes)},
        "num_queries": generator.decoder.query_feat.num_embeddings,
    }
    system = maftplus(**arguments, device=device)
    fresh = {name: x for name, x in system.state_dict().items() if name.startswith("scorer.transfer.")}
    system.load_state_dict({**fresh, **found.system.state_dict()})
    return found, system, arguments


def train_package(
    data: Path,
    out: Path,
    start: str = "street-tiny",
    split: str = "train",
    steps: int = TOTAL_STEPS,
    batch: int = BATCH,
    targets: str = "classes",
    short_edge: int = CANVAS.short_edge,
    long_edge: int = CANVAS.long_edge,
    crop: int = CROP,
    points: int = 12544,
    norm_order: str = "after_sum",
    dense_order: str = "memory",
    depth: str = "off",
    device: str = "cpu",
    seed: int = SEED,
    save_every: int = SAVE_EVERY,
    log_every: int = LOG_EVERY,
    deadline: float | None = None,
) -> bool:
    """Tune `start`, a name of the zoo or a folder, on a package of labelled photos; whether it is complete.

    The classes of the package are the words. targets: "classes", a mask for each class of a whole photo, or "segments",
    one for each segment of a crop, objects apart, for panoptic models. norm_order, dense_order: of the transfer, where
    `start` has none yet. depth: stochastic depth, off or official. The same command goes on where a run was stopped.
    When it is complete, the tuned model is in out/model.
    """
    choices = ((targets, Targets), (norm_order, NormOrder), (dense_order, DenseOrder), (depth, StochasticDepth))
    for word, known in choices:
        if word not in get_args(known):
            raise ValueError(f"{word!r}: choose one of {', '.join(get_args(known))}")
    package = LabelledPhotos(data)
    torch.manual_seed(seed)
    where = torch.device(device)
    model, system, arguments = start_system(start, cast(NormOrder, norm_order), cast(DenseOrder, dense_order), where)
    vocabulary = Vocabulary.parse(list(package.classes))
    bank = text_bank(vocabulary, model.templates, model.text_encoder, vocabulary.phrases)
    text = TextBank(bank.query.to(where), bank.region.to(where), bank.class_of.to(where), bank.seen.to(where))
    canvas = Canvas(short_edge, long_edge, model.canvas.multiple)
    complete = train(
        system,
        text,
        PackagePhotos(package, split) if targets == "classes" else PackageSegments(package, split, by_region=True),
        out,
        total_steps=steps,
        batch=batch,
        canvas=canvas,
        crop=crop,
        criterion=Criterion(num_points=points),
        depth=cast(StochasticDepth, depth),
        ignore=package.ignore,
        autocast=torch.bfloat16 if where.type == "cuda" else None,
        seed=seed,
        save_every=save_every,
        log_every=log_every,
        deadline=deadline,
    )
    if complete:
        save_model_folder(
            out / "model",
            system,
            model.text_encoder(),
            builder="maftplus",
            arguments=arguments,
            templates=list(model.templates),
            canvas=canvas,
            outputs=OutputSettings(object_mask_threshold=OBJECT_MASK_THRESHOLD, overlap_threshold=OVERLAP_THRESHOLD),
            training_phrases=vocabulary.phrases,
            card={"title": f"MAFT+ on {package.name}", "started_from": model.name, "steps": steps},
        )
    return complete

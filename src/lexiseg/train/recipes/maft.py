r"""MAFT on COCO-Stuff: FreeSeg's generator beside a frozen CLIP, then CLIP's image tower behind the frozen generator.

Learning Mask-aware CLIP Representations for Zero-Shot Segmentation (NeurIPS 2023, arXiv 2310.00240); the generator is
that of FreeSeg (CVPR 2023, arXiv 2303.17225).

Data:      COCO-Stuff-164k, train2017: 118 287 photos labelled with 171 classes, 255 for none
Time:      generator: 60 000 steps of 16 crops of 640 x 640; tower: 1000 steps, 6.5 minutes on eight A100
Expect:    open vocabulary, B/16 / L/14: ADE20K-150 29.1 / 32.1, Context-59 53.3 / 58.0, VOC-20 90.4 / 92.1 mIoU;
           without --unseen's classes, mIoU on those: COCO-Stuff 50.4, VOC 81.8, ADE20K 8.7

Command:   lexiseg train maft --step generator --data PACKAGE --start CLIP --out FIRST
           lexiseg train maft --step tower --data PACKAGE --start FIRST/model --out SECOND

CLIP is a model folder with one of OpenAI's transformers: a FreeSeg, or a tower alone, for which a generator is begun at
random (the official one began with a backbone trained on ImageNet). The second step takes masks from any generator:
--masks MODEL. In small, on one core, with the embedded generator:

           lexiseg train vit-tiny --data DIR --out VIT
           lexiseg train maft --data PACKAGE --start VIT/model --masks street-tiny --crop 192 --batch 8 \
               --steps 200 --learning-rate 3e-4 --out RUN

The first step trains backbone, decoders, interaction with the words, class head and void; CLIP stays. The second trains
the attention of all blocks of CLIP's image tower and the norms of the blocks and behind them, nothing else, and adds no
parameter. What it is held to is the tower as the step found it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lexiseg.data.package_splits import PackagePhotos
from lexiseg.data.packages import LabelledPhoto, LabelledPhotos
from lexiseg.proposals.freeseg import FreeSegGenerator
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.mask_bias import MaskBiasedAttention
from lexiseg.system import System
from lexiseg.train.loop import LOG_EVERY, SAVE_EVERY, RunState, run, share_of
from lexiseg.train.mask_aware import distillation_loss, mask_aware_loss
from lexiseg.train.maskformer import PixelCriterion
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.recipes import fcclip
from lexiseg.train.recipes.fcclip import FILL, photo_numbers
from lexiseg.train.recipes.maftplus import polynomial_schedule, targets_of
from lexiseg.train.semantic_crops import semantic_crop, short_edges
from lexiseg.types import Images, Proposals, Regions, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import compose, load, settings_of
from lexiseg.zoo.model_folder import BUILDERS, Model, save_model_folder

Step = Literal["generator", "tower"]


@dataclass(frozen=True)
class Schedule:
    """Numbers of one of the two steps; the learning rate falls to zero nearly straight, without warm-up."""

    learning_rate: float
    weight_decay: float
    total_steps: int


SCHEDULES: dict[Step, Schedule] = {"generator": Schedule(1.5e-4, 1.5e-4, 60_000), "tower": Schedule(1e-5, 1e-4, 1000)}
BACKBONE_SCALE = 0.1
"""Of the learning rate, for the generator's backbone."""
BATCH = 16
CROP = 640
TENTHS = range(5, 16)
"""The short edge of a photo is so many tenths of the crop: 320 to 960."""
LONG_EDGE = 4
"""The long edge is at most so many times the crop."""
GRADIENT_NORM = 0.01
SEED = 123
CRITERION = PixelCriterion(class_weight=1.0, mask_weight=20.0, dice_weight=5.0)
DISTILLATION_WEIGHT = 0.1
NO_CLASS = 255

Dropout = Literal["off", "official"]
"""Whether the frozen generator drops out in the second step; see `tower_losses`."""

UNSEEN: dict[str, tuple[str, ...] | tuple[int, ...]] = {
    "coco-stuff": (
        *("cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors", "cardboard", "clouds", "grass"),
        *("playingfield", "river", "road", "tree", "wall-concrete"),
    ),
    "voc": ("pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    "ade20k": (9, 15, 30, 37, 49, 60, 74, 81, 89, 99, 112, 128, 136, 143, 149),
}
"""The usual splits of zero-shot segmentation: names of classes, or their numbers where those are how it was written."""


# ---------------------------------------------------------------------------------------------------- photos and words


def unseen_classes(classes: Sequence[str], told: str) -> set[int]:
    """The numbers of the classes left out: told is a name of UNSEEN, or names of classes with commas between them."""
    chosen = UNSEEN.get(told, tuple(name.strip() for name in told.split(",") if name.strip()))
    names = [classes[item] if isinstance(item, int) and item < len(classes) else item for item in chosen]
    unknown = [str(name) for name in names if name not in classes]
    if unknown:
        raise ValueError(
            f"unseen: {', '.join(unknown[:5])}: not among the {len(classes)} classes of the data, nor one of "
            f"{', '.join(UNSEEN)}"
        )
    if len(set(names)) >= len(classes):
        raise ValueError("unseen: all classes of the data; none is left to train with")
    return {list(classes).index(cast(str, name)) for name in names}


class SeenPhotos(Sequence[LabelledPhoto]):
    """Photos whose labels know the seen classes alone, renumbered; all other pixels are NO_CLASS."""

    def __init__(self, photos: Sequence[LabelledPhoto], num_classes: int, unseen: Iterable[int], ignore: int) -> None:
        left_out = set(unseen)
        self.photos = photos
        self.seen = tuple(index for index in range(num_classes) if index not in left_out)
        if len(self.seen) > NO_CLASS:
            raise ValueError(f"{len(self.seen)} classes: at most {NO_CLASS} can be trained with")
        self.table = np.full(max(num_classes, ignore) + 1, NO_CLASS, np.uint8)
        self.table[list(self.seen)] = np.arange(len(self.seen))
        self.table[ignore] = NO_CLASS

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: Any) -> Any:
        photo = self.photos[number]
        return replace(photo, labels=self.table[photo.labels])


def batch_of(
    rng: random.Random, photos: Sequence[LabelledPhoto], crop: int, device: torch.device
) -> tuple[Images, list[SegmentTargets]]:
    """Augmented crops of the photos, and one mask per class that is in them.

    What a small photo leaves of its crop is grey, and part of the picture: it is normalised like the rest.
    """
    pixels = np.full((len(photos), crop, crop, 3), FILL, np.uint8)
    targets = []
    edges, long_edge = short_edges(crop, TENTHS), LONG_EDGE * crop
    for row, photo in zip(pixels, photos, strict=True):
        image, labels = semantic_crop(rng, photo.image, photo.labels, crop, edges, long_edge)
        height, width = labels.shape
        row[:height, :width] = image
        padded = np.full((crop, crop), NO_CLASS, np.uint8)
        padded[:height, :width] = labels
        found = targets_of(padded, NO_CLASS)
        targets.append(SegmentTargets(found.labels.to(device), found.masks.to(device)))
    sizes = ((crop, crop),) * len(photos)
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device, torch.float32), sizes, sizes), targets


# ------------------------------------------------------------------------------------------------ first step: generator


def prepare_generator(system: System) -> tuple[OwnBackbone, FreeSegGenerator]:
    """Leaves only the generator trainable, in training mode: its dropout is on, its backbone's norms are frozen."""
    generator = system.generator
    if not isinstance(generator, OwnBackbone) or not isinstance(generator.head, FreeSegGenerator):
        raise TypeError("this step trains FreeSeg's generator on the maps of a backbone of its own")
    system.eval().requires_grad_(False)
    generator.train().requires_grad_(True)
    return generator, generator.head


def generator_groups(generator: OwnBackbone) -> list[dict[str, Any]]:
    """One optimiser group per trainable parameter, by the rule of `recipes.fcclip`. The backbone learns ten times
    slower. Void, a bare parameter in the official code, decays; tables of embeddings do not."""
    head = cast(FreeSegGenerator, generator.head)
    told = SCHEDULES["generator"]
    groups = [
        {**group, "lr_scale": scale}
        for part, scale in ((generator.backbone, BACKBONE_SCALE), (head, 1.0))
        for group in fcclip.parameter_groups(part, told.learning_rate * scale, told.weight_decay)
    ]
    for group in groups:
        if group["params"][0] is head.void_embedding.weight:
            group["weight_decay"] = told.weight_decay
    return groups


def supervised(predictions: Sequence[Proposals]) -> list[Proposals]:
    """The predictions that have a loss: all but the one before the last layer, which the official table leaves out."""
    return [*predictions[:-2], predictions[-1]]


def generator_losses(
    generator: OwnBackbone, images: Images, targets: Sequence[SegmentTargets], text: TextBank
) -> dict[str, Tensor]:
    """Weighted losses of one batch by name."""
    head = cast(FreeSegGenerator, generator.head)
    steps = head.all_steps(images, generator.backbone(images), text)
    return CRITERION.weighted(CRITERION(supervised([step.proposals for step in steps]), targets))


# --------------------------------------------------------------------------------------------------- second step: tower


@dataclass(frozen=True)
class Tuned:
    """The slots of a system whose tower is tuned, and the embedder as it was before."""

    generator: nn.Module
    embedder: MaskBiasedAttention
    scorer: Callable[[Regions, TextBank], Tensor]
    teacher: MaskBiasedAttention


def prepare_tower(system: System) -> Tuned:
    """Attention and norms of all blocks and the norm behind them trainable, all else frozen; a copy set aside."""
    embedder = system.embedder
    if not isinstance(embedder, MaskBiasedAttention):
        raise TypeError("this step trains a transformer with a class token per mask")
    system.eval().requires_grad_(False)
    teacher = copy.deepcopy(embedder)
    for block in embedder.tower.blocks:
        for part in (block.attn, block.ln_1, block.ln_2):
            part.requires_grad_(True)
    embedder.tower.ln_post.requires_grad_(True)
    return Tuned(system.generator, embedder, system.scorer, teacher)


def tower_groups(tuned: Tuned) -> list[dict[str, Any]]:
    """One optimiser group per trainable parameter; norms do not decay."""
    told = SCHEDULES["tower"]
    return fcclip.parameter_groups(tuned.embedder, told.learning_rate, told.weight_decay)


def tower_losses(
    tuned: Tuned, images: Images, targets: Sequence[SegmentTargets], text: TextBank, dropout: Dropout = "off"
) -> dict[str, Tensor]:
    """Weighted losses of one batch by name: loss_mask_aware and loss_distillation.

    The first asks for the score of a mask for a class to follow its overlap with that class; the second for the scores
    of the whole picture to stay. Both passes of the tower share the blocks before the masks come in. dropout
    "official": as the official code has it by accident, the frozen generator is in training mode and its masks are
    noisy.
    """
    embedder, teacher = tuned.embedder, tuned.teacher
    if dropout == "official" and not isinstance(getattr(tuned.generator, "head", None), FreeSegGenerator):
        raise ValueError("dropout as in the official training is FreeSeg's; other generators have batch norms to spoil")
    tuned.generator.train(dropout == "official")
    with torch.no_grad():
        mask_logits = tuned.generator(images, None, text).mask_logits
        view = embedder.view(images)
        original = _whole_logits(tuned, teacher.whole(teacher.shared(view)), text)
    tokens = embedder.shared(view)
    allowed = embedder.allowed(images, mask_logits)
    regions = Regions(embedder.regions(tokens, allowed), allowed.any(-1))
    whole = _whole_logits(tuned, embedder.whole(tokens), text)
    return {
        "loss_mask_aware": mask_aware_loss(tuned.scorer(regions, text), mask_logits, targets),
        "loss_distillation": DISTILLATION_WEIGHT * distillation_loss(whole, original),
    }


def _whole_logits(tuned: Tuned, embeds: Tensor, text: TextBank) -> Tensor:
    """embeds [B, D] of whole pictures -> [B, K]."""
    valid = torch.ones(len(embeds), 1, dtype=torch.bool, device=embeds.device)
    return tuned.scorer(Regions(embeds[:, None], valid), text)[:, 0]


# ------------------------------------------------------------------------------------------------------------- training


def train(
    system: System,
    text: TextBank,
    photos: Sequence[LabelledPhoto],
    out: Path,
    step: Step = "tower",
    *,
    total_steps: int | None = None,
    batch: int = BATCH,
    crop: int = CROP,
    learning_rate: float | None = None,
    dropout: Dropout = "off",
    seed: int = SEED,
    **loop: Any,
) -> bool:
    """Train one step of `system` on `photos`, resuming from `out` where a run has begun there.

    text: the rows of the photos' classes, encoded once. batch: crops per step of all processes together. learning_rate:
    the official one unless given. Further keywords go to `loop.run`. To resume, give the same system the run began
    with. Returns whether the training is complete.
    """
    told = SCHEDULES[step]
    module: nn.Module
    if step == "generator":
        module, _ = prepare_generator(system)
        groups = generator_groups(module)
    else:
        tuned = prepare_tower(system)
        module, groups = tuned.embedder, tower_groups(tuned)
    device = next(module.parameters()).device
    rank, processes = share_of(batch)

    def loss_of(number: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        numbers = list(photo_numbers(seed, number, len(photos), batch))[rank::processes]
        images, targets = batch_of(rng, [photos[index] for index in numbers], crop, device)
        if step == "generator":
            losses = generator_losses(cast(OwnBackbone, module), images, targets, text)
        else:
            losses = tower_losses(tuned, images, targets, text, dropout)
        total = torch.stack(list(losses.values())).sum()
        shown = {name: float(value.detach()) for name, value in losses.items() if not name[-1].isdigit()}
        return total, {"loss": float(total.detach()), **shown}

    complete = run(
        loss_of,
        RunState(module, torch.optim.AdamW(groups, lr=told.learning_rate)),
        total_steps or told.total_steps,
        out,
        learning_rate=learning_rate or told.learning_rate,
        schedule=polynomial_schedule,
        clip=GRADIENT_NORM,
        average_decay=0.0,  # the official training keeps no running average
        seed=seed,
        **loop,
    )
    system.eval()
    return complete


STARTS = ("freeseg", "maft", "maft_given")
"""Builders of the models this recipe can begin with."""


@dataclass(frozen=True)
class Start:
    """A model before one of the steps."""

    model: Model
    """It, as it was loaded."""
    saved: System
    """What will be saved; tower and generator are those that are trained."""
    builder: str
    arguments: dict[str, Any]
    """What builds `saved`."""
    drawn: Model
    """With the generator that draws for it: its own, or another one."""


BECOMES: dict[Step, dict[str, str]] = {"generator": {"maft_given": "freeseg"}, "tower": {"freeseg": "maft"}}
"""A tower alone gets a generator that knows nothing yet; a FreeSeg becomes a MAFT, whose tower is the same and sees
masks on the padded picture."""


def start_model(model: str | Path, step: Step, masks: str, device: torch.device) -> Start:
    """masks: "own", or what draws in the place of its own generator, as `zoo.loading.compose` takes it."""
    settings = settings_of(model)
    if settings.builder not in STARTS:
        raise ValueError(
            f"{model}: its builder is {settings.builder!r}; MAFT starts from a FreeSeg, a MAFT or a transformer alone, "
            "as lexiseg train vit-tiny makes one"
        )
    found = load(model, device)
    arguments, saved = cast(dict[str, Any], dict(settings.arguments)), found.system
    builder = BECOMES[step].get(settings.builder, settings.builder)
    if builder != settings.builder:
        saved = BUILDERS[builder].system(**arguments, device=device)
        saved.load_state_dict({**saved.state_dict(), **found.system.state_dict()})
    drawn = found
    if masks != "own":
        if step == "generator":
            raise ValueError(f"the generator is what this step trains: masks of {masks} are for --step tower")
        drawn = compose(masks, model, device)
    elif isinstance(saved.generator, GivenMasks):
        raise ValueError(f"{model} draws no masks: say which model does with --masks, such as street-tiny")
    generator = saved.generator if masks == "own" else drawn.system.generator
    system = System(None, generator, saved.embedder, saved.scorer, saved.fuse)
    return Start(found, saved, builder, arguments, replace(drawn, system=system))


def train_package(
    data: Path,
    out: Path,
    start: str,
    step: str = "tower",
    masks: str = "own",
    unseen: str = "",
    split: str = "train",
    steps: int | None = None,
    batch: int = BATCH,
    crop: int = CROP,
    learning_rate: float | None = None,
    dropout: str = "off",
    device: str = "cpu",
    seed: int = SEED,
    save_every: int = SAVE_EVERY,
    log_every: int = LOG_EVERY,
    deadline: float | None = None,
) -> bool:
    """Train one step of `start`, a name of the zoo or a folder, on labelled photos; whether it is complete.

    The classes of the package are the words. step: generator or tower. masks: for the tower, another model whose masks
    it is tuned on. unseen: classes whose pixels and names are left out, for the zero-shot setting: coco-stuff, voc,
    ade20k, or names with commas between them; evaluation tells seen and unseen ones apart by itself. steps,
    learning_rate: the official ones unless given; a small tower needs a larger rate. dropout: of the frozen generator,
    off or official. The same command goes on where a run was stopped. When it is complete, the model is in out/model.
    """
    for word, known in ((step, Step), (dropout, Dropout)):
        if word not in get_args(known):
            raise ValueError(f"{word!r}: choose one of {', '.join(get_args(known))}")
    package = LabelledPhotos(data)
    torch.manual_seed(seed)
    begun = start_model(start, cast(Step, step), masks, torch.device(device))
    photos = SeenPhotos(
        PackagePhotos(package, split),
        len(package.classes),
        unseen_classes(package.classes, unseen) if unseen else (),
        package.ignore,
    )
    vocabulary = Vocabulary.parse([package.classes[index] for index in photos.seen])
    text = begun.drawn.text_bank(vocabulary).to(device)
    complete = train(
        begun.drawn.system,
        text,
        photos,
        out,
        cast(Step, step),
        total_steps=steps,
        batch=batch,
        crop=crop,
        learning_rate=learning_rate,
        dropout=cast(Dropout, dropout),
        seed=seed,
        save_every=save_every,
        log_every=log_every,
        deadline=deadline,
    )
    if complete:
        save_model_folder(
            out / "model",
            begun.saved,
            begun.model.text_encoder(),
            builder=begun.builder,
            arguments=begun.arguments,
            templates=list(begun.model.templates),
            canvas=begun.model.canvas,
            outputs=begun.model.outputs,
            training_phrases=vocabulary.phrases,
            card={"title": f"MAFT, {step} on {package.name}", "started_from": begun.model.name, "masks": masks},
        )
    return complete

"""FC-CLIP's mask generator on COCO panoptic: the official schedule, optimiser groups and augmentation.

Convolutions Die Hard (arXiv 2308.02487), training section.

Data:      COCO 2017 train with panoptic annotations, 118 287 photos, 133 classes
Time:      368 750 steps of 16 crops of 1024 x 1024 (50 epochs), made for eight large GPUs
Expect:    with ConvNeXt-L, zero-shot ADE20K: 26.8 PQ, 34.1 mIoU; users report about one point less

The CLIP towers and the rest of the system stay frozen; only the generator trains. The official run used float16
with loss scaling. Here autocast is bfloat16, which needs no scaling, where the device has it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.proposals.fcclip import FCCLIPGenerator
from lexiseg.system import System
from lexiseg.train.loop import RunState, run, share_of
from lexiseg.train.losses import Criterion
from lexiseg.train.matcher import SegmentTargets
from lexiseg.types import Images, TextBank

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.05
TOTAL_STEPS = 368_750
DROPS = (327_778, 355_092)
"""Steps at which the learning rate falls to a tenth."""
GRADIENT_NORM = 0.01
BATCH = 16
CROP = 1024
SCALES = (0.1, 2.0)
"""The photo is resized to fit inside CROP times a factor in this range."""
FILL = 128
"""Grey level beyond the border of the photo, before normalisation."""
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def parameter_groups(
    module: nn.Module, learning_rate: float = LEARNING_RATE, weight_decay: float = WEIGHT_DECAY
) -> list[dict[str, Any]]:
    """One optimiser group per trainable parameter of `module`.

    Norm layers and embedding tables are not decayed. Biases are, and so are bare parameters: the pixel decoder's
    level embedding and the logit scale.
    """
    groups = []
    for layer in module.modules():
        spared = isinstance(layer, (*NORMS, nn.Embedding))
        for parameter in layer.parameters(recurse=False):
            if parameter.requires_grad:
                decay = 0.0 if spared else weight_decay
                groups.append({"params": [parameter], "lr": learning_rate, "weight_decay": decay})
    return groups


def optimizer(module: nn.Module) -> torch.optim.AdamW:
    """The official optimiser over the trainable parameters of `module`."""
    return torch.optim.AdamW(parameter_groups(module), lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8)


def step_schedule(step: int, total_steps: int, warmup: int = 0, drops: Sequence[int] = DROPS) -> float:
    """Factor on the learning rate. The drops move with the length of the training; the official warm-up, ten steps
    by a factor of one, has no effect, and `warmup` none here."""
    return 0.1 ** sum(step >= round(drop * total_steps / TOTAL_STEPS) for drop in drops)


def augment(
    rng: random.Random, photo: PanopticPhoto, crop: int = CROP, scales: tuple[float, float] = SCALES
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A random flip, scale and crop -> image [crop, crop, 3] and segment ids [crop, crop].

    A small photo does not fill the crop: right and bottom are grey, and no segment. One random number places the
    crop on both axes. No change of colour.
    """
    image, ids = photo.image, photo.ids
    if rng.random() < 0.5:
        image, ids = image[:, ::-1], ids[:, ::-1]
    height, width = ids.shape
    scale = rng.uniform(*scales)
    ratio = min(crop * scale / height, crop * scale / width)
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))  # PIL: (width, height)
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(np.ascontiguousarray(ids)).resize(size, Image.Resampling.NEAREST))
    place = rng.random()
    top, left = (round(place * max(0, side - crop)) for side in labels.shape)
    resized, labels = (x[top : top + crop, left : left + crop] for x in (resized, labels))
    out_image = np.full((crop, crop, 3), FILL, np.uint8)
    out_ids = np.zeros((crop, crop), np.int32)
    out_image[: labels.shape[0], : labels.shape[1]] = resized
    out_ids[: labels.shape[0], : labels.shape[1]] = labels
    return out_image, out_ids


def targets_of(ids: NDArray[np.int32], classes: dict[int, int]) -> SegmentTargets:
    """ids [H, W] and the class of each segment -> its targets.

    Segments that the crop has lost stay, with an empty mask, as in the official training: a query learns to answer
    them with nothing.
    """
    segments = torch.tensor(list(classes), dtype=torch.int32)
    return SegmentTargets(
        labels=torch.tensor(list(classes.values()), dtype=torch.int64),
        masks=torch.from_numpy(ids) == segments[:, None, None],
    )


def batch_of(
    rng: random.Random,
    photos: Sequence[PanopticPhoto],
    crop: int,
    device: torch.device,
    scales: tuple[float, float] = SCALES,
) -> tuple[Images, list[SegmentTargets]]:
    """Augmented crops of the photos and what is on them."""
    crops = [augment(rng, photo, crop, scales) for photo in photos]
    pixels = torch.from_numpy(np.stack([image for image, _ in crops])).permute(0, 3, 1, 2)
    targets = [targets_of(ids, photo.classes) for (_, ids), photo in zip(crops, photos, strict=True)]
    # The grey border is part of the picture: it is normalised like the rest, unlike the padding of a canvas.
    sizes = ((crop, crop),) * len(crops)
    images = Images(pixels=pixels.to(device, torch.float32), sizes_hw=sizes, original_hw=sizes)
    return images, [SegmentTargets(t.labels.to(device), t.masks.to(device)) for t in targets]


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return tuple(order)


def photo_numbers(seed: int, step: int, count: int, batch: int) -> Iterator[int]:
    """The photos of one step of all processes: each photo once per epoch, in an order of its own every time."""
    for position in range(step * batch, (step + 1) * batch):
        yield _epoch_order(seed, position // count, count)[position % count]


def freeze_all_but_generator(system: System) -> tuple[nn.Module, FCCLIPGenerator]:
    """Leaves only the generator trainable -> the frozen encoder, the generator.

    Everything is in evaluation mode: batch norms of the tower use their running statistics, and the generator has
    no layer that behaves differently in training.
    """
    encoder, generator = system.encoder, system.generator
    if encoder is None or not isinstance(generator, FCCLIPGenerator):
        raise TypeError("this recipe trains an FC-CLIP generator on the maps of a shared encoder")
    system.eval().requires_grad_(False)
    generator.requires_grad_(True)
    return encoder, generator


def train(
    system: System,
    text: TextBank,
    photos: Sequence[PanopticPhoto],
    out: Path,
    *,
    total_steps: int = TOTAL_STEPS,
    batch: int = BATCH,
    crop: int = CROP,
    criterion: Criterion | None = None,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    **loop: Any,
) -> bool:
    """Train the generator of `system` on `photos`, resuming from `out` where a run has begun there.

    text: the rows of the photos' classes, encoded once. batch: crops per step of all processes together. Further
    keywords go to `loop.run`. Returns whether the training is complete.
    """
    criterion = criterion or Criterion()
    encoder, generator = freeze_all_but_generator(system)
    device = generator.void_embedding.weight.device
    rank, processes = share_of(batch)

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        numbers = list(photo_numbers(seed, step, len(photos), batch))[rank::processes]
        images, targets = batch_of(rng, [photos[number] for number in numbers], crop, device)
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            with torch.no_grad():
                features = encoder(images)
            steps = generator.all_steps(images, features, text)
        losses = criterion.weighted(criterion([step.proposals for step in steps], targets))
        total = torch.stack(list(losses.values())).sum()
        named = {name: float(losses[name].detach()) for name in ("loss_ce", "loss_mask", "loss_dice")}
        return total, {"loss": float(total.detach()), **named}

    schedule: Callable[[int, int, int], float] = partial(step_schedule, drops=DROPS)
    return run(
        loss_of,
        RunState(generator, optimizer(generator)),
        total_steps,
        out,
        learning_rate=LEARNING_RATE,
        schedule=schedule,
        clip=GRADIENT_NORM,
        average_decay=0.0,  # the official training keeps no running average
        seed=seed,
        **loop,
    )

"""vit-tiny: a CLIP transformer in miniature that knows whole pictures and nothing of masks, for `recipes.maft`.

The embedded models have convolutional towers, and MAFT is about transformers: its masks say which patches a class token
may look at. This one is what MAFT starts from in small: an image tower of CLIP's own kind, trained on whole pictures
alone. It learns from random crops of photos, without labels, to give each the embedding that the tower of another model
gives it; the words and their tower stay those of that model.

Data:      photos of a package, or of all packages in a folder; labels are not looked at
Time:      700 steps of 64 crops of 96 x 96: 10 minutes on one core

Command:   lexiseg train vit-tiny --data DIR --out RUN, which leaves a classifier of given masks in RUN/model
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.clip.open_clip import build_vision_transformer
from lexiseg.data.package_splits import PackagePhotos
from lexiseg.data.packages import LabelledPhotos
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD, normalise
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.system import System
from lexiseg.train.loop import RunState, run
from lexiseg.train.recipes.tiny_tower import parameter_groups
from lexiseg.types import Images
from lexiseg.zoo.loading import load, settings_of
from lexiseg.zoo.maft import maft_given
from lexiseg.zoo.model_folder import save_model_folder

CROP = 96
VISION: dict[str, Any] = {"image_size": CROP, "layers": 6, "width": 128, "patch_size": 16, "head_width": 32}
"""The tower in open_clip's words."""
SIDE, FIRST_BLOCK = 192, 4
"""Of its mask tokens: in the last third of the blocks, as in the ViT-B/16 of the paper."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
STEPS, WARMUP, BATCH = 700, 50, 64
CROPS_PER_PHOTO = 4
AREAS, ASPECTS = (0.08, 1.0), (3 / 4, 4 / 3)
"""Of the crops: share of the photo, and width by height."""


def random_crop(rng: random.Random, image: NDArray[np.uint8], side: int = CROP) -> NDArray[np.uint8]:
    """image [H, W, 3] -> [side, side, 3]: a random part of it, flipped every other time."""
    height, width = image.shape[:2]
    area = height * width * rng.uniform(*AREAS)
    aspect = math.exp(rng.uniform(*map(math.log, ASPECTS)))
    w, h = min(width, max(1, round(math.sqrt(area * aspect)))), min(height, max(1, round(math.sqrt(area / aspect))))
    left, top = rng.randint(0, width - w), rng.randint(0, height - h)
    box = (left, top, left + w, top + h)
    crop = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box))
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def crops_of(rng: random.Random, photos: Sequence[PackagePhotos], count: int) -> Images:
    """Random crops of random photos, several of each; packages by the square root of their size."""
    weights = [math.sqrt(len(package)) for package in photos]
    drawn = [rng.choice(rng.choices(photos, weights)[0]) for _ in range(-(-count // CROPS_PER_PHOTO))]
    pixels = np.stack([random_crop(rng, drawn[number // CROPS_PER_PHOTO].image) for number in range(count)])
    sizes = ((CROP, CROP),) * count
    return Images(torch.from_numpy(pixels).permute(0, 3, 1, 2).float(), sizes, sizes)


@torch.no_grad()
def whole_embeds(system: System, images: Images) -> Tensor:
    """What the CLIP of a system with mask pooling says about whole pictures: unit rows [B, D]."""
    assert system.encoder is not None  # checked by `train`; for the reader of types
    everything = images.pixels.new_ones(len(images.pixels), 1, *images.canvas_hw)
    regions = system.embedder(images, system.encoder(images), everything)
    return functional.normalize(regions.embeds[:, 0], dim=-1)


def student_embeds(tower: nn.Module, images: Images) -> Tensor:
    """Unit rows [B, D]."""
    return functional.normalize(tower(normalise(images, CLIP_MEAN, CLIP_STD)), dim=-1)


def packages_in(data: Path) -> list[LabelledPhotos]:
    """The package at `data`, or all packages in that folder."""
    if data.is_dir() and not (data / "dataset.json").is_file():
        found = [path for path in sorted(data.iterdir()) if path.suffix == ".zip" or (path / "dataset.json").is_file()]
        if not found:
            raise ValueError(f"{data}: no data package in this folder")
        return [LabelledPhotos(path) for path in found]
    return [LabelledPhotos(data)]


def train(
    data: Path,
    out: Path,
    teacher: str = "street-tiny",
    split: str = "train",
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    deadline: float | None = None,
) -> bool:
    """Distil the CLIP of `teacher` into a small transformer, resuming from `out`; whether it is complete."""
    settings, model = settings_of(teacher), load(teacher)
    if not isinstance(model.system.embedder, MaskPool) or model.system.encoder is None:
        raise ValueError(f"{teacher}: the teacher must be a model that pools the map of its CLIP")
    told = settings.arguments["tower"]
    if not isinstance(told, dict):
        raise ValueError(f"{teacher}: its tower is {told!r}, which is too large to teach a small one")
    config = {"embed_dim": told["embed_dim"], "quick_gelu": False, "vision_cfg": VISION, "text_cfg": told["text_cfg"]}
    photos = [PackagePhotos(package, split) for package in packages_in(data) if split in package.splits]
    torch.manual_seed(seed)
    tower = build_vision_transformer(config, device="cpu")

    def loss_of(step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        images = crops_of(rng, photos, batch)
        with torch.autocast("cpu", torch.bfloat16):
            asked, given = whole_embeds(model.system, images), student_embeds(tower, images)
        cosine = (given.float() * asked.float()).sum(-1).mean()
        return 1 - cosine, {"loss": float(1 - cosine.detach())}

    state = RunState(tower, torch.optim.AdamW(parameter_groups(tower, WEIGHT_DECAY), lr=LEARNING_RATE))
    complete = run(
        loss_of, state, steps, out, learning_rate=LEARNING_RATE, warmup=WARMUP, clip=1.0, seed=seed, deadline=deadline
    )
    if complete:
        arguments: dict[str, Any] = {"tower": config, "side": SIDE, "first_block": FIRST_BLOCK}
        system = maft_given(**arguments, device="cpu")
        system.load_state_dict({f"embedder.tower.{name}": value for name, value in state.averaged.items()})
        save_model_folder(
            out / "model",
            system,
            model.text_encoder(),
            builder="maft_given",
            arguments=arguments,
            templates=list(model.templates),
            canvas=model.canvas,
            card={"title": f"vit-tiny, distilled from {model.name}", "steps": steps},
        )
    return complete

"""The image tower of the embedded models, trained per pixel against the vectors of names.

Command:   lexiseg train street-tiny-tower --data DIR --out RUN
Time:      about 100 minutes on two cores (AVX512-BF16)
Expect:    see the model card

Dense stage: at stride 4, cosine times a learned scale, softmax over the label set of the photo, one random name per
concept and step, label smoothing 0.03. The same on every ground-truth region, mean-pooled, with half the weight.
A quarter of a softmax over the concepts of all sets, where concepts that may both be true count as one. In packages
that label things only, an unlabelled pixel is pushed away from the things and towards nothing in particular.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lexiseg.clip.open_clip import build_image_tower
from lexiseg.data.packages import LabelledPhotos
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD
from lexiseg.train.augment import FILL, Cutout, crop_matrix, cut_out, paint_openings, paste, recolour, warp
from lexiseg.train.lexicon import Lexicon, load_lexicon
from lexiseg.train.loop import RunState, is_complete, launch, run
from lexiseg.train.recipes.tiny_clip import CONFIG, averaged_weights

IGNORE = 255
IMPOSSIBLE = -1e4
PART_WEIGHT = 0.02
STRIDE = 4
STREET = {"camvid": 5.0, "msrc": 4.5, "coco_panoptic": 3.5, "coco_things": 2.5, "coco_captions": 0.5}
"""Crops per 16 from each package: `street-tiny`."""
OUTDOOR = {"coco_panoptic": 9.0, "coco_things": 6.0, "coco_captions": 1.0}
"""`outdoor-tiny`: packages whose terms allow permissive weights."""
FAVOURED = {
    "door": 6.0,
    "window": 6.0,
    "house": 4.0,
    "building": 4.0,
    "pavement": 4.0,
    "road": 4.0,
    "fence": 3.0,
    "tree": 2.0,
    "stairs": 2.0,
    "brick wall": 2.0,
    "stone wall": 2.0,
    "bicycle": 2.0,
    "person": 2.0,
    "stop sign": 2.0,
    "traffic light": 2.0,
    "roof": 2.0,
    "sea": 2.0,
    "river": 2.0,
    "water": 2.0,
}
"""Classes of COCO that streets are made of: drawn more often as the centre of a crop."""
PASTED = {
    *("person", "bicycle", "car", "motorcycle", "bus", "truck", "train", "boat", "traffic light", "fire hydrant"),
    *("stop sign", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "umbrella", "potted plant", "chair"),
    *("suitcase", "skateboard"),
}
"""Things of COCO that are pasted into other photos: what may stand about in a street or a meadow."""
STEPS = 10600
UNSEEN_SHARE = 0.08
"""Of the concepts without pixels, in the label set of a crop: the word "lake" must not be true of a tree."""
PIXELS = 512
"""Pixels per crop that enter the loss, more of the small classes than their area."""


@dataclass(frozen=True)
class Plan:
    """What differs between the first training and the rounds of the second."""

    phases: tuple[tuple[float, int, int], ...]
    """Until this share of the steps: crop side, crops per process."""
    learning_rate: float
    balanced: float
    """Until this share of the steps small classes are favoured strongly, afterwards by `rarity`."""
    rarity: float
    """Exponent on the pixels of a class in the crop, for the chance of each to be drawn. 0: natural shares."""
    centred: float
    """Share of the crops that are centred on a rare class."""
    colour: float
    """Strength of the changes of colour."""


FIRST = Plan(((0.35, 160, 11), (0.8, 224, 8), (1.0, 288, 6)), 3e-3, balanced=0.85, rarity=-0.2, centred=0.5, colour=1.0)
SECOND = Plan(((1.0, 256, 7),), 1.2e-3, balanced=0.0, rarity=0.0, centred=0.35, colour=0.6)
"""After the first: the tower still underfits its own photos, and sees small classes where there are none."""
SECOND_ROUNDS = (1800, 5500)
"""The second training is run again from its own end: every round begins with a high learning rate."""
STREET_SECOND = {"camvid": 8.0, "msrc": 4.5, "coco_panoptic": 2.5, "coco_things": 1.0}


@dataclass(frozen=True)
class LabelTable:
    """Every class of every label set is a row. Columns are the concepts with pixels, and those taught as wrong.

    `own[r]` the column of row r; `rival[r]` the concepts that are certainly wrong where r is right; `agree[r]` the
    logarithm of how far a concept counts as right as well: 0 fully, IMPOSSIBLE not at all, between them the parts.
    For the row "none of the things", `rival` are the things and `own` is -1.
    """

    concepts: tuple[str, ...]
    rows: dict[tuple[str, str], int]
    own: Tensor
    rival: Tensor
    agree: Tensor
    sets: dict[str, Tensor]
    """label set -> [G] bool, the concepts it lists."""
    unseen: Tensor
    """[G] bool: the concepts without pixels, taught by what they are not."""

    @property
    def none_row(self) -> int:
        return len(self.own) - 1


def label_set(package: LabelledPhotos) -> str:
    """COCO's packages share one list of classes."""
    return "coco" if package.name.startswith("coco") else package.name


def build_table(packages: list[LabelledPhotos], lexicon: Lexicon) -> LabelTable:
    lists: dict[str, tuple[str, ...]] = {}
    things: set[str] = set()
    for package in packages:
        key = label_set(package)
        if len(package.classes) > len(lists.get(key, ())):
            lists[key] = package.classes
        if package.is_thing:
            things |= {c for c, thing in zip(package.classes, package.is_thing, strict=True) if thing}
    concept = {name: lexicon.concept_of(name) for names in lists.values() for name in names}
    concepts = tuple(dict.fromkeys([*concept.values(), *lexicon.taught_as_wrong]))
    column = {name: i for i, name in enumerate(concepts)}
    sets = {key: torch.zeros(len(concepts), dtype=torch.bool) for key in lists}
    rows: dict[tuple[str, str], int] = {}
    own: list[int] = []
    rival: list[Tensor] = []
    agree: list[Tensor] = []
    for key, names in lists.items():
        for name in names:
            sets[key][column[concept[name]]] = True
    for key, names in lists.items():
        for name in names:
            rows[key, name] = len(own)
            mine = concept[name]
            both = torch.tensor([lexicon.overlap(mine, other) for other in concepts])
            both &= ~sets[key]
            both[column[mine]] = True
            parts = torch.tensor([other in lexicon.parts.get(mine, ()) for other in concepts])
            own.append(column[mine])
            agree.append(torch.where(both, torch.where(parts, math.log(PART_WEIGHT), 0.0), IMPOSSIBLE))
            rival.append(~both)
    is_thing = torch.tensor([any(concept[t] == c for t in things) for c in concepts])
    near_thing = torch.tensor([any(lexicon.overlap(c, concept[t]) for t in things) for c in concepts])
    own.append(-1)
    rival.append(is_thing)
    agree.append(torch.where(near_thing, IMPOSSIBLE, 0.0))
    unseen = torch.tensor([c in lexicon.taught_as_wrong for c in concepts])
    if len(own) >= IGNORE:
        raise ValueError("more than 254 rows: label maps are 8-bit")
    return LabelTable(concepts, rows, torch.tensor(own), torch.stack(rival), torch.stack(agree), sets, unseen)


@dataclass(frozen=True)
class TrainingPhoto:
    """A decoded photo and its labels."""

    image: Image.Image
    rows: Image.Image
    """Mode L: row of the label table, 255 = ignore."""
    label_set: str


class Photos:
    """All photos of one package in memory, decoded, and which class occurs where."""

    def __init__(self, package: LabelledPhotos, split: str, table: LabelTable) -> None:
        key = label_set(package)
        lookup = np.full(256, IGNORE, np.uint8)
        for index, name in enumerate(package.classes):
            if (key, name) in table.rows:
                lookup[index] = table.rows[key, name]
        if package.name == "coco_things":
            lookup[package.ignore] = table.none_row
        self.photos: list[TrainingPhoto] = []
        self.cutouts: list[Cutout] = []
        pasted = {table.rows.get(("coco", name)) for name in PASTED}
        self.with_row: dict[int, list[int]] = {}
        pixels = np.zeros(256)
        for number, id in enumerate(package.ids(split)):
            photo = package.photo(id)
            rows = lookup[photo.labels]
            self.photos.append(TrainingPhoto(Image.fromarray(photo.image), Image.fromarray(rows), key))
            if key == "coco" and package.has_regions:
                for region in np.unique(photo.regions[np.isin(rows, [r for r in pasted if r is not None])]):
                    inside = photo.regions == region
                    row = int(rows[inside][0])
                    if region and row in pasted and 900 < inside.sum() < 0.4 * inside.size:
                        self.cutouts.append(cut_out(self.photos[-1].image, inside, row))
            count = np.bincount(rows.reshape(-1), minlength=256)
            pixels += count
            for row in np.flatnonzero(count).tolist():
                if row not in (IGNORE, table.none_row) and count[row] >= 20:
                    self.with_row.setdefault(row, []).append(number)
        names = {row: name for (_, name), row in table.rows.items()}
        self.present = sorted(self.with_row)
        # Rare classes are drawn more often than their area, less often than evenly.
        self.chance = [
            (pixels[row] ** -0.4)
            * min(1.0, len(self.with_row[row]) / 4) ** 0.5
            * (FAVOURED.get(names[row], 1.0) if key == "coco" else 1.0)
            for row in self.present
        ]

    def draw(self, rng: random.Random, centred: float) -> tuple[TrainingPhoto, tuple[float, float] | None]:
        """A photo and, with this chance, a point (x, y) on a rare class to centre the crop on."""
        if rng.random() >= centred or not self.present:
            return rng.choice(self.photos), None
        row = rng.choices(self.present, self.chance)[0]
        photo = self.photos[rng.choice(self.with_row[row])]
        spots = np.flatnonzero(np.asarray(photo.rows).reshape(-1) == row)
        y, x = divmod(int(spots[rng.randrange(len(spots))]), photo.rows.width)
        return photo, (float(x), float(y))


class Tower(nn.Module):
    """Trunk, projection and scale under the names open_clip gives them."""

    def __init__(self) -> None:
        super().__init__()
        parts = build_image_tower(CONFIG, frozen=False, device="cpu")
        assert parts.projection is not None
        self.visual = nn.ModuleDict({"trunk": parts.trunk.trunk, "head": parts.projection.head})
        self.logit_scale = nn.Parameter(torch.tensor(2.7))

    def dense(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in 0..255 -> [B, C, H/4, W/4], before the projection."""
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        normal = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            trunk: Any = self.visual["trunk"]
            return trunk.forward_features(normal)

    def logits(self, vectors: Tensor, text: Tensor) -> Tensor:
        """Trunk vectors [N, C], unit text rows [G, D] -> [N, G]."""
        with torch.autocast("cpu", torch.bfloat16):
            embeds = self.visual["head"](vectors)
        embeds = F.normalize(embeds.float(), dim=-1)
        return self.logit_scale.exp().clamp(max=100.0) * (embeds @ text.T)


def label_losses(
    logits: Tensor, rows: Tensor, candidates: Tensor, table: LabelTable, smoothing: float = 0.03
) -> tuple[Tensor, Tensor]:
    """logits [N, G], rows [N] of the table, candidates [N, G] bool: the concepts in the running for the first loss.

    Returns the loss over the candidates and the loss over all concepts, each a mean over the rows it applies to.
    """
    own = table.own[rows]
    labelled = own >= 0
    agree = table.agree[rows]
    is_own = F.one_hot(own.clamp(min=0), logits.shape[1]).bool()
    is_part = (agree < 0) & (agree > IMPOSSIBLE)
    running = (candidates & (table.rival[rows] | is_part)) | is_own
    among = logits.masked_fill(~running, IMPOSSIBLE)
    total = among.logsumexp(1)
    right = (among + agree.masked_fill(is_own, 0.0)).logsumexp(1)
    mean = (logits * running).sum(1) / running.sum(1)
    chosen = (1 - smoothing) * (total - right) + smoothing * (total - mean)
    first = (chosen * labelled).sum() / labelled.sum().clamp(min=1)
    # Over all concepts: what agrees with the label counts as right, together.
    union = logits.logsumexp(1) - (logits + agree).logsumexp(1)
    return first, union.mean()


@dataclass
class DenseStage:
    """Draws crops and computes the loss of a step."""

    tower: Tower
    packages: list[Photos]
    weights: list[float]
    table: LabelTable
    lexicon: Lexicon
    names: dict[str, Tensor]
    total_steps: int
    plan: Plan = FIRST

    def __post_init__(self) -> None:
        rows = self.table.rows
        self.walls = [row for (_, name), row in rows.items() if name in ("building", "house")]
        self.openings = (rows["coco", "window"], rows["coco", "door"])
        self.cutouts: dict[int, list[Cutout]] = {}
        for cutout in (cutout for package in self.packages for cutout in package.cutouts):
            self.cutouts.setdefault(cutout.row, []).append(cutout)

    def crop(self, rng: random.Random, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
        photo, centre = rng.choices(self.packages, self.weights)[0].draw(rng, self.plan.centred)
        image, rows = photo.image, photo.rows
        if self.walls and rng.random() < 0.35:
            wall = np.isin(np.asarray(rows), self.walls)
            if wall.mean() > 0.06:
                image, rows = paint_openings(rng, image, rows, wall, *self.openings)
        matrix = crop_matrix(rng, size, (image.height, image.width), (0.6, 2.2), centre)
        image = warp(image, matrix, size, 1, FILL)
        rows = warp(rows, matrix, size, STRIDE, IGNORE)
        if self.cutouts and rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 2, 3))):
                paste(rng, image, rows, STRIDE, rng.choice(self.cutouts[rng.choice(list(self.cutouts))]))
        return np.asarray(recolour(rng, image, self.plan.colour)), np.asarray(rows), photo.label_set

    def candidates(self, rng: random.Random, key: str, rows: NDArray[np.uint8]) -> Tensor:
        """[G] bool: the label set of the photo, thinned at random, and what occurs in the crop."""
        listed = self.table.sets[key]
        kept = listed & (torch.rand(len(listed)) < rng.uniform(0.3, 1.3))
        kept |= self.table.unseen & (torch.rand(len(listed)) < UNSEEN_SHARE)
        present = torch.from_numpy(np.unique(rows).astype(np.int64))
        present = present[present < self.table.none_row]
        kept[self.table.own[present]] = True
        if rng.random() < 0.7:  # else only the drawn windows would ever compete with the walls of other sets
            agree = self.table.agree[present]
            kept |= ((agree < 0) & (agree > IMPOSSIBLE)).any(0)
        return kept

    def __call__(self, step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        _, size, count = next(phase for phase in self.plan.phases if step <= phase[0] * self.total_steps)
        crops = [self.crop(rng, size) for _ in range(count)]
        images = torch.from_numpy(np.stack([image for image, _, _ in crops])).permute(0, 3, 1, 2).float()
        rows = torch.from_numpy(np.stack([row for _, row, _ in crops])).long().flatten(1)  # [B, hw]
        candidates = torch.stack([self.candidates(rng, key, row) for _, row, key in crops])  # [B, G]
        text = torch.stack([self.names[self.lexicon.concepts[c].draw(rng)] for c in self.table.concepts])

        self.tower.train()
        dense = self.tower.dense(images).flatten(2).transpose(1, 2)  # [B, hw, C]
        pixel_loss, pixel_union = self.pixel_losses(step, dense, rows, candidates, text)
        region_loss, region_union = self.region_losses(dense, rows, candidates, text)
        union_weight = 0.25 if step > 0.15 * self.total_steps else 0.1
        loss = pixel_loss + 0.5 * region_loss + union_weight * (pixel_union + 0.5 * region_union)
        return loss, {
            "loss": float(loss.detach()),
            "pixel": float(pixel_loss.detach()),
            "region": float(region_loss.detach()),
            "union": float(pixel_union.detach()),
            "scale": float(self.tower.logit_scale.detach().exp()),
        }

    def pixel_losses(
        self, step: int, dense: Tensor, rows: Tensor, candidates: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        counts = F.one_hot(rows, 256).sum(1).float()  # [B, 256]
        # A little more of what is small: evenly over the classes, the tower sees signs and poles everywhere.
        rarity = -0.5 if step < self.plan.balanced * self.total_steps else self.plan.rarity
        weight = counts.gather(1, rows).pow(rarity)  # [B, hw]
        weight = weight.masked_fill(rows == self.table.none_row, 0.0) + 0.3 * weight * (rows == self.table.none_row)
        weight = weight.masked_fill(rows == IGNORE, 0.0) + 1e-12
        drawn = torch.multinomial(weight, min(PIXELS, rows.shape[1] // 2), replacement=True)  # [B, P]
        vectors = dense.gather(1, drawn[..., None].expand(-1, -1, dense.shape[-1]))
        row = rows.gather(1, drawn)
        kept = row != IGNORE
        which = torch.arange(len(rows))[:, None].expand_as(row)[kept]
        return label_losses(self.tower.logits(vectors[kept], text), row[kept], candidates[which], self.table)

    def region_losses(self, dense: Tensor, rows: Tensor, candidates: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        code = rows + torch.arange(len(rows))[:, None] * 256
        present, region, area = code.reshape(-1).unique(return_inverse=True, return_counts=True)
        total = torch.zeros(len(present), dense.shape[-1]).index_add_(
            0, region, dense.reshape(-1, dense.shape[-1]).float()
        )
        row = present % 256
        kept = (row < self.table.none_row) & (area >= 4)
        mean = total[kept] / area[kept, None]
        return label_losses(self.tower.logits(mean, text), row[kept], candidates[present[kept] // 256], self.table)


def load_names(folder: Path) -> dict[str, Tensor]:
    """names.json and names.safetensors: unit vectors of names, as the text tower writes them."""
    names = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    vectors = F.normalize(load_file(folder / "names.safetensors")["vectors"].float(), dim=-1)
    return dict(zip(names, vectors, strict=True))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and convolutions only."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def work(
    data: Path,
    names: Path,
    out: Path,
    start: Path | None,
    mixture: dict[str, float],
    steps: int,
    deadline: float | None,
) -> None:
    """One process of the training."""
    lexicon = load_lexicon()
    packages = [LabelledPhotos(data / f"{name}.zip") for name in mixture]
    table = build_table(packages, lexicon)
    torch.manual_seed(0)
    tower = Tower().to(memory_format=torch.channels_last)
    if start is not None:
        tower.load_state_dict(averaged_weights(start))
    plan = FIRST if start is None else SECOND
    optimizer = torch.optim.AdamW(parameter_groups(tower, 0.03), lr=plan.learning_rate, fused=True)
    stage = DenseStage(
        tower=tower,
        packages=[Photos(package, "train", table) for package in packages],
        weights=list(mixture.values()),
        table=table,
        lexicon=lexicon,
        names=load_names(names),
        total_steps=steps,
        plan=plan,
    )
    run(stage, RunState(tower, optimizer), steps, out, learning_rate=plan.learning_rate, deadline=deadline)


def train(
    data: Path,
    out: Path,
    names: Path,
    mixture: dict[str, float] = STREET,
    start: Path | None = None,
    steps: int = STEPS,
    processes: int = 2,
    deadline: float | None = None,
) -> bool:
    """Train, or go on training, in `out`; returns whether the training is complete.

    data: folder of the packages. names: folder `names` of the text tower's run. mixture: crops per package.
    start: the run of a finished first training, for the second.
    """
    launch(work, processes, out, data, names, out, start, mixture, steps, deadline)
    return is_complete(out, steps)

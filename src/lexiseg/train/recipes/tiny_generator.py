"""The mask generator of the embedded models: FC-CLIP's, of small width, on the frozen maps of the tiny tower.

Command:   lexiseg train street-tiny-generator --data DIR --tower RUN --names RUN/names --out RUN
Time:      about 40 minutes on two cores
Expect:    see the model card

The criterion is that of the paper, every prediction of the decoder supervised; what nobody has labelled is left out of
it. Segments are those of the packages, connected parts of the countable classes of camvid, painted windows and doors,
and objects of COCO pasted into other photos. A step of a process takes photos of one package, whose own list of
classes the proposals are told apart by, each class under one of its names.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lexiseg.data.packages import LabelledPhotos
from lexiseg.proposals.fcclip import FCCLIPGenerator
from lexiseg.system import System
from lexiseg.train.augment import Cutout
from lexiseg.train.lexicon import Lexicon, load_lexicon
from lexiseg.train.loop import RunState, is_complete, launch, run
from lexiseg.train.losses import Criterion
from lexiseg.train.recipes.fcclip import freeze_all_but_generator, parameter_groups
from lexiseg.train.recipes.tiny_clip import CONFIG, averaged_weights
from lexiseg.train.recipes.tiny_tower import PASTED, load_names
from lexiseg.train.segment_targets import SegmentedPhotos, targets_of
from lexiseg.types import Images, TextBank
from lexiseg.zoo.fcclip import fcclip

STREET = {"camvid": 4.0, "msrc": 2.5, "coco_panoptic": 2.0, "coco_things": 1.5}
"""Shares of the steps: `street-tiny`."""
OUTDOOR = {"coco_panoptic": 3.0, "coco_things": 2.0}
"""`outdoor-tiny`: packages whose terms allow permissive weights."""
SIZES = {
    "width": 128,
    "mask_width": 64,
    "num_queries": 48,
    "encoder_layers": 1,
    "encoder_ffn_width": 256,
    "decoder_layers": 3,
    "decoder_ffn_width": 512,
    "heads": 4,
    "points": 2,
}
STEPS = 6000
LEARNING_RATE = 1e-3
PHASES = ((0.8, 256, 4), (1.0, 352, 2))
UNSEEN_SHARE = 0.15
"""Of the words without photos, among the classes of a step."""
SCALES = (0.5, 1.3)
"""Crop pixels per photo pixel."""
STRIDE = 2
"""Of the target masks; the generator's are at stride 4."""
SMALLEST = 8
"""Cells of a target: 32 pixels."""
CRITERION = Criterion(num_points=1024)


def tower_state(tower_run: Path) -> dict[str, Tensor]:
    """The averaged weights of the tower's run, as a system without its generator calls them."""
    parts = {
        "visual.trunk.": "encoder.trunk.",
        "visual.head.": "embedder.projection.head.",
        "logit_scale": "scorer.logit_scale",
    }
    state = {}
    for name, value in averaged_weights(tower_run).items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        state[parts[prefix] + name.removeprefix(prefix)] = value
    return state


def build(tower_run: Path, generator: Mapping[str, Tensor] | None = None, **settings: Any) -> System:
    """The whole model in evaluation mode: the tower of a run and a generator, random unless its weights are given.

    settings: arguments of `zoo.fcclip.fcclip` beside the sizes.
    """
    system = fcclip(CONFIG, device="cpu", **SIZES, **settings)
    state = {name: value for name, value in system.state_dict().items() if name.startswith("generator.")}
    if generator is not None:
        state = {f"generator.{name}": value for name, value in generator.items()}
    system.load_state_dict(state | tower_state(tower_run))
    return system.eval()


@dataclass
class GeneratorStage:
    """Draws crops of one package and computes the loss of a step."""

    encoder: nn.Module
    generator: FCCLIPGenerator
    sources: list[SegmentedPhotos]
    weights: list[float]
    cutouts: list[tuple[str, Cutout]]
    lexicon: Lexicon
    names: dict[str, Tensor]
    total_steps: int
    phases: Sequence[tuple[float, int, int]] = PHASES
    """Until this share of the steps: crop side, crops per process."""

    def __call__(self, step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        late = self.phases[-1]
        _, size, count = next((phase for phase in self.phases if step < phase[0] * self.total_steps), late)
        source = rng.choices(self.sources, self.weights)[0]
        crops = [source.draw(rng, size, STRIDE, SCALES, self.cutouts) for _ in range(count)]
        pixels = torch.from_numpy(np.stack([image for image, _, _ in crops])).permute(0, 3, 1, 2).float()
        sizes = ((size, size),) * count
        images = Images(pixels, sizes, sizes)
        targets = [targets_of(ids, classes, SMALLEST) for _, ids, classes in crops]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                features = self.encoder(images)
            predictions = self.generator.all_steps(images, features, self.text(rng, source))
        # Where only things are labelled, a proposal without a partner may well be something.
        criterion = replace(CRITERION, void_weight=0.0) if source.only_things else CRITERION
        losses = criterion.weighted(criterion([prediction.proposals for prediction in predictions], targets))
        total = torch.stack(list(losses.values())).sum()
        last = {name: float(losses[name].detach()) for name in ("loss_ce", "loss_mask", "loss_dice")}
        return total, {"loss": float(total.detach()), **last}

    def text(self, rng: random.Random, source: SegmentedPhotos) -> TextBank:
        """The classes of a package, each under one of its names, and some that are not there.

        A word without photos stands for a class it is a kind of, or for nothing: else it would be true of anything.
        """
        phrases = [self.lexicon.concepts[c].draw(rng) for c in source.concepts]
        for unseen in self.lexicon.taught_as_wrong:
            if rng.random() >= UNSEEN_SHARE:
                continue
            phrase = self.lexicon.concepts[unseen].draw(rng)
            general = [i for i, c in enumerate(source.concepts) if unseen in self.lexicon.kinds.get(c, ())]
            if general:
                phrases[rng.choice(general)] = phrase
            elif not any(self.lexicon.overlap(unseen, c) for c in source.concepts):
                phrases.append(phrase)
        rows = torch.stack([self.names[phrase] for phrase in phrases])[:, None]
        count = len(rows)
        return TextBank(rows, rows, torch.arange(count), torch.ones(count, dtype=torch.bool))


def prepare(
    data: Path, names: Path, tower: Path, mixture: Mapping[str, float], steps: int
) -> tuple[GeneratorStage, FCCLIPGenerator]:
    """The photos in memory and a system with a random generator."""
    lexicon = load_lexicon()
    packages = {name: LabelledPhotos(data / f"{name}.zip") for name in mixture}
    pasted = sorted(lexicon.concept_of(name) for name in PASTED)
    sources = [SegmentedPhotos(package, "train", lexicon, pasted) for package in packages.values()]
    cutouts = [cutout for source in sources if source.package.is_thing for cutout in source.cutouts(PASTED)]
    torch.manual_seed(0)
    encoder, generator = freeze_all_but_generator(build(tower))
    generator.pixel_decoder.full_precision = False
    weights = list(mixture.values())
    return GeneratorStage(encoder, generator, sources, weights, cutouts, lexicon, load_names(names), steps), generator


def work(
    data: Path,
    names: Path,
    tower: Path,
    out: Path,
    mixture: dict[str, float],
    steps: int,
    deadline: float | None,
) -> None:
    """One process of the training."""
    stage, generator = prepare(data, names, tower, mixture, steps)
    optimizer = torch.optim.AdamW(parameter_groups(generator, LEARNING_RATE), lr=LEARNING_RATE, fused=True)
    state = RunState(generator, optimizer)
    run(stage, state, steps, out, learning_rate=LEARNING_RATE, warmup=100, clip=1.0, deadline=deadline)


def train(
    data: Path,
    out: Path,
    tower: Path,
    names: Path,
    mixture: dict[str, float] = STREET,
    steps: int = STEPS,
    processes: int = 2,
    deadline: float | None = None,
) -> bool:
    """Train, or go on training, in `out`; returns whether the training is complete.

    data: folder of the packages. tower: run of the image tower, which stays as it is. names: folder `names` of the
    text tower's run. mixture: shares of the steps per package.
    """
    launch(work, processes, out, data, names, tower, out, mixture, steps, deadline)
    return is_complete(out, steps)

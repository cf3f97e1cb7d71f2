"""A whole embedded model from nothing: text tower, image tower, mask generator, and the folder that is installed.

Command:   lexiseg train street-tiny --data DIR --out RUN
Time:      about three hours on two cores (AVX512-BF16)
Expect:    see the model card

Every stage has a folder of its own in RUN and goes on where it was stopped; a complete one is passed over. The model
is RUN/model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexiseg import postprocess
from lexiseg.data.packages import LabelledPhotos
from lexiseg.images import Canvas, Photo
from lexiseg.metrics.semantic import SemanticConfusion, mean_iou
from lexiseg.proposals.clusters import ClusterProposals
from lexiseg.scoring.fusion import GeometricEnsemble, RegionOnly
from lexiseg.system import System
from lexiseg.train.lexicon import Lexicon, load_lexicon
from lexiseg.train.recipes import tiny_generator, tiny_text, tiny_tower
from lexiseg.train.recipes.tiny_clip import CONFIG, averaged_weights
from lexiseg.train.recipes.tiny_generator import tower_state
from lexiseg.train.recipes.tiny_tower import load_names
from lexiseg.train.segment_targets import UNKNOWN, SegmentedPhotos
from lexiseg.types import TextBank
from lexiseg.zoo.catalogue import ZOO
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.model_folder import OutputSettings, save_model_folder

CANVAS = Canvas(short_edge=360, long_edge=600, multiple=32)
"""Photos of the data are at most 480 pixels long: nothing larger was ever seen in training."""
OUTPUTS = OutputSettings(object_mask_threshold=0.25, overlap_threshold=0.6)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of CLIP's verdict against the generator's, tried out for `alpha` and `beta`."""
NOTHING_YET: Mapping[str, Mapping[str, float]] = {}


@dataclass(frozen=True)
class Kind:
    """What one embedded model is trained on."""

    tower_mixture: dict[str, float]
    second_mixture: dict[str, float]
    """Of the tower's second, milder training."""
    generator_mixture: dict[str, float] | None
    """None: clusters of the dense map are the proposals, and no generator is trained."""
    validation: str
    """The package whose val split chooses the fusion."""


STREET_TINY = "street-tiny"
OUTDOOR_TINY = "outdoor-tiny"
KINDS = {
    STREET_TINY: Kind(tiny_tower.STREET, tiny_tower.STREET_SECOND, tiny_generator.STREET, validation="camvid"),
    # Together with street-tiny, whose text tower it shares, it stays below 40 MB: no room for a generator.
    OUTDOOR_TINY: Kind(tiny_tower.OUTDOOR, tiny_tower.OUTDOOR, None, validation="coco_panoptic"),
}


def bank_of(phrases: Sequence[str], names: Mapping[str, Tensor], seen: bool) -> TextBank:
    """One phrase per class, from the vectors of names."""
    rows = torch.stack([functional.normalize(names[phrase], dim=-1) for phrase in phrases])[:, None]
    return TextBank(rows, rows, torch.arange(len(rows)), torch.full((len(rows),), seen))


def spread(ids: Sequence[str], limit: int) -> list[str]:
    """`limit` of the ids at even distances: neighbours are often frames of one film."""
    return [ids[position * len(ids) // limit] for position in range(limit)] if limit < len(ids) else list(ids)


@torch.inference_mode()
def measure_fusions(
    system: System,
    package: LabelledPhotos,
    banks: Mapping[str, TextBank],
    *,
    split: str = "val",
    limit: int = 40,
    canvas: Canvas = CANVAS,
    weights: Sequence[float] = WEIGHTS,
    clusters: bool = False,
) -> dict[str, dict[str, float]]:
    """Semantic mIoU in percent of `package` through the masks, by text bank and by how the two verdicts are fused.

    Keys of the inner tables: "0.25" and so on (weight of CLIP's verdict, alpha = beta), "clip" (CLIP alone, no void),
    and with `clusters` "clusters" (k-means of the dense map in place of the generator).
    """
    fusions: dict[str, Any] = {str(weight): GeometricEnsemble(weight, weight) for weight in weights}
    fusions["clip"] = RegionOnly()
    keys = [*fusions, *(["clusters"] if clusters else [])]
    tables = {bank: {key: SemanticConfusion(len(package.classes), package.ignore) for key in keys} for bank in banks}
    assert system.encoder is not None
    for id in tqdm(spread(package.ids(split), limit), desc=f"masks of {package.name}", unit="photo", mininterval=5):
        photo = package.photo(id)
        truth = torch.from_numpy(photo.labels.astype(np.int64))
        images = canvas([Photo(photo.image, id)])
        frame = postprocess.Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
        features = system.encoder(images)
        sources = {name: (bank, system.generator(images, features, bank), fusions) for name, bank in banks.items()}
        if clusters:
            grouped = ClusterProposals()(images, features)
            sources |= {f"{name}/clusters": (bank, grouped, {"clusters": RegionOnly()}) for name, bank in banks.items()}
        for name, (bank, proposals, ways) in sources.items():
            masks = proposals.mask_logits
            region_logits = system.scorer(regions := system.embedder(images, features, masks), bank)
            # What `postprocess.semantic` does, with the masks brought to size once for all fusions.
            probs = torch.cat([part for _, part in postprocess.mask_strips(masks[0], frame, "canvas")], dim=1)
            for key, fuse in ways.items():
                scores = fuse(proposals, region_logits, regions.valid, bank)
                labels = torch.einsum("qk,qhw->khw", scores.class_probs[0], probs).argmax(0)
                tables[name.split("/")[0]][key].update(labels, truth)
    return {
        name: {key: round(100 * mean_iou(table.counts, "gt"), 1) for key, table in row.items()}
        for name, row in tables.items()
    }


@torch.inference_mode()
def mask_recall(
    system: System, photos: SegmentedPhotos, bank: TextBank, *, limit: int = 40, canvas: Canvas = CANVAS
) -> dict[str, float]:
    """Mean over ground-truth segments of the best IoU among the proposals: of all, and apart of those
    below and above 32 x 32 pixels of the photo."""
    best: dict[str, list[float]] = {"small": [], "large": []}
    assert system.encoder is not None
    chosen = [photos.photos[i * len(photos.photos) // limit] for i in range(min(limit, len(photos.photos)))]
    for photo in chosen:
        ids = np.asarray(photo.ids)
        images = canvas([Photo(np.asarray(photo.image), "")])
        frame = postprocess.Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
        masks = system.generator(images, system.encoder(images), bank).mask_logits[0]
        probs = torch.cat([part for _, part in postprocess.mask_strips(masks, frame, "canvas")], dim=1)
        found = (probs > 0.5) & torch.from_numpy(ids != UNKNOWN)
        for number in range(1, len(photo.classes) + 1):
            inside = torch.from_numpy(ids == number)
            if (area := int(inside.sum())) < 30:
                continue
            overlap = (found & inside).flatten(1).sum(1)
            union = (found | inside).flatten(1).sum(1)
            group = "small" if area < 32**2 else "large"
            best[group].append(float((overlap / union).max()))
    every = [value for values in best.values() for value in values]
    return {"all": float(np.mean(every))} | {key: float(np.mean(values)) for key, values in best.items() if values}


def choose_fusion(
    system: System, package: LabelledPhotos, lexicon: Lexicon, names: Mapping[str, Tensor], limit: int = 40
) -> tuple[float, float, dict[str, dict[str, float]]]:
    """(alpha, beta, what was measured): the weights of CLIP's verdict with the best mIoU on photos for model choice.

    alpha is for words of the training, beta for others: it is chosen with held-out names in place of the usual ones.
    """
    concepts = [lexicon.concepts[lexicon.concept_of(name)] for name in package.classes]
    banks = {
        "training names": bank_of([concept.names[0] for concept in concepts], names, seen=True),
        "held-out names": bank_of([(concept.held_out or concept.names)[0] for concept in concepts], names, seen=False),
    }
    measured = measure_fusions(system, package, banks, limit=limit, clusters=True)
    alpha, beta = (max(WEIGHTS, key=lambda weight: row[str(weight)]) for row in measured.values())
    return alpha, beta, measured


def build_clustered(tower_run: Path) -> System:
    """The tower of a run with clusters of its dense map in the place of a generator."""
    system = clustered(CONFIG, device="cpu")
    system.load_state_dict(tower_state(tower_run))
    return system.eval()


def assemble(
    name: str,
    tower_run: Path,
    generator_run: Path | None,
    text: Path | str,
    folder: Path,
    *,
    alpha: float = 0.0,
    beta: float = 0.0,
    measured: Mapping[str, Mapping[str, float]] = NOTHING_YET,
    tried: Mapping[str, Mapping[str, float]] = NOTHING_YET,
    canvas: Canvas = CANVAS,
) -> Path:
    """Write the model folder of `name` from its runs, at any time of a run.

    generator_run: None for clusters of the dense map instead, which need no fusion. text: run of the text tower, or
    the text file of a folder beside this one. alpha, beta: of the fusion, see `choose_fusion`. measured: data ->
    measure -> number, for the card; tried: the table behind alpha and beta.
    """
    entry = ZOO[name]
    arguments: dict[str, Any] = {"tower": CONFIG}
    if generator_run is None:
        builder, system = "clustered", build_clustered(tower_run)
    else:
        builder, system = "fcclip", tiny_generator.build(tower_run, averaged_weights(generator_run))
        arguments |= {"alpha": alpha, "beta": beta, **tiny_generator.SIZES}
    training_phrases = load_lexicon().training_names()
    return save_model_folder(
        folder,
        system,
        text if isinstance(text, str) else averaged_weights(text),
        builder=builder,
        arguments=arguments,
        templates=tiny_text.TEMPLATE_SET,
        canvas=canvas,
        outputs=OUTPUTS,
        training_phrases=training_phrases,
        card={
            "title": entry.title,
            "code_licence": entry.code_licence,
            "weights_licence": entry.weights_licence,
            "trained_on": entry.trained_on,
            "text_tower": "distilled from all-MiniLM-L6-v2 (Apache-2.0)",
            "limits": "Knows streets and the outdoors: sky, roads, buildings, trees, cars, people. Indoor scenes, fine "
            "parts and rare words fail. It shows how the program works and is no replacement for a released model.",
            "measured": {data: dict(numbers) for data, numbers in measured.items()},
            "fusion_tried": {words: dict(row) for words, row in tried.items()},
        },
        dtype=torch.float16,
    )


def train(
    name: str, data: Path, out: Path, share: float = 1.0, processes: int = 2, deadline: float | None = None
) -> bool:
    """Train, or go on training, the embedded model `name` in `out`; returns whether out/model is complete.

    share: of the usual steps of every stage, to try the recipe out.
    """

    def some(steps: int) -> int:
        return max(1, round(share * steps))

    kind = KINDS[name]
    text, first, generator = out / "text", out / "tower_1", out / "generator"
    names = text / "names"
    complete = tiny_text.train(text, steps=some(tiny_text.STEPS), deadline=deadline)
    complete = complete and tiny_tower.train(
        data, first, names, kind.tower_mixture, steps=some(tiny_tower.STEPS), processes=processes, deadline=deadline
    )
    tower = first
    for number, steps in enumerate(tiny_tower.SECOND_ROUNDS, start=2):
        start, tower = tower, out / f"tower_{number}"
        complete = complete and tiny_tower.train(
            data,
            tower,
            names,
            kind.second_mixture,
            start=start,
            steps=some(steps),
            processes=processes,
            deadline=deadline,
        )
    mixture = kind.generator_mixture
    if mixture is not None:
        complete = complete and tiny_generator.train(
            data,
            generator,
            tower,
            names,
            mixture,
            steps=some(tiny_generator.STEPS),
            processes=processes,
            deadline=deadline,
        )
    if not complete:
        return False
    if mixture is None:
        assemble(name, tower, None, text, out / "model")
        return True
    package = LabelledPhotos(data / f"{kind.validation}.zip")
    system = tiny_generator.build(tower, averaged_weights(generator))
    alpha, beta, tried = choose_fusion(system, package, load_lexicon(), load_names(names))
    measured = {
        f"{package.name} val, {words}, 40 photos": {"miou": row[str(weight)]}
        for (words, row), weight in zip(tried.items(), (alpha, beta), strict=True)
    }
    assemble(name, tower, generator, text, out / "model", alpha=alpha, beta=beta, measured=measured, tried=tried)
    return True

"""MaskCLIP++: a CLIP tuned to name true masks, on COCO, or on masks of your own.

High-Quality Mask Tuning Matters for Open-Vocabulary Segmentation (arXiv 2412.11464).

Data:      COCO 2017 train with panoptic annotations (133 classes), or COCO-Stuff-164k (171 classes, --crops short-edge)
Time:      20 000 steps of 4 photos: 2 to 4 hours on two GPUs of 24 GB
Expect:    mask accuracy, before / after: ADE20K-150 52.7 / 67.0, Context-59 54.6 / 85.2 (EVA02-L, words tuned)

Command:   lexiseg train maskclip-pp --data MY_DATASET --start MODEL --out RUN

MY_DATASET: a COCO JSON file, an export of Label Studio or CVAT, a folder with images/, labels/ and classes.txt, or a
data package; the formats are written out in docs/training.md. Everything in it is looked at first, and what is wrong is
listed file by file. Mask accuracy is measured before and after, on seen classes and on unseen ones: those of
--hold-out, which take no part in the training, those of --unseen, a second set, and those that no training photo shows.
RUN/report.md and RUN/report.json have the table, RUN/model the tuned classifier. The same command goes on where it was
stopped.

What an option without a default stands for follows from the tower, see docs/training.md. --crops: large-scale (COCO
panoptic) or short-edge (COCO-Stuff). --alignment: on or off. --words: frozen or tuned. --precision: float32,
bfloat16, float16 (official), or auto: bfloat16 on a GPU.
"""

from __future__ import annotations

import difflib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from lexiseg.clip.open_clip import clip_config, is_transformer
from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.data.user_masks import (
    DataProblems,
    LookedThrough,
    MaskPhotos,
    look_through,
    open_mask_data,
    refuse_overlap,
    split_off,
)
from lexiseg.geometry import round_up
from lexiseg.images import place
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.scoring.fusion import RegionOnly
from lexiseg.system import System
from lexiseg.text_bank import cache_folder, encode_vocabulary
from lexiseg.train.loop import RunState, run, share_of
from lexiseg.train.mask_report import Named, agreement, change_of, name_masks, table
from lexiseg.train.mask_tuning import (
    Batches,
    BatchNorm,
    TextLayers,
    TrainingWords,
    Tuned,
    loss_of_masks,
    parameter_groups,
    seeing_crops,
    tuned_parts,
)
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.recipes import fcclip
from lexiseg.train.recipes.fcclip import photo_numbers
from lexiseg.train.semantic_crops import semantic_crop, short_edges
from lexiseg.types import Images, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import differing_settings, replacing
from lexiseg.zoo import coco_words
from lexiseg.zoo.maskclip_pp import Similarity
from lexiseg.zoo.model_folder import save_model_folder
from lexiseg.zoo.untuned import Untuned, kind_of, untuned

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

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""float16 with a scaled loss, as the official run; bfloat16 needs no scaling."""

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
    state = RunState(tuned.modules, torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8))
    if autocast == torch.float16:
        state.scaler = torch.amp.GradScaler(device.type)
    with seeing_crops(tuned):
        return run(
            loss_of,
            state,
            total_steps,
            out,
            learning_rate=learning_rate,
            schedule=schedule,
            clip=GRADIENT_NORM,
            average_decay=0.0,  # the official training keeps no running average
            seed=seed,
            **loop,
        )


# ---------------------------------------------------------------------------------------------------- masks of your own


@dataclass(frozen=True)
class Habits:
    """What is usual for a tower."""

    learning_rate: float
    tower_scale: float
    batch_norm: BatchNorm
    crop: int
    smallest_scale: float


OWN_PASSES = 40
"""How often each photo is looked at, unless the official number of steps is less."""
FOREIGN_WORDS = coco_words.THINGS + coco_words.STUFF


def habits_of(tower: str | dict[str, Any], short_edge: int) -> Habits:
    """As released, for towers of those families; another, such as ours, learns faster, from crops of its own size."""
    vision = clip_config(tower)["vision_cfg"]
    architecture = str(vision.get("timm_model_name", ""))
    if is_transformer(tower):
        crop = 512 if vision.get("image_size", 224) == 224 and clip_config(tower)["embed_dim"] == 512 else 448
        return Habits(LEARNING_RATE, 1e-2, "fixed", crop, fcclip.SCALES[0])
    if architecture.startswith("convnext"):
        large = architecture in ("convnext_large", "convnext_xxlarge")
        return Habits(LEARNING_RATE / 2 if large else LEARNING_RATE, 1e-3, "fixed", 1024, fcclip.SCALES[0])
    if not architecture:
        return Habits(LEARNING_RATE, 1e-2, "batch", 1024, fcclip.SCALES[0])
    return Habits(LEARNING_RATE, 0.1, "fixed", round_up((short_edge, short_edge), 32)[0], 0.5)


@dataclass(frozen=True)
class Asked:
    """Masks to be named before and after, and the groups of their classes."""

    name: str
    photos: Sequence[PanopticPhoto]
    vocabulary: Vocabulary
    groups: dict[str, Tensor]
    """What is reported: title -> classes [K] bool."""


def train_masks(
    data: Path,
    out: Path,
    start: str = "street-tiny",
    val: Path | None = None,
    hold_out: str = "",
    unseen: Path | None = None,
    images: Path | None = None,
    segments: Path | None = None,
    steps: int | None = None,
    batch: int = BATCH,
    crops: str = "large-scale",
    crop: int | None = None,
    smallest_scale: float | None = None,
    learning_rate: float | None = None,
    tower_scale: float | None = None,
    alignment: str = "on",
    similarity: str = "usual",
    words: str = "frozen",
    text_layers: str = "blocks",
    batch_norm: str = "auto",
    batches: str = "alone",
    precision: str = "auto",
    short_edge: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    save_every: int = 200,
    deadline: float | None = None,
) -> str | bool:
    """Tune `start`, a model by name or folder, or a CLIP, on true masks; the report, or False where it is not complete.

    hold_out: classes with commas between them. unseen: data as well, whose classes that share no name with the trained
    ones are measured. images, segments: folders of the photos and of COCO panoptic's PNGs. alignment: "off" leaves out
    what stands between tower and words. similarity: see `zoo.untuned`. words: "tuned" trains the words' tower too.
    precision: one of `PRECISIONS`, or auto, which is bfloat16 on a GPU.
    """
    _one_of("--crops", crops, CropRule)
    _one_of("--batches", batches, Batches)
    _one_of("--text-layers", text_layers, TextLayers)
    _one_of("--similarity", similarity, ("usual", *get_args(Similarity)))
    _one_of("--batch-norm", batch_norm, ("auto", *get_args(BatchNorm)))
    _one_of("--precision", precision, ("auto", *PRECISIONS))
    _one_of("--words", words, ("frozen", "tuned"))
    _one_of("--alignment", alignment, ("on", "off"))
    for option, number in (("--steps", steps), ("--batch", batch), ("--crop", crop), ("--save-every", save_every)):
        if number is not None and number < 1:
            raise ValueError(f"{option} {number}: give a number above 0")
    if alignment == "off":
        if similarity not in ("usual", "template-mean"):
            raise ValueError(f"--alignment off: without it regions are compared by template-mean, not by {similarity}")
        similarity = "template-mean"
    sets = _sets(data, val, hold_out, unseen, (images, segments), out)

    torch.manual_seed(seed)
    model = untuned(start, cast(Any, similarity), short_edge=short_edge, device=device)
    usual = habits_of(model.arguments["tower"], model.arguments["short_edge"])
    settings: dict[str, Any] = {
        "start": str(start),
        "similarity": kind_of(model.scorer),
        "steps": steps or _usual_steps(len(sets.photos), batch),
        "batch": batch,
        "crops": crops,
        "crop": crop or usual.crop,
        "smallest_scale": smallest_scale or usual.smallest_scale,
        "learning_rate": learning_rate or usual.learning_rate,
        "tower_scale": usual.tower_scale if tower_scale is None else tower_scale,
        "words": words,
        "text_layers": text_layers,
        "batch_norm": usual.batch_norm if batch_norm == "auto" else batch_norm,
        "batches": batches,
        "seed": seed,
        "trained_classes": list(sets.trained.names),
        "photos": len(sets.photos),
        "measured_photos": [len(question.photos) for question in sets.asked],
    }
    _same_settings(out / "settings.json", settings)

    text = model.text_encoder() if words == "tuned" else None
    where = torch.device(device)
    before = _measured(out / "before.json", lambda: _name_all(model, sets.asked, where, frozen=True))
    tuned = tuned_parts(
        model.embedder,
        model.scorer,
        text,
        text_layers=cast(TextLayers, text_layers),
        batch_norm=settings["batch_norm"],
    )
    rows = None if text is not None else _rows(model, sets.trained, where, frozen=True)
    usual_precision = "bfloat16" if where.type == "cuda" else "float32"
    autocast = PRECISIONS[usual_precision if precision == "auto" else precision]
    complete = train(
        tuned,
        [Corpus(sets.photos, TrainingWords(sets.trained, model.templates, rows))],
        out,
        total_steps=settings["steps"],
        batch=batch,
        rule=cast(CropRule, crops),
        crop=settings["crop"],
        scales=(settings["smallest_scale"], fcclip.SCALES[1]),
        learning_rate=settings["learning_rate"],
        tower_scale=settings["tower_scale"],
        batches=cast(Batches, batches),
        autocast=autocast,
        seed=seed,
        save_every=save_every,
        deadline=deadline,
    )
    if not complete:
        return False
    after = _name_all(model, sets.asked, where, frozen=text is None)
    report, numbers = _report(sets.asked, before, after, out)
    save_model_folder(
        out / "model",
        System(None, GivenMasks(), model.embedder, model.scorer, RegionOnly()),
        model.text_encoder(),
        builder="maskclip_pp_given",
        arguments=model.arguments,
        templates=list(model.templates),
        mix_templates=False,
        canvas=model.canvas,
        outputs=model.outputs,
        training_phrases=list(dict.fromkeys((*model.training_phrases, *sets.trained.phrases))),
        card={
            "title": f"MaskCLIP++ on {data.resolve().stem}",
            "started_from": model.name,
            "settings": settings,
            "mask_accuracy": numbers,
        },
    )
    (out / "report.json").write_text(json.dumps({"settings": settings, **numbers}, indent=1) + "\n", encoding="utf-8")
    (out / "report.md").write_text(report, encoding="utf-8")
    return report


@dataclass(frozen=True)
class _Sets:
    """What is trained on, and what is measured."""

    photos: MaskPhotos
    trained: Vocabulary
    asked: list[Asked]


def _sets(
    data: Path,
    val: Path | None,
    hold_out: str,
    unseen: Path | None,
    folders: tuple[Path | None, Path | None],
    out: Path,
) -> _Sets:
    """Opens and looks through everything; raises `DataProblems` with all that is wrong."""
    own = open_mask_data(data, *folders)
    ids, val_ids, val_data = own.splits["train"], own.splits.get("val") or own.splits.get("test"), own
    if val is not None:
        val_data = open_mask_data(val, folders[0])
        val_ids = val_data.splits.get("val") or val_data.splits["train"]
        if val_data.vocabulary.names != own.vocabulary.names:
            raise DataProblems([f"{val}: its classes differ from those of {data}; give both the same list"])
    elif not val_ids:
        ids, val_ids = split_off(ids)
    held_out = _held_out(hold_out, own.vocabulary)
    other = None if unseen is None else open_mask_data(unseen)
    other_ids = [] if other is None else other.splits.get("test") or other.splits.get("val") or other.splits["train"]

    problems: list[str] = []
    looked: dict[str, LookedThrough] = {}
    for part, part_data, part_ids in (("train", own, ids), ("val", val_data, val_ids), ("unseen", other, other_ids)):
        if part_data is not None:
            try:
                looked[part] = look_through(part_data, part_ids, out / f"looked.{part}.json", _bar(f"checking {part}"))
            except DataProblems as error:
                problems += error.lines
    if problems:
        raise DataProblems(problems)
    refuse_overlap(looked["train"], looked["val"])
    if val_data is own and (both := sorted(set(ids) & set(val_ids))):
        raise DataProblems([f"{data}: {id!r} is a photo of both splits; keep it in one of them" for id in both])

    shown = {index for classes in looked["train"].classes.values() for index in classes} - held_out
    kept = sorted(shown)
    if not kept:
        raise DataProblems([f"{data}: no class is left to train on; hold out fewer"])
    trained = Vocabulary(tuple(own.vocabulary.classes[index] for index in kept))
    with_masks = [id for id in ids if shown & set(looked["train"].classes[id])]
    seen = torch.tensor([index in shown for index in range(len(own.vocabulary))])
    of_val = {index for classes in looked["val"].classes.values() for index in classes}
    others = [own.vocabulary.names[index] for index in sorted(of_val - shown)]
    asked = [
        Asked(
            "val",
            MaskPhotos(val_data, val_ids),
            own.vocabulary,
            {"seen classes": seen, f"unseen classes{_named(others)}": ~seen},
        )
    ]
    if other is not None:
        known = torch.tensor(other.vocabulary.seen(trained.phrases))
        groups = {f"{other.name}, unseen classes": ~known, f"{other.name}, seen classes": known}
        asked.append(Asked("unseen", MaskPhotos(other, other_ids), other.vocabulary, groups))
    foreign = _foreign(own.vocabulary)
    no_truth = torch.zeros(len(foreign), dtype=torch.bool)
    without_classes = _Unlabelled(MaskPhotos(val_data, val_ids))
    asked.append(Asked("foreign", without_classes, foreign, {"": no_truth}))
    return _Sets(MaskPhotos(own, with_masks, kept), trained, asked)


class _Unlabelled(Sequence[PanopticPhoto]):
    """The same masks, all of one class: for words that are not those of the data."""

    def __init__(self, photos: Sequence[PanopticPhoto]) -> None:
        self.photos = photos

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, number: Any) -> Any:
        photo = self.photos[number]
        return PanopticPhoto(photo.image, photo.ids, dict.fromkeys(photo.classes, 0))


def _held_out(hold_out: str, vocabulary: Vocabulary) -> set[int]:
    owner = {phrase.casefold(): index for index, entry in enumerate(vocabulary.classes) for phrase in entry.phrases}
    chosen = set()
    lines = []
    for name in filter(None, (" ".join(part.split()) for part in hold_out.split(","))):
        if name.casefold() in owner:
            chosen.add(owner[name.casefold()])
            continue
        close = difflib.get_close_matches(name.casefold(), owner, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; the classes are {', '.join(vocabulary.names[:12])}"
        lines.append(f"--hold-out: no class is called {name!r}{hint}")
    if lines:
        raise DataProblems(lines)
    return chosen


def _foreign(vocabulary: Vocabulary) -> Vocabulary:
    """COCO's words without those of `vocabulary`."""
    own = {phrase.casefold() for phrase in vocabulary.phrases}
    names = [line.split(",")[0] for line in FOREIGN_WORDS if own.isdisjoint(word.strip() for word in line.split(","))]
    return Vocabulary.parse(names)


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})" if names else ""


def _rows(model: Untuned, vocabulary: Vocabulary, device: torch.device, frozen: bool) -> Tensor:
    """[A, T, D]. frozen: the words' tower is that of the model, so that words may be remembered."""
    rows = encode_vocabulary(
        vocabulary,
        model.templates,
        model.text_encoder,
        fingerprint=model.fingerprint if frozen else None,
        cache=cache_folder(),
        mix_templates=False,
    )
    return rows.to(device)


def _name_all(model: Untuned, asked: Sequence[Asked], device: torch.device, frozen: bool) -> dict[str, Named]:
    found = {}
    for question in asked:
        rows, vocabulary = _rows(model, question.vocabulary, device, frozen), question.vocabulary
        text = TextBank(
            rows,
            rows,
            torch.tensor(vocabulary.class_of, device=device),
            torch.ones(len(vocabulary), dtype=torch.bool, device=device),
        )
        found[question.name] = name_masks(
            model.embedder, model.scorer, text, model.canvas, question.photos, f"naming masks of {question.name}"
        )
    return found


def _measured(path: Path, measure: Callable[[], dict[str, Named]]) -> dict[str, Named]:
    """What was measured when the run began; a run that goes on reads it."""
    if not path.is_file():
        content = {name: named.to_dict() for name, named in measure().items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
    return {name: Named.from_dict(own) for name, own in json.loads(path.read_text(encoding="utf-8")).items()}


def _report(
    asked: Sequence[Asked], before: dict[str, Named], after: dict[str, Named], out: Path
) -> tuple[str, dict[str, Any]]:
    """The table, and the same for a JSON file."""
    changes = {
        title: change_of(before[question.name], after[question.name], classes)
        for question in asked
        for title, classes in question.groups.items()
        if title
    }
    remarks = []
    if not any(change.masks for title, change in changes.items() if "unseen" in title):
        remarks.append(
            "No unseen class could be measured: name some with --hold-out, or give a second set as --unseen."
        )
    foreign = asked[-1]
    same = agreement(before[foreign.name], after[foreign.name])
    remarks.append(
        f"{100 * same:.0f} % of the validation masks are called the same as before among {len(foreign.vocabulary)} "
        "other words (COCO's): how much of the open vocabulary has stayed where it was."
    )
    remarks.append(
        f"Use it: lexiseg segment PHOTO --masks FILE --model {out / 'model'}; behind a generator of masks: "
        f"lexiseg compose --proposals MODEL --regions {out / 'model'} --out FOLDER"
    )
    numbers = {
        "mask_accuracy_percent": {title: change.to_dict() for title, change in changes.items()},
        "called_the_same_among_other_words_percent": round(100 * same, 3),
    }
    return table(changes, remarks), numbers


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """A run goes on with the settings it began with."""
    different = differing_settings(path, settings)
    if different:
        raise ValueError(
            f"{path.parent}: a run with another {' and another '.join(different)} began there; choose another "
            "--out, or delete the folder"
        )


def _usual_steps(photos: int, batch: int) -> int:
    return min(TOTAL_STEPS, max(100, math.ceil(OWN_PASSES * photos / batch)))


def _bar(what: str) -> Callable[[Sequence[str]], Iterable[str]]:
    return lambda ids: tqdm(ids, desc=what, unit="photo", delay=2)


def _one_of(option: str, word: str, known: Any) -> None:
    choices = known if isinstance(known, tuple) else get_args(known)
    if word not in choices:
        raise ValueError(f"{option} {word}: choose one of {', '.join(choices)}")

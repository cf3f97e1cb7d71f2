"""`lexiseg data mine`: captions and photos to shards of regions with words.

A run is a folder. What decides about its pairs is in `plan.json`, written first: the same command goes on where it
stopped, another one is refused. Photos are divided into shards in their order; a shard is a file that is there whole or
not at all, so that a run killed at any moment neither loses nor repeats a pair, and any number of processes may make
different shards of one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lexiseg.data.captions import CaptionedPhotos, captioned_photos
from lexiseg.data.pairs import Pair, Shard, shard_path, write_shard
from lexiseg.images import ImageError, Photo
from lexiseg.mining.matching import Filters, Matched, Matcher, Words
from lexiseg.mining.nouns import not_shown, noun_finder, words_of
from lexiseg.types import TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import differing_settings
from lexiseg.zoo.cropped import with_crops
from lexiseg.zoo.loading import compose, load
from lexiseg.zoo.model_folder import Model

PLAN = "plan.json"
ENCODED = "words"
"""The folder of the encoded nouns, kept with the run: read from there, they are the same to the last bit."""
WORDS_AT_ONCE = 10_000
SHARD_PHOTOS = 200
PHOTOS_TOGETHER = 8

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Wraps what remains; the number is how much that is."""


class MiningError(ValueError):
    """A run that cannot begin or go on. The message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What decides about the pairs of a run, beside the captions and the photos."""

    model: str = "street-tiny"
    """Who draws the masks and compares them with words: a name, a folder, or organisation/name."""
    regions: str | None = None
    """A model or CLIP to compare with words, in the place of that of `model`. `model` may then be any generator, also
    one of transformers."""
    pooled: bool = False
    """Regions are read as their model does, not from crops."""
    crop_side: int | None = None
    """Of a ConvNet: pixels of the crops."""
    captions: int = 1
    """So many captions of a photo are read."""
    words: str | None = None
    """A list of nouns, or a file with one, in the place of the tagger."""
    keep_all_nouns: bool = False
    """Also those that name no region of a photo."""
    min_photos: int = 1
    """A word must occur in the captions of so many photos."""
    filters: Filters = field(default_factory=Filters)
    shard_photos: int = SHARD_PHOTOS


def miner_model(settings: Settings, device: str | torch.device = "cpu") -> Model:
    """Masks by the one, words by the other, read from crops unless they are pooled."""
    if settings.regions is None:
        model = load(_path(settings.model), device)
    else:
        model = compose(_path(settings.model), _path(settings.regions), device)
    return model if settings.pooled else with_crops(model, settings.crop_side)


@dataclass(frozen=True)
class Source:
    """Where captions and photos are."""

    captions: str
    images: str | None = None
    split: str | None = None

    def open(self) -> CaptionedPhotos:
        return captioned_photos(self.captions, self.images, self.split)


@dataclass(frozen=True)
class Task:
    """A photo that has nouns, or none that are wanted."""

    id: str
    nouns: dict[str, int]
    """Noun -> which caption has it first."""
    dropped: dict[str, int]
    """Reason -> nouns that are not looked for."""


@dataclass(frozen=True)
class Run:
    """A run of the data engine: its folder, and the work divided into shards."""

    folder: Path
    source: Source
    settings: Settings
    shards: tuple[tuple[Task, ...], ...]

    @classmethod
    def start(cls, folder: str | Path, source: Source, settings: Settings) -> Run:
        """Begins in `folder` or goes on there. Finds the nouns; loads no model."""
        folder, photos = Path(folder), source.open()
        find = noun_finder(settings.words)
        tasks = tasks_of(photos, settings)
        if not any(task.nouns for task in tasks):
            raise MiningError(f"{source.captions}: no caption has a noun that could be looked for")
        folder.mkdir(parents=True, exist_ok=True)
        size = settings.shard_photos
        shards = tuple(tuple(tasks[start : start + size]) for start in range(0, len(tasks), size))
        asked = json.dumps([asdict(task) for task in tasks])
        plan = {
            "captions": photos.name,
            "photos": len(tasks),
            "nouns": find.about,
            "looked_for": hashlib.sha256(asked.encode()).hexdigest(),
            "settings": asdict(settings),
        }
        _agree(folder / PLAN, plan)
        return cls(folder, source, settings, shards)

    @property
    def missing(self) -> tuple[int, ...]:
        """The shards that are not there yet."""
        return tuple(number for number in range(len(self.shards)) if not shard_path(self.folder, number).exists())

    @property
    def nouns(self) -> tuple[str, ...]:
        """All that are looked for, sorted."""
        return tuple(sorted({noun for shard in self.shards for task in shard for noun in task.nouns}))


class Miner:
    """Makes shards of a run: what one process does."""

    def __init__(self, run: Run, device: str | torch.device = "cpu", together: int = PHOTOS_TOGETHER) -> None:
        """together: photos whose crops share batches; it changes no pair."""
        self.run, self.together = run, together
        self.photos = run.source.open()
        model = miner_model(run.settings, device)
        words = Words(run.nouns, encoded(model, run.nouns, run.folder / ENCODED))
        self.matcher = Matcher(model, words, run.settings.filters, device)

    def mine(self, number: int) -> int:
        """Writes a shard; how many pairs it has."""
        shard = self.shard(self.run.shards[number])
        write_shard(shard_path(self.run.folder, number), shard)
        return len(shard.pairs)

    def shard(self, tasks: Sequence[Task]) -> Shard:
        """The pairs of these photos. A photo that cannot be read is reported, and the rest goes on."""
        left_out: Counter[str] = Counter()
        failures: dict[str, str] = {}
        pairs: list[Pair] = []
        regions: dict[str, Any] = {}
        names: dict[str, str] = {}
        for task, matched in self.matched(tasks, failures):
            left_out.update(task.dropped)
            left_out.update(matched.left_out)
            for pair in matched.pairs:  # ids may be paths: members are numbered
                name = names.setdefault(pair.region, f"regions/{len(names):06}.png")
                regions[name] = matched.regions[pair.region]
                pairs.append(Pair(name, pair.word, pair.photo, pair.caption, pair.similarity, pair.area))
        unread = sum(len(task.nouns) + sum(task.dropped.values()) for task in tasks if task.id in failures)
        if unread:
            left_out["photo cannot be read"] = unread
        report = {
            "photos": [task.id for task in tasks],
            "nouns": sum(len(task.nouns) + sum(task.dropped.values()) for task in tasks),
            "left_out": dict(sorted(left_out.items())),
            "failures": failures,
        }
        return Shard(tuple(pairs), regions, report)

    def matched(self, tasks: Sequence[Task], failures: dict[str, str]) -> Iterator[tuple[Task, Matched]]:
        waiting: list[tuple[Task, Photo]] = []
        for number, task in enumerate(tasks, start=1):
            if task.nouns:
                try:
                    waiting.append((task, Photo(self.photos.rgb(task.id), task.id)))
                except ImageError as error:
                    failures[task.id] = error.problem
            else:
                yield task, Matched((), {}, Counter())
            if len(waiting) == self.together or (waiting and number == len(tasks)):
                found = self.matcher([(task.id, photo, task.nouns) for task, photo in waiting])
                yield from zip((task for task, _ in waiting), found, strict=True)
                waiting = []


def mine(
    folder: str | Path,
    source: Source,
    settings: Settings | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Run:
    """Makes what is missing of a run, alone. The same call goes on where an earlier one was stopped."""
    run = Run.start(folder, source, settings or Settings())
    missing = run.missing
    if missing:
        miner = Miner(run, device)
        for number in (progress or (lambda numbers, total: numbers))(missing, len(missing)):
            miner.mine(number)
    return run


def tasks_of(photos: CaptionedPhotos, settings: Settings) -> list[Task]:
    """What to look for in every photo."""
    find = noun_finder(settings.words)
    found = {id: words_of(texts, settings.captions, find) for id, texts in photos.captions.items()}
    counts = Counter(word for words in found.values() for word in words)
    no_region = frozenset() if settings.keep_all_nouns or settings.words else not_shown()
    tasks = []
    for id, words in found.items():
        dropped = Counter[str]()
        nouns = {}
        for word, caption in words.items():
            if word in no_region:
                dropped["word names no region"] += 1
            elif counts[word] < settings.min_photos:
                dropped["word too rare"] += 1
            else:
                nouns[word] = caption
        tasks.append(Task(id, nouns, dict(dropped)))
    return tasks


def encoded(model: Model, words: Sequence[str], cache: Path) -> TextBank:
    """The words as the model reads them, each a class of its own; a vocabulary has a limit, a run has none."""
    parts = [
        model.text_bank(Vocabulary.parse(list(words[start : start + WORDS_AT_ONCE])), cache)
        for start in range(0, len(words), WORDS_AT_ONCE)
    ]
    query, region = (torch.cat([getattr(part, name) for part in parts]) for name in ("query", "region"))
    none = torch.zeros(len(words), dtype=torch.bool)
    return TextBank(query, region, torch.arange(len(words)), none, parts[0].own_class)


def _agree(path: Path, plan: dict[str, Any]) -> None:
    """Writes the plan of a new run; that of an old one must be the same."""
    before = differing_settings(path, plan)
    differing = [name for name in before if name != "settings"]
    if "settings" in before:
        mine, other = json.loads(json.dumps(plan["settings"])), before["settings"] or {}
        differing += sorted(f"settings.{name}" for name in mine if mine[name] != other.get(name))
    if differing:
        raise MiningError(
            f"{path.parent}: holds pairs made otherwise ({', '.join(differing)} differ); take another folder, or "
            "give the same options again"
        )


def _path(name: str) -> str | Path:
    """A folder is meant where there is one."""
    return Path(name) if Path(name).is_dir() else name

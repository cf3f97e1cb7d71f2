"""Running an evaluation: in one process, in several, in one go or with interruptions.

Photos are shared out by their place: process r of n takes every n-th, beginning with the r-th. Each writes its own file
of records and leaves out what any file already holds. Processes need not talk to each other: the first one waits until
the records are complete. That is all that `accelerate launch` and `torchrun` need, which tell rank and number by
environment variables.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lexiseg
from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation.candidates import Candidate, candidate_of
from lexiseg.evaluation.looking import GivenMasks, Look, known_measures, look_at
from lexiseg.evaluation.outcome import Evaluation, evaluation_of, file_stem
from lexiseg.evaluation.records import PhotoRecord, RecordFolder
from lexiseg.segmenter import Segmenter, Words, pick_device
from lexiseg.vocabulary import Vocabulary, VocabularyClass
from lexiseg.weights.files import differing_settings

SPLITS_IN_ORDER = ("test", "val", "validation")
"""What is measured where nothing is said: the first of these that the data has."""

PATIENCE_S = 3600.0
"""How long the first process waits for a record of the others before it gives up."""


class EvaluationError(ValueError):
    """An evaluation that cannot be made or continued. The message says what to do."""


@dataclass(frozen=True)
class Plan:
    """What is measured on a package."""

    split: str
    ids: tuple[str, ...]
    photos_in_split: int
    look: Look

    @classmethod
    def of(
        cls,
        data: LabelledPhotos,
        *,
        split: str | None = None,
        words: Words | None = None,
        limit: int | None = None,
        measures: Sequence[str] | None = None,
        given_masks: GivenMasks | None = None,
    ) -> Plan:
        """words: other names for the classes of the data, as many and in the same order, in any form a Vocabulary is
        read from; by default its own. limit: so many photos, evenly spread over the split. measures: of
        `looking.MEASURES`; by default all that the data offers. given_masks: mask accuracy instead of them.
        """
        split = split or _default_split(data)
        ids = data.ids(split)
        if given_masks is not None and measures is not None and tuple(measures) != ("masks",):
            raise EvaluationError("with given masks nothing but mask accuracy is measured")
        if given_masks == "regions" and not data.region_classes:
            raise EvaluationError(f"{data.name} has no regions; give the masks of its classes")
        chosen = ("masks",) if given_masks is not None else known_measures(data, measures)
        plan = cls(
            split=split,
            ids=tuple(_spread(ids, limit)),
            photos_in_split=len(ids),
            look=Look(
                vocabulary=_vocabulary(data, words),
                word_class=torch.tensor([*_word_classes(data, words), -1]),
                measures=chosen,
                given_masks=given_masks or ("classes" if chosen == ("masks",) else None),
            ),
        )
        if not plan.ids:
            raise EvaluationError(f"{data.name}: nothing to measure, split {split!r} holds no photos")
        return plan


@dataclass(frozen=True)
class Share:
    """The part of one process."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """As `accelerate launch` and `torchrun` tell it."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    def of(self, ids: Sequence[str]) -> Sequence[str]:
        return ids[self.rank :: self.processes]


def evaluate(
    candidate: Candidate,
    data: LabelledPhotos,
    plan: Plan | None = None,
    *,
    out: Path | str | None = None,
    share: Share | None = None,
    progress: bool = True,
) -> Evaluation | None:
    """Measures `candidate` on `data`; None in a process that is not the first.

    out: a folder. The records are kept in a folder of it, and the same call goes on where it was stopped; without one
    they are forgotten.
    """
    plan, share = plan or Plan.of(data), share or Share()
    with ExitStack() as stack:
        if out is None:
            if share.processes > 1:
                raise EvaluationError("several processes need a folder in which they find each other's records (--out)")
            out = stack.enter_context(tempfile.TemporaryDirectory())
        with _bar(len(plan.ids), f"{candidate.name} on {data.name}", progress and share.rank == 0) as bar:
            # Of other processes nothing is heard here; they are about as far.
            folder = record(
                candidate, data, plan, out, share, lambda more: _move_to(bar, bar.n + more * share.processes)
            )
        if share.rank > 0:
            return None
        return evaluation_of(_all_records(folder, plan), data, plan, candidate)


def record(
    candidate: Candidate,
    data: LabelledPhotos,
    plan: Plan,
    out: Path | str,
    share: Share | None = None,
    done: Callable[[int], None] | None = None,
) -> RecordFolder:
    """The first half of `evaluate`: looks at the photos of a share that nobody has looked at; no numbers yet.

    done: told how many photos have a record now, of this share and, once, of all of an earlier run.
    """
    share, folder = share or Share(), record_folder(out, candidate.name, data, plan)
    _same_run(folder.path, _settings(candidate, data, plan), candidate.name)
    recorded = folder.read(plan.ids)
    if done is not None and share.rank == 0:
        done(len(recorded))
    first = True
    with folder.writer(share.rank) as writer:
        for id in share.of(plan.ids):
            if id not in recorded:
                writer.add(look_at(candidate, data, id, plan.look, first))
                first = False
                if done is not None:
                    done(1)
    return folder


def evaluate_model(
    model: str | Path | Segmenter,
    data: str | Path | LabelledPhotos,
    *,
    split: str | None = None,
    words: Words | None = None,
    limit: int | None = None,
    measures: Sequence[str] | None = None,
    given_masks: GivenMasks | None = None,
    out: Path | str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """`evaluate` for a model by its name or folder, on a package by its path, in this process."""
    photos = data if isinstance(data, LabelledPhotos) else LabelledPhotos(data)
    plan = Plan.of(photos, split=split, words=words, limit=limit, measures=measures, given_masks=given_masks)
    segmenter = model if isinstance(model, Segmenter) else Segmenter.from_pretrained(model, device)
    outcome = evaluate(candidate_of(segmenter), photos, plan, out=out, progress=progress)
    assert outcome is not None  # this is the first process
    return outcome


def evaluate_with_workers(
    model: str | Path,
    data: str | Path,
    plan: Plan,
    *,
    workers: int,
    out: Path | str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """`evaluate` in several processes on this machine, each with a model of its own.

    The threads of the processor are shared among them, several GPUs in turn.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if out is None else Path(out)
        photos, threads = LabelledPhotos(data), max(1, torch.get_num_threads() // workers)
        processes = multiprocessing.get_context("spawn")
        counter = processes.Value("i", 0)
        pool = stack.enter_context(ProcessPoolExecutor(workers, processes, initializer=_count_in, initargs=(counter,)))
        bar = stack.enter_context(_bar(len(plan.ids), f"{model} on {photos.name}", progress))
        jobs = [_Job(model, data, plan, folder, device, Share(rank, workers), threads) for rank in range(workers)]
        futures = [pool.submit(_work, job) for job in jobs]
        while not all(future.done() for future in futures):
            time.sleep(0.2)
            _move_to(bar, counter.value)
        try:
            candidates = [future.result() for future in futures]
        except BrokenProcessPool:
            raise EvaluationError(
                "a worker was ended from outside, mostly for want of memory; the same call with fewer workers goes on"
            ) from None
        records = _all_records(record_folder(folder, candidates[0].name, photos, plan), plan)
        return evaluation_of(records, photos, plan, candidates[0])


def record_folder(out: Path | str, model: str, data: LabelledPhotos, plan: Plan) -> RecordFolder:
    """Where the records of one model on one package are kept."""
    stem = file_stem(model, data.name, plan.split, given_masks=plan.look.given_masks is not None)
    return RecordFolder(Path(out) / f"{stem}.records")


@dataclass(frozen=True)
class _Job:
    """What a worker is told."""

    model: str | Path
    data: str | Path
    plan: Plan
    out: str | Path
    device: str
    share: Share
    threads: int


def _work(job: _Job) -> Candidate:
    """Writes the records of one worker. What it returns says who was measured."""
    torch.set_num_threads(job.threads)
    segmenter = Segmenter.from_pretrained(job.model, own_device(job.device, job.share))
    candidate, data = candidate_of(segmenter), LabelledPhotos(job.data)
    record(candidate, data, job.plan, job.out, job.share, _count)
    return replace(candidate, predict=_nothing, classify_masks=None)  # what has a model in it stays here


_counted: Any = None
"""In a worker: the counter that all workers share."""


def _count_in(counter: Any) -> None:
    global _counted
    _counted = counter


def _count(more: int) -> None:
    with _counted.get_lock():
        _counted.value += more


def _nothing(*_: Any) -> Any:
    raise AssertionError("the records are complete: nobody looks at photos any more")


def own_device(device: str, share: Share) -> str:
    """Processes take the GPUs in turn, where which one was left open."""
    chosen = pick_device(device)
    if chosen.type == "cuda" and chosen.index is None and share.processes > 1:
        return f"cuda:{share.rank % torch.cuda.device_count()}"
    return str(chosen)


def _all_records(folder: RecordFolder, plan: Plan) -> list[PhotoRecord]:
    """Waits for the records of other processes."""
    count, since = -1, time.monotonic()
    while True:
        now = folder.count()
        if now != count:
            count, since = now, time.monotonic()
            records = folder.read(plan.ids)
            if len(records) == len(plan.ids):
                return list(records.values())
        if time.monotonic() - since > PATIENCE_S:
            raise EvaluationError(
                f"{folder.path}: {len(records)} of {len(plan.ids)} photos, and no news for an hour: a process has "
                "died; the same call goes on"
            )
        time.sleep(0.2)


def _same_run(folder: Path, settings: dict[str, Any], model: str) -> None:
    """Records of one folder are of one model with one set of settings."""
    different = differing_settings(folder / "run.json", settings)
    if different:
        raise EvaluationError(
            f"{folder}: holds the records of {model} with another {' and another '.join(different)}; delete it, or "
            "choose another folder"
        )


def _settings(candidate: Candidate, data: LabelledPhotos, plan: Plan) -> dict[str, Any]:
    """All that decides about a record."""
    words = json.dumps([[list(entry.phrases), entry.is_thing] for entry in plan.look.vocabulary.classes])
    return {
        "model": candidate.name,
        "weights": candidate.fingerprint,
        "data": data.name,
        "description of the data": hashlib.sha256(data.read("dataset.json")).hexdigest(),
        "split": plan.split,
        "words": hashlib.sha256(words.encode()).hexdigest(),
        "measures": list(plan.look.measures),
        "kind of given masks": plan.look.given_masks,
        "version of lexiseg": lexiseg.__version__,
    }


def _bar(total: int, what: str, shown: bool) -> tqdm[Any]:
    """With the time that is left."""
    return tqdm(total=total, desc=what, unit="photo", disable=not shown)


def _move_to(bar: tqdm[Any], place: float) -> None:
    more = min(place, bar.total or 0) - bar.n
    if more > 0:  # else the bar would be drawn again, a line of a log each time
        bar.update(more)


def _default_split(data: LabelledPhotos) -> str:
    for split in SPLITS_IN_ORDER:
        if split in data.splits:
            return split
    if len(data.splits) == 1:
        return next(iter(data.splits))
    raise EvaluationError(f"{data.name} has no test split; choose one of {', '.join(data.splits)}")


def _spread(ids: Sequence[str], limit: int | None) -> list[str]:
    """`limit` of the ids at even distances: neighbours are often frames of one film."""
    if limit is not None and limit < 1:
        raise EvaluationError(f"a limit of {limit} photos leaves nothing to measure")
    if limit is None or limit >= len(ids):
        return list(ids)
    return [ids[position * len(ids) // limit] for position in range(limit)]


def _vocabulary(data: LabelledPhotos, words: Words | None) -> Vocabulary:
    """The words in the order of the data's, things and stuff as the data says."""
    if words is None:
        phrases: Sequence[tuple[str, ...]] = data.words
        classes: Sequence[int] = data.word_class
    else:
        vocabulary = Vocabulary.parse(words)
        if vocabulary.background:
            raise EvaluationError("a background class cannot be measured: the labels have none")
        if len(vocabulary) != len(data.classes):
            raise EvaluationError(
                f"{data.name} has {len(data.classes)} classes ({_some(data.classes)}), but {len(vocabulary)} words "
                "were given; give one for each, in the same order"
            )
        phrases = [entry.phrases for entry in vocabulary.classes]
        classes = range(len(data.classes))
    is_thing = data.is_thing or (False,) * len(data.classes)
    return Vocabulary(
        tuple(VocabularyClass(own, is_thing=is_thing[index]) for own, index in zip(phrases, classes, strict=True))
    )


def _word_classes(data: LabelledPhotos, words: Words | None) -> Sequence[int]:
    return data.word_class if words is None else range(len(data.classes))


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[:most])} ..."

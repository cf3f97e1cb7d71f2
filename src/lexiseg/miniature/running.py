"""All of the miniature benchmark in order. Every part goes on where it was stopped; a complete one is passed over.

OUT/material    packages without the hidden classes
OUT/base        words, tower, generator, and the model of both
OUT/shared      what several trainings need: mined pairs, a transformer
OUT/tuned       one folder per system and seed: its training
OUT/systems     one folder per system and seed: the model that is measured, and what was tried for it
OUT/combined    one folder per candidate and seed for lexiseg-mini; OUT/choice.json has the one that was chosen
OUT/answers     one folder per question: records and numbers
OUT/costs.json  seconds and memory of every system
OUT/findings.json, OUT/mini-benchmark.md
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import Candidate, Evaluation, Plan, candidate_of, evaluate, record
from lexiseg.miniature import base, combining, material
from lexiseg.miniature.costs import Cost, costs
from lexiseg.miniature.findings import tabulate
from lexiseg.miniature.questions import QUESTIONS, Question
from lexiseg.miniature.report import report
from lexiseg.miniature.tuning import (
    ENTRANTS,
    MODEL,
    Entrant,
    Start,
    assemble,
    is_assembled,
    measured_folder,
    mined,
    shared_transformer,
    training_folder,
)
from lexiseg.segmenter import Segmenter
from lexiseg.train.lexicon import load_lexicon
from lexiseg.zoo.model_folder import SETTINGS_FILE


@dataclass(frozen=True)
class Extent:
    """How much is done. The usual extent takes about four hours on two cores."""

    tower_steps: int = 4000
    generator_steps: int = 3000
    tuning_share: float = 1.0
    """Of the steps of every tuning."""
    seeds: int = 3
    judged_photos: int = 20
    """Of each package whose validation photos choose."""
    photos: int | None = None
    """Of each question; None is as many as it asks for."""
    processes: int = 2
    """So many work side by side, each with its share of the processor's threads."""


USUAL = Extent()
Work = Callable[[], object]
"""A part of the benchmark, sent to another process: whether it is complete."""


def run(
    data: Path,
    out: Path,
    *,
    extent: Extent = USUAL,
    questions: Sequence[Question] = QUESTIONS,
    deadline: float | None = None,
) -> bool:
    """Run, or go on with, the benchmark on the packages in the folder `data`; whether out/mini-benchmark.md is there.

    deadline: a point in time, as of time.time(), after which nothing new is begun.
    """
    out = out.resolve()  # runs note what they began with: the same folder by another path is the same
    hidden = out / "material"
    material.hide(data, hidden)
    material.join(hidden, load_lexicon())
    if not base.train(
        hidden,
        out / "base",
        tower_steps=extent.tower_steps,
        generator_steps=extent.generator_steps,
        processes=extent.processes,
        deadline=deadline,
    ):
        return False
    starts = [
        Start(hidden, out / "base" / MODEL, out / "shared", seed, extent.tuning_share, deadline)
        for seed in range(extent.seeds)
    ]
    competition = _Competition(data, out, extent, tuple(questions), starts)
    entrants = (*ENTRANTS, combining.LEXISEG_MINI)
    first = [entrant for entrant in ENTRANTS if entrant.after is None]
    made_of_others = [entrant for entrant in ENTRANTS if entrant.after is not None]
    complete = (
        competition.side_by_side([partial(mined, starts[0]), partial(shared_transformer, starts[0])])
        and competition.enter(first)
        and competition.enter(made_of_others)
        and competition.combine()
        and competition.enter([combining.LEXISEG_MINI])
    )
    if complete:
        findings = tabulate(competition.answers(entrants), entrants, questions)
        findings["costs"] = {name: asdict(cost) for name, cost in competition.costs(entrants).items()}
        findings["choice"] = json.loads((out / combining.CHOICE).read_text(encoding="utf-8"))
        (out / "findings.json").write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
        (out / "mini-benchmark.md").write_text(report(findings), encoding="utf-8")
    return complete


@dataclass(frozen=True)
class _Competition:
    data: Path
    out: Path
    extent: Extent
    questions: tuple[Question, ...]
    starts: Sequence[Start]

    def side_by_side(self, parts: Sequence[Work], parts_per_process: int | None = 1) -> bool:
        """Runs parts that do not need each other; whether all are complete.

        parts_per_process: trainings each have a process of their own, in which nothing was before; None is as many as
        there are.
        """
        threads = max(1, torch.get_num_threads() // self.extent.processes)
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self.extent.processes, fresh, torch.set_num_threads, (threads,), max_tasks_per_child=parts_per_process
        ) as pool:
            complete = [bool(done) for done in pool.map(_run, parts)]
        return all(complete)

    def enter(self, entrants: Sequence[Entrant]) -> bool:
        """Trains entrants from every seed, then asks them."""
        parts = [
            (entrant, start) for start in self.starts for entrant in entrants if entrant.trained or start.seed == 0
        ]
        return self.side_by_side(
            [
                partial(made, entrant, start, self.out, self.extent)
                for entrant, start in parts
                if not is_made(entrant, start, self.out)
            ]
        ) and self.side_by_side(
            [
                partial(_answer, entrant, start, self.data, self.out, self.extent, self.questions)
                for entrant, start in parts
            ],
            parts_per_process=None,
        )

    def combine(self) -> bool:
        """The candidates for lexiseg-mini, and the choice among them; see `combining`."""
        photos, seeds = self.extent.judged_photos, self.extent.seeds
        candidates: list[Work] = [
            partial(combining.try_candidate, candidate, start, self.out, photos)
            for start in self.starts
            for candidate in combining.CANDIDATES
            if not candidate.is_tried(start, self.out)
        ]
        if not self.side_by_side(candidates):
            return False
        best = combining.best_candidate(ENTRANTS, self.out, seeds)
        # On the base itself an adapter stands already: the entrant mask-adapter.
        adapters: list[Work] = [
            partial(combining.try_adapter, best, start, self.out, photos)
            for start in (self.starts if best.name != "fcclip" else ())
            if not combining.adapted(best).is_tried(start, self.out)
        ]
        complete = self.side_by_side(adapters)
        if complete:
            combining.choose(best, ENTRANTS, self.out, seeds)
        return complete

    def costs(self, entrants: Sequence[Entrant]) -> dict[str, Cost]:
        """Of the systems, each as the first seed made it."""
        systems = [entrant.name for entrant in entrants if entrant.variant_of is None]
        models = {name: measured_folder(name, self.starts[0].seed, self.out) for name in systems}
        return costs(models, self.data, self.out)

    def answers(self, entrants: Sequence[Entrant]) -> dict[tuple[str, str], list[Evaluation]]:
        """The numbers of every entrant for every question, seed by seed; all photos have been looked at before."""
        found: dict[tuple[str, str], list[Evaluation]] = {}
        for entrant in entrants:
            for start in self.starts if entrant.trained else self.starts[:1]:
                model = measured_folder(entrant.name, start.seed, self.out)
                candidate = candidate_of(Segmenter.from_pretrained(model, "cpu"))
                for question in self.questions:
                    if entrant.answers(question):
                        found.setdefault((entrant.name, question.key), []).append(self.answer(question, candidate))
        return found

    def answer(self, question: Question, candidate: Candidate) -> Evaluation:
        """To one question."""
        photos, plan = asked(question, self.data, self.extent)
        folder = answer_folder(question, self.out)
        answer = evaluate(candidate, photos, plan, out=folder, progress=False)
        assert answer is not None  # this is the first process
        answer.save(folder)
        return answer


def _run(part: Work) -> object:
    return part()


def _answer(
    entrant: Entrant, start: Start, data: Path, out: Path, extent: Extent, questions: Sequence[Question]
) -> bool:
    """Has an entrant of one seed look at the photos of all its questions."""
    candidate = candidate_of(Segmenter.from_pretrained(measured_folder(entrant.name, start.seed, out), "cpu"))
    for question in questions:
        if _late(start.deadline):
            return False
        if entrant.answers(question):
            photos, plan = asked(question, data, extent)
            record(candidate, photos, plan, answer_folder(question, out))
    return True


def is_made(entrant: Entrant, start: Start, out: Path) -> bool:
    """Whether `made` has nothing left to do."""
    return entrant.ready is None and is_assembled(measured_folder(entrant.name, start.seed, out).parent)


def made(entrant: Entrant, start: Start, out: Path, extent: Extent) -> Path | None:
    """The model of an entrant and a seed; None where time has run out before it was complete."""
    if _late(start.deadline):
        return None
    if entrant.ready is not None:
        return entrant.ready(start, out)
    tuned = training_folder(entrant.name, start.seed, out)
    if entrant.tune is None:
        classifier = start.base
    else:
        classifier = tuned / MODEL
        if not (classifier / SETTINGS_FILE).is_file() and not entrant.tune(start, tuned):
            return None
    # Variants name true masks alone, for which the weight does not matter.
    measured = measured_folder(entrant.name, start.seed, out)
    return assemble(start, classifier, measured.parent, 0 if entrant.variant_of else extent.judged_photos)


def asked(question: Question, data: Path, extent: Extent) -> tuple[LabelledPhotos, Plan]:
    """What a question is asked of."""
    photos = material.open_package(data, question.package)
    return photos, Plan.of(
        photos,
        split=question.split,
        words=list(question.words) or None,
        limit=extent.photos or question.photos,
        measures=None if question.given_masks else question.measures,
        given_masks=question.given_masks,
    )


def answer_folder(question: Question, out: Path) -> Path:
    """Of the records and numbers of all entrants."""
    return out / "answers" / question.key


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.time() > deadline

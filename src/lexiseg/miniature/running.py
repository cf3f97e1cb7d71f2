"""All of the miniature benchmark in order. Every part goes on where it was stopped; a complete one is passed over.

OUT/material    packages without the hidden classes
OUT/base        words, tower, generator, and the model of both
OUT/tuned       one folder per system and seed: its training
OUT/systems     one folder per system and seed: the model that is measured, and what was tried for it
OUT/answers     one folder per question: records and numbers
OUT/findings.json, OUT/mini-benchmark.md
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lexiseg.evaluation import Evaluation, Plan, candidate_of, evaluate, evaluate_with_workers
from lexiseg.evaluation.running import record_folder
from lexiseg.miniature import base, material
from lexiseg.miniature.findings import tabulate
from lexiseg.miniature.questions import QUESTIONS, Question
from lexiseg.miniature.report import report
from lexiseg.miniature.tuning import ENTRANTS, MODEL, Entrant, Start, assemble
from lexiseg.segmenter import Segmenter
from lexiseg.train.lexicon import load_lexicon
from lexiseg.zoo.model_folder import SETTINGS_FILE


@dataclass(frozen=True)
class Extent:
    """How much is done. The usual extent takes about seven hours on two cores."""

    tower_steps: int = 4000
    generator_steps: int = 3000
    tuning_share: float = 1.0
    """Of the steps of every tuning."""
    seeds: int = 3
    judged_photos: int = 40
    """Of each package whose validation photos choose."""
    photos: int | None = None
    """Of each question; None is all."""
    processes: int = 2


USUAL = Extent()


def run(
    data: Path,
    out: Path,
    *,
    extent: Extent = USUAL,
    entrants: Sequence[Entrant] = ENTRANTS,
    questions: Sequence[Question] = QUESTIONS,
    deadline: float | None = None,
) -> bool:
    """Run, or go on with, the benchmark on the packages in the folder `data`; whether out/mini-benchmark.md is there.

    deadline: a point in time, as of time.time(), after which nothing new is begun.
    """
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
    systems: dict[str, list[Path]] = {entrant.name: [] for entrant in entrants}
    for seed in range(extent.seeds):
        start = Start(hidden, out / "base" / MODEL, out / "shared", seed, extent.tuning_share, deadline)
        for entrant in entrants:
            if seed > 0 and not entrant.trained:
                continue
            folder = None if _late(deadline) else made(entrant, start, out, extent)
            if folder is None:
                return False
            systems[entrant.name].append(folder)
    answers: dict[tuple[str, str], list[Evaluation]] = {}
    for question in questions:
        for entrant in entrants:
            for folder in systems[entrant.name] if entrant.answers(question) else []:
                if _late(deadline):
                    return False
                answer = ask(question, folder, data, out / "answers" / question.key, extent)
                answers.setdefault((entrant.name, question.key), []).append(answer)
    findings = tabulate(answers, entrants, questions)
    (out / "findings.json").write_text(json.dumps(findings, indent=1) + "\n", encoding="utf-8")
    (out / "mini-benchmark.md").write_text(report(findings), encoding="utf-8")
    return True


def made(entrant: Entrant, start: Start, out: Path, extent: Extent) -> Path | None:
    """The model of an entrant and a seed; None where time has run out before it was complete."""
    name = f"{entrant.name}-{start.seed}"
    tuned = out / "tuned" / name
    if entrant.tune is None:
        classifier = start.base
    else:
        classifier = tuned / MODEL
        if not (classifier / SETTINGS_FILE).is_file() and not entrant.tune(start, tuned):
            return None
    return assemble(start, classifier, out / "systems" / name, extent.judged_photos)


def ask(question: Question, model: Path, data: Path, out: Path, extent: Extent) -> Evaluation:
    """The records are made by several processes; the numbers are computed here."""
    photos = material.open_package(data, question.package)
    plan = Plan.of(
        photos,
        split=question.split,
        words=list(question.words) or None,
        limit=extent.photos,
        measures=None if question.given_masks else question.measures,
        given_masks=question.given_masks,
    )
    if record_folder(out, model.name, photos, plan).count() < len(plan.ids):
        evaluate_with_workers(model, photos.path, plan, workers=extent.processes, out=out, device="cpu")
    answer = evaluate(candidate_of(Segmenter.from_pretrained(model, "cpu")), photos, plan, out=out, progress=False)
    assert answer is not None  # this is the first process
    answer.save(out)
    return answer


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.time() > deadline

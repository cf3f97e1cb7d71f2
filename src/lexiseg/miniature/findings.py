"""Numbers of the miniature benchmark: means over seeds, intervals over photos, paired differences.

`tabulate` makes a plain table of them, for a JSON file. Photos are drawn anew alike for all systems and seeds
(`metrics.bootstrap`), so that a difference has an interval of its own. An interval is over photos; how far the seeds
lie apart is told beside it.

S seeds, N photos, K classes, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from lexiseg.evaluation import Evaluation
from lexiseg.evaluation.outcome import Interval, picture_counts
from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.semantic import resampled_mean_accuracy, resampled_mean_iou
from lexiseg.miniature.claims import CLAIMS
from lexiseg.miniature.questions import GROUPS, SEEN, UNSEEN, Question
from lexiseg.miniature.tuning import Entrant

Answers = Mapping[tuple[str, str], Sequence[Evaluation]]
"""(entrant, question) -> an evaluation per seed."""


@dataclass(frozen=True)
class Finding:
    """A number, as a fraction: the mean over seeds."""

    value: float
    interval: Interval
    of_seeds: tuple[float, ...]

    @property
    def counts(self) -> bool:
        """Of a difference: chance alone hardly makes it."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class Sample:
    """One number of one system, drawn anew."""

    values: Tensor
    """[S], from all photos."""
    resampled: Tensor
    """[S, R]."""

    def finding(self) -> Finding:
        return Finding(
            float(self.values.mean()), interval(self.resampled.mean(0)), tuple(float(value) for value in self.values)
        )

    def less(self, other: Sample) -> Finding:
        """The difference of the means over seeds; `other` may have fewer seeds."""
        value = float(self.values.mean() - other.values.mean())
        drawn = self.resampled.mean(0) - other.resampled.mean(0)
        return Finding(value, interval(drawn), ())


def sample(evaluations: Sequence[Evaluation], classes: Sequence[str]) -> Sample:
    """The mean IoU, or with given masks the mean accuracy, over `classes`.

    evaluations: one per seed, of the same photos.
    """
    names = [entry.name for entry in evaluations[0].classes]
    chosen = [names.index(name) for name in classes]
    kind: Literal["pixels", "masks"] = "pixels" if evaluations[0].masks is None else "masks"
    photos = len(evaluations[0].records)
    times = torch.cat((torch.ones(1, photos, dtype=torch.float64), drawn_times(photos)))  # first: all photos once
    drawn = []
    for evaluation in evaluations:
        pictures = picture_counts(evaluation.records, kind, len(names))[..., chosen]
        if kind == "pixels":
            drawn.append(resampled_mean_iou(pictures, "gt", times))
        else:
            drawn.append(resampled_mean_accuracy(pictures, times))
    both = torch.stack(drawn)
    return Sample(both[:, 0], both[:, 1:])


def harmonic(first: Sample, second: Sample) -> Sample:
    """hIoU, of every seed and every resample."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a + b > 0, 2 * a * b / (a + b), 0.0)

    return Sample(mean(first.values, second.values), mean(first.resampled, second.resampled))


def groups_of(question: Question, answer: Evaluation) -> dict[str, list[str]]:
    """Group -> its classes; "all" but those that are left out, and of hidden classes also those that were "seen"."""
    every = [entry.name for entry in answer.classes if entry.name not in question.left_out]
    groups = {"all": every}
    for name, classes in GROUPS.get(question.key.removesuffix("-masks").removesuffix("-syn"), {}).items():
        groups[name] = list(classes)
    if UNSEEN in groups:
        groups[SEEN] = [name for name in every if name not in groups[UNSEEN]]
    return groups


def samples(question: Question, answers: Sequence[Evaluation]) -> dict[str, Sample]:
    """Group -> its number; with a harmonic mean of the seen and the unseen where both are known."""
    found = {group: sample(answers, classes) for group, classes in groups_of(question, answers[0]).items()}
    for first, second in ((SEEN, UNSEEN), ("trained", "rarely trained")):
        if first in found and second in found:
            found["harmonic"] = harmonic(found[first], found[second])
    return found


def tabulate(answers: Answers, entrants: Sequence[Entrant], questions: Sequence[Question]) -> dict[str, Any]:
    """Everything that the report tells, in percent: each entrant, its difference from the first, the claims, and how
    much better than each system the last entrant is."""
    drawn = {
        (entrant.name, question.key): samples(question, answers[entrant.name, question.key])
        for entrant in entrants
        for question in questions
        if entrant.answers(question)
    }
    first = next(iter(answers.values()))[0]
    return {
        "machine": first.machine,
        "versions": dict(first.versions),
        "questions": [
            {"key": question.key, "title": question.title, "package": question.package, "split": question.split}
            | {"photos": answers[entrants[0].name, question.key][0].photos, "given_masks": question.given_masks}
            for question in questions
        ],
        "entrants": [
            {
                "name": entrant.name,
                "title": entrant.title,
                "variant_of": entrant.variant_of,
                "answers": {
                    question.key: {
                        "groups": {
                            group: told(one.finding())
                            | {"less_first": told(one.less(drawn[entrants[0].name, question.key][group]))}
                            for group, one in drawn[entrant.name, question.key].items()
                        },
                        **measured_beside(answers[entrant.name, question.key]),
                    }
                    for question in questions
                    if entrant.answers(question)
                },
            }
            for entrant in entrants
        ],
        "claims": [
            {
                "text": claim.text,
                "source": claim.source,
                "better": claim.better,
                "worse": claim.worse,
                "question": claim.question,
                "group": claim.group,
                "difference": told(
                    drawn[claim.better, claim.question][claim.group].less(
                        drawn[claim.worse, claim.question][claim.group]
                    )
                ),
            }
            for claim in CLAIMS
            if (claim.better, claim.question) in drawn and (claim.worse, claim.question) in drawn
        ],
        "last_less_others": {
            entrant.name: {
                question.key: {
                    group: told(one.less(drawn[entrant.name, question.key][group]))
                    for group, one in drawn[entrants[-1].name, question.key].items()
                }
                for question in questions
            }
            for entrant in entrants[:-1]
            if entrant.variant_of is None
        },
    }


def told(finding: Finding) -> dict[str, Any]:
    """In percent, with two digits."""
    return {
        "value": round(100 * finding.value, 2),
        "interval": [round(100 * edge, 2) for edge in finding.interval],
        "of_seeds": [round(100 * value, 2) for value in finding.of_seeds],
        "counts": finding.counts,
    }


def measured_beside(answers: Sequence[Evaluation]) -> dict[str, Any]:
    """What else a question measures: means over seeds."""
    beside: dict[str, Any] = {}
    semantic = [one.semantic for one in answers if one.semantic is not None]
    if semantic:
        beside["pixel_accuracy"] = round(100 * fmean(one.pixel_accuracy for one in semantic), 2)
    panoptic = [one.panoptic.all for one in answers if one.panoptic is not None]
    if panoptic:
        beside |= {name: round(100 * fmean(getattr(one, name) for one in panoptic), 2) for name in ("pq", "sq", "rq")}
    return beside

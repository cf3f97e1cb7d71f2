"""Means, intervals and differences from records made by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import Candidate, Evaluation, Plan, evaluate
from lexiseg.miniature.findings import harmonic, sample, samples
from lexiseg.miniature.questions import QUESTIONS, Question
from lexiseg.miniature.report import cell, claims, table
from lexiseg.types import Segment, SemanticMap


def answer(package: Path, said: int) -> Evaluation:
    """Of a candidate that calls every pixel the same."""

    def predict(image: Any, vocabulary: Any, tasks: Any) -> Any:
        labels = torch.full(image.shape[:2], said)
        return {"semantic": SemanticMap(labels, (Segment(said, said, 0.5, labels.numel()),))}

    data = LabelledPhotos(package)
    found = evaluate(Candidate("one word", predict), data, Plan.of(data, measures=("miou",)), progress=False)
    assert found is not None
    return found


def test_mean_over_seeds_of_chosen_classes(package: Path) -> None:
    answers = [answer(package, 0), answer(package, 1)]
    both = sample(answers, ["sky", "road"])
    expected = [evaluation.semantic.miou["gt"] for evaluation in answers if evaluation.semantic]
    assert both.values.tolist() == pytest.approx(expected)
    finding = both.finding()
    assert finding.value == pytest.approx(sum(expected) / 2) and finding.of_seeds == pytest.approx(tuple(expected))
    assert finding.interval[0] <= finding.value <= finding.interval[1]
    assert sample(answers, ["sky"]).values[1] == 0 and sample(answers, ["road"]).values[0] == 0


def test_differences_and_harmonic_means(package: Path) -> None:
    sky, road = (sample([answer(package, 0)], [name]) for name in ("sky", "road"))
    difference = sky.less(road)
    assert difference.value == pytest.approx(float(sky.values[0])) and difference.counts
    assert not sky.less(sky).counts
    assert harmonic(sky, road).finding().value == 0
    assert harmonic(sky, sky).finding().value == pytest.approx(float(sky.values[0]))


def test_groups_leave_out_what_is_rare(package: Path) -> None:
    question = Question("Z9", "", "tiny", "test", left_out=("road", "traffic sign"))
    found = samples(question, [answer(package, 0)])
    assert set(found) == {"all"}
    assert found["all"].values[0] == sample([answer(package, 0)], ["sky"]).values[0]


def test_questions_can_be_told_apart() -> None:
    assert len({question.key for question in QUESTIONS}) == len(QUESTIONS)
    for question in QUESTIONS:
        assert replace(question, key="other") != question and (question.given_masks is None) == (
            not question.key.endswith("-masks")
        )


def finding(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval": [low, high], "of_seeds": [value], "counts": not low <= 0 <= high}


@pytest.mark.parametrize(("low", "high", "mark"), [(0.5, 3.0, " ↑"), (-0.5, 3.0, ""), (-3.0, -0.5, " ↓")])
def test_tables(low: float, high: float, mark: str) -> None:
    number = finding(41.26, 40.0, 42.0) | {"less_first": finding((low + high) / 2, low, high)}
    entrant = {"title": "One", "answers": {"Z1": {"groups": {"all": number}}}}
    assert table([entrant], (("mIoU", "Z1", "all"), ("none", "Z1", "unseen"))) == [
        "| system | mIoU | none |",
        "|---|---|---|",
        f"| One | 41.3 (40.0 to 42.0){mark} |  |",
    ]
    assert cell(None) == ""


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 3.0, "yes"),
        (-1.0, 3.0, "no: nothing but chance"),
        (-3.0, -1.0, "no: the opposite"),
        (0.0, 0.0, "no: both alike"),
    ],
)
def test_verdicts(low: float, high: float, verdict: str) -> None:
    entrants = [{"name": name, "title": name.upper()} for name in ("a", "b")]
    claim = {"text": "a is better", "source": "P", "better": "a", "worse": "b", "question": "Z2", "group": "unseen"}
    lines = claims({"entrants": entrants, "claims": [claim | {"difference": finding((low + high) / 2, low, high)}]})
    assert lines[2].endswith(f"| {verdict} |") and "A less B, Z2, unseen" in lines[2]

"""The whole benchmark, so small that it says nothing: every part runs, and goes on where it was stopped."""

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lexiseg.apps.cli import app
from lexiseg.miniature.claims import CLAIMS
from lexiseg.miniature.combining import CANDIDATES, LEXISEG_MINI
from lexiseg.miniature.questions import QUESTIONS
from lexiseg.miniature.running import Extent, run
from lexiseg.miniature.tuning import ENTRANTS

SMALL = Extent(tower_steps=2, generator_steps=2, tuning_share=0.005, seeds=1, judged_photos=2, photos=2)


@pytest.mark.slow
def test_from_nothing_to_a_report(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    for minutes in (0, 2):  # stopped in the first training, then somewhere
        assert not run(data, tmp_path, extent=SMALL, deadline=time.time() + 60 * minutes)
        assert not (tmp_path / "findings.json").exists()
    assert run(data, tmp_path, extent=SMALL)
    findings = json.loads((tmp_path / "findings.json").read_text())
    everyone = (*ENTRANTS, LEXISEG_MINI)
    assert [entrant["name"] for entrant in findings["entrants"]] == [entrant.name for entrant in everyone]
    for told, entrant in zip(findings["entrants"], everyone, strict=True):
        assert set(told["answers"]) == {question.key for question in QUESTIONS if entrant.answers(question)}
        assert {"seen", "unseen", "harmonic"} <= set(told["answers"]["Z2-masks"]["groups"])
    assert len(findings["claims"]) == len(CLAIMS)
    tried = findings["choice"]["tried"]
    assert len(tried) >= len(CANDIDATES) + sum(entrant.variant_of is None for entrant in ENTRANTS)
    assert max(one["mean"] for one in tried) == next(
        one["mean"] for one in tried if one["title"] == findings["choice"]["title"]
    )
    report = (tmp_path / "mini-benchmark.md").read_text()
    assert all(entrant.title in report for entrant in everyone)
    assert run(data, tmp_path, extent=SMALL)
    assert json.loads((tmp_path / "findings.json").read_text()) == findings


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["eval", "--benchmark", "mini", "--out", str(tmp_path)])
    assert outcome.exit_code == 2 and "--data" in outcome.output
    outcome = CliRunner().invoke(app, ["eval", "--benchmark", "mini", "--data", str(tmp_path), "--out", str(tmp_path)])
    assert outcome.exit_code == 2 and "camvid.zip" in outcome.output

"""docs/mini-benchmark.md and the README tell what the command found: docs/mini-benchmark.json is its findings.json."""

import json
from pathlib import Path

import pytest

from lexiseg.miniature.report import report, short

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("page", "written"), [("docs/mini-benchmark.md", report), ("README.md", short)])
def test_pages_tell_what_was_found(page: str, written: object) -> None:
    findings = json.loads((REPOSITORY / "docs" / "mini-benchmark.json").read_text(encoding="utf-8"))
    assert callable(written)
    assert written(findings) in (REPOSITORY / page).read_text(encoding="utf-8")

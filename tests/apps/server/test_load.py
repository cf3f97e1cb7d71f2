"""A short run of benchmarks/serving.py."""

import asyncio
from pathlib import Path

import httpx

from benchmarks.serving import LIMITS, mixture, questions
from lexiseg import Segmenter
from tests.apps.server_process import server
from tests.apps.toy_server import toy_folder


def test_a_mixture_at_twice_the_capacity(tmp_path: Path) -> None:
    toy = toy_folder(tmp_path / "toy")
    asked = questions(Segmenter.from_pretrained(toy, "cpu"), 21)
    with server(toy, tmp_path, *LIMITS, "--places", "4") as process:
        report = asyncio.run(mixture(process, asked, requests=120, clients=8))
        assert httpx.get(f"{process.url}/readyz").status_code == 200
        assert not report.mistakes
        assert report.answered == report.statuses["good 200"] > 20
        assert sum(report.statuses.values()) - report.statuses["told to come again 429"] == 120
        assert "own_mistake" not in process.log_file.read_text(encoding="utf-8")
        assert "lexiseg_places_taken 0.0" in httpx.get(f"{process.url}/metrics").text, "all places are free again"

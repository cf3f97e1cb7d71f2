"""A run of the data engine: the same twice, whole after a kill, refused when it is another one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lexiseg.data.pairs import MaskWordPairs, shard_paths
from lexiseg.mining import running
from lexiseg.mining.running import MiningError, Run, Settings, mine, tasks_of
from lexiseg.mining.sheet import contact_sheet, save_sheet
from lexiseg.mining.summary import save_summary, summarise
from tests.colour_model import colour_model
from tests.conftest import REPOSITORY
from tests.mining.colour_photos import SETTINGS, write_photos


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "miner_model", lambda settings, device: colour_model())


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in shard_paths(folder).values()]


def test_twice_is_the_same(tmp_path: Path) -> None:
    source = write_photos(tmp_path)
    runs = [mine(tmp_path / name, source, SETTINGS) for name in ("one", "two")]
    assert not runs[0].missing and len(contents(tmp_path / "one")) == 4  # of two photos each, the last of one
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    one_by_one = tmp_path / "one by one"
    miner = running.Miner(Run.start(one_by_one, source, SETTINGS), together=1)
    for number in reversed(range(4)):
        miner.mine(number)
    assert contents(one_by_one) == contents(tmp_path / "one")


def test_a_run_killed_in_the_middle_neither_loses_nor_repeats_a_pair(tmp_path: Path) -> None:
    source, out = write_photos(tmp_path), tmp_path / "killed"
    command = [sys.executable, "-m", "tests.mining.colour_photos", source.captions, str(source.images), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment)
    try:
        deadline = time.monotonic() + 120
        while len(shard_paths(out) if out.is_dir() else {}) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    before = {number: path.stat().st_mtime_ns for number, path in shard_paths(out).items()}
    assert 2 <= len(before) < 4
    mine(out, source, SETTINGS)
    mine(tmp_path / "whole", source, SETTINGS)
    assert contents(out) == contents(tmp_path / "whole")
    after = {number: path.stat().st_mtime_ns for number, path in shard_paths(out).items()}
    assert {number: after[number] for number in before} == before  # what was there was not made again
    pairs = [(pair.photo, pair.word) for _, pair in MaskWordPairs(out).entries]
    assert len(pairs) == len(set(pairs)) == 17  # 14 of colours, 3 of clouds


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    source = write_photos(tmp_path)
    mine(tmp_path / "out", source, SETTINGS)
    assert Run.start(tmp_path / "out", source, SETTINGS).missing == ()
    with pytest.raises(MiningError, match=r"made otherwise \(settings.crop_side differ\)"):
        Run.start(tmp_path / "out", source, replace(SETTINGS, crop_side=32))
    Path(source.captions).write_text("0.png\ta green stripe\n")
    with pytest.raises(MiningError, match="looked_for"):
        Run.start(tmp_path / "out", source, SETTINGS)
    Path(source.captions).write_text("0.png\tnothing\n")
    with pytest.raises(MiningError, match="no caption has a noun"):
        Run.start(tmp_path / "other", source, SETTINGS)
    assert not (tmp_path / "other").exists()


def test_a_bad_photo_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    source, out = write_photos(tmp_path, 3), tmp_path / "out"
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    mine(out, source, SETTINGS)
    found = summarise(out)
    assert list(found.failures) == ["1.png"] and found.photos == 3
    assert found.left_out == {"photo cannot be read": 3} and found.pairs + 3 == found.nouns
    assert {pair.photo for _, pair in MaskWordPairs(out).entries} == {"0.png", "2.png"}


def test_counts_add_up(tmp_path: Path) -> None:
    source, out = write_photos(tmp_path), tmp_path / "out"
    mine(out, source, replace(SETTINGS, min_photos=4))
    found = summarise(out)
    assert (found.photos, found.nouns, found.pairs) == (7, 17, 14)
    assert found.left_out == {"word too rare": 3}  # three clouds
    assert found.pairs + sum(found.left_out.values()) == found.nouns
    assert [(entry.word, entry.pairs) for entry in found.words] == [("blue", 5), ("green", 5), ("red", 4)] or {
        entry.word: entry.pairs for entry in found.words
    } == {"red": 5, "green": 5, "blue": 4}
    save_summary(found, out)
    with (out / "words.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert sum(int(row["pairs"]) for row in rows) == 14 and float(rows[0]["similarity"]) > 0.9
    assert json.loads((out / "summary.json").read_text())["distinct_words"] == 3
    assert "14 pairs of 3 words" in found.lines()


def test_the_sheet_shows_a_row_per_word_and_is_always_the_same(tmp_path: Path) -> None:
    source, out = write_photos(tmp_path), tmp_path / "out"
    mine(out, source, SETTINGS)
    path = save_sheet(out, rows=3, columns=2)
    first = contact_sheet(MaskWordPairs(out), rows=3, columns=2)
    assert path.read_bytes() and first.tobytes() == contact_sheet(MaskWordPairs(out), rows=3, columns=2).tobytes()
    few = contact_sheet(MaskWordPairs(out), rows=2, columns=2)
    assert few.height < first.height and few.width == first.width


def test_nouns_that_are_not_looked_for_have_a_reason(tmp_path: Path) -> None:
    pytest.importorskip("textblob")
    source = write_photos(tmp_path, 1)
    Path(source.captions).write_text("0.png\tA group of dogs in front of a house.\n")
    (task,) = tasks_of(source.open(), Settings())
    assert task.nouns == {"dogs": 0, "house": 0} and task.dropped == {"word names no region": 2}
    (task,) = tasks_of(source.open(), Settings(keep_all_nouns=True))
    assert list(task.nouns) == ["group", "dogs", "front", "house"]

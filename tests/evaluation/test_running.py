"""Interruptions and processes change no digit."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import (
    Candidate,
    EvaluationError,
    Plan,
    Share,
    candidate_of,
    evaluate,
    evaluate_model,
    evaluate_with_workers,
    own_device,
)
from lexiseg.images import Canvas
from lexiseg.segmenter import Segmenter
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import save_model_folder
from tests.colour_model import colour_model
from tests.evaluation.conftest import by_grey_level, labelling

VARYING = {"seconds_per_photo", "peak_memory_mb"}


def numbers(evaluation) -> dict:
    told = evaluation.to_dict()
    return {key: value for key, value in told.items() if key not in VARYING}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A model folder, untrained."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    arguments = {"tower": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "clusters": 4}
    torch.manual_seed(0)
    return save_model_folder(
        tmp_path / "toy",
        clustered(**arguments, device="cpu"),
        text_encoder(arguments["tower"], device="cpu"),
        builder="clustered",
        arguments=arguments,
        templates="bare",
        canvas=Canvas(64, 96),
        training_phrases=["red"],
    )


def colour_candidate() -> Candidate:
    return candidate_of(Segmenter(colour_model(), device="cpu"))


def stopping_after(candidate: Candidate, photos: int) -> Candidate:
    looked = []

    def predict(*question):
        if len(looked) == photos:
            raise KeyboardInterrupt
        looked.append(question)
        return candidate.predict(*question)

    return replace(candidate, predict=predict)


def test_a_stopped_evaluation_goes_on(colours: Path, tmp_path: Path) -> None:
    data, plan = LabelledPhotos(colours), Plan.of(LabelledPhotos(colours))
    whole = evaluate(colour_candidate(), data, plan, progress=False)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stopping_after(colour_candidate(), 5), data, plan, out=tmp_path / "out", progress=False)
    records = tmp_path / "out" / "colours.colours-12.val.records" / "records-0.jsonl"
    assert len(records.read_bytes().splitlines()) == 5
    records.write_bytes(records.read_bytes() + b'{"id": "c5", "sec')
    resumed = evaluate(stopping_after(colour_candidate(), 7), data, plan, out=tmp_path / "out", progress=False)
    assert numbers(resumed) == numbers(whole)
    again = evaluate(stopping_after(colour_candidate(), 0), data, plan, out=tmp_path / "out", progress=False)
    assert again.to_dict() == resumed.to_dict()


def test_processes_that_share_a_folder(colours: Path, tmp_path: Path) -> None:
    """As `accelerate launch` starts them: each knows its rank only."""
    data, plan = LabelledPhotos(colours), Plan.of(LabelledPhotos(colours))
    whole = evaluate(colour_candidate(), data, plan, progress=False)
    for rank in (2, 1):
        share = Share(rank, 3)
        assert evaluate(colour_candidate(), data, plan, out=tmp_path, share=share, progress=False) is None
    together = evaluate(colour_candidate(), data, plan, out=tmp_path, share=Share(0, 3), progress=False)
    assert numbers(together) == numbers(whole)
    assert len(list(tmp_path.glob("colours.colours-12.val.records/records-*.jsonl"))) == 3
    with pytest.raises(EvaluationError, match="several processes need a folder"):
        evaluate(colour_candidate(), data, plan, share=Share(0, 2), progress=False)


def test_the_first_process_does_not_wait_forever(colours: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lexiseg.evaluation.running.PATIENCE_S", 0.3)
    data = LabelledPhotos(colours)
    with pytest.raises(EvaluationError, match="6 of 12 photos, .* a process has died"):
        evaluate(colour_candidate(), data, out=tmp_path, share=Share(0, 2), progress=False)


@pytest.mark.slow  # three processes that import everything
def test_workers(toy: Path, colours: Path, tmp_path: Path) -> None:
    plan = Plan.of(LabelledPhotos(colours), measures=["miou"])
    alone = evaluate_model(toy, colours, measures=["miou"], device="cpu", progress=False)
    together = evaluate_with_workers(toy, colours, plan, workers=2, out=tmp_path / "o", device="cpu", progress=False)
    assert numbers(together) == numbers(alone)
    assert (alone.model, alone.photos) == ("toy", 12)
    assert [entry.seen for entry in alone.classes] == [True, False, False]
    assert sum(entry.predicted_share for entry in alone.classes) == pytest.approx(1)
    with pytest.raises(ValueError, match="no model or folder is called 'street-teeny'"):
        evaluate_with_workers("street-teeny", colours, plan, workers=1, progress=False)


@pytest.mark.slow  # two processes that import everything
def test_a_killed_command_goes_on(toy: Path, colours: Path, tmp_path: Path) -> None:
    """The whole command, killed without warning."""
    photos = json.loads((colours / "dataset.json").read_text())["splits"]["val"]
    call = [sys.executable, "-c", "from lexiseg.apps.cli import main; main()", "eval"]
    call += ["--benchmark", str(colours), "--model", str(toy), "--device", "cpu", "--out", str(tmp_path / "o")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    records = tmp_path / "o" / "toy.colours-12.val.records" / "records-0.jsonl"
    limit = time.monotonic() + 120
    while not (records.is_file() and records.stat().st_size) and running.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    before = records.read_bytes().count(b"\n")
    assert 0 <= before <= len(photos)
    done = subprocess.run([*call, "--json"], env=environment, capture_output=True, text=True, check=True)
    alone = evaluate_model(toy, colours, device="cpu", progress=False)
    told = {key: value for key, value in json.loads(done.stdout).items() if key not in VARYING}
    assert told == json.loads(json.dumps(numbers(alone)))


@pytest.mark.slow  # three processes that import everything
def test_accelerate_launch(toy: Path, colours: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is of the extra for training")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["-m", "lexiseg.apps.cli", "eval", "--benchmark", str(colours)]
    launch += ["--model", str(toy), "--device", "cpu", "--out", str(tmp_path / "o")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(launch, env=environment, capture_output=True, check=True, timeout=300)
    folder = tmp_path / "o"
    assert len(list(folder.glob("toy.colours-12.val.records/records-*.jsonl"))) == 2
    told = json.loads((folder / "toy.colours-12.val.json").read_text())
    alone = evaluate_model(toy, colours, device="cpu", progress=False)
    found = {key: value for key, value in told.items() if key not in VARYING}
    assert found == json.loads(json.dumps(numbers(alone)))


def test_records_of_something_else_are_not_continued(package: Path, tmp_path: Path) -> None:
    data = LabelledPhotos(package)
    grey = labelling(by_grey_level, fingerprint="one")
    evaluate(grey, data, out=tmp_path, progress=False)
    for candidate, plan, message in (
        (replace(grey, fingerprint="two"), None, "another weights"),
        (grey, Plan.of(data, words="a, b, c"), "another words"),
        (grey, Plan.of(data, measures=["miou", "boundary"]), "another measures"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(candidate, data, plan, out=tmp_path, progress=False)
    assert evaluate(grey, data, Plan.of(data, limit=2), out=tmp_path, progress=False).photos == 2


def test_the_share_of_a_process(monkeypatch) -> None:
    assert Share.from_environment() == Share(0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Share.from_environment().of(list("abcdefg")) == ["c", "g"]
    assert own_device("cpu", Share(2, 4)) == "cpu"


def test_same_weights_same_fingerprint() -> None:
    one, other, different = colour_candidate(), colour_candidate(), colour_model()
    assert one.fingerprint == other.fingerprint
    with torch.no_grad():
        different.system.scorer.logit_scale.fill_(2.0)
    assert candidate_of(Segmenter(different, device="cpu")).fingerprint != one.fingerprint

"""The export itself: what is refused, every kind of model, and the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from lexiseg.export import Exported, ExportError, export_model
from lexiseg.export.checking import agreement, as_percent, photos_to_check, reference
from lexiseg.exported import ExportedSegmenter
from lexiseg.exported.description import Precision
from lexiseg.images import Canvas, Photo
from lexiseg.types import PanopticMap, Segment, SemanticMap
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model
from tests.export.conftest import FIXED_HW, WORDS
from tests.zoo.toy_folders import TRANSFORMER, toy_model

WORD_LIST = "sky, tree, house | temple"


def lexiseg(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("builder", "tower", "said"),
    [
        ("ovseg", TRANSFORMER, "masks by MaskFormer"),
        ("maft", TRANSFORMER, "masks by FreeSeg"),
        ("maft_given", TRANSFORMER, "they come with every photo"),
        ("clustered", "convnext mlp", "masks by Cluster"),
        ("fcclip", "resnet", "regions by AttentionPool"),
    ],
)
def test_what_cannot_be_exported_says_why(builder: str, tower: str | dict[str, Any], said: str, tmp_path: Path) -> None:
    model = load(toy_model(tmp_path / builder, builder, tower))
    with pytest.raises(ExportError, match=f"^{builder}: cannot be exported: .*{said}") as refused:
        export_model(model, tmp_path / "out.onnx")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*.onnx"))


def test_wrong_calls(model: Model, tmp_path: Path) -> None:
    for arguments, said in (
        ({"out": tmp_path / "model.bin"}, "ends in .onnx"),
        ({"out": tmp_path / "a.onnx", "sizes": [(300, 512)]}, "multiples of 32"),
        ({"out": tmp_path / "a.onnx", "sizes": [(0, 512)]}, "multiples of 32"),
        ({"out": tmp_path / "a.onnx", "sizes": [(64, 64), (64, 64)]}, "twice"),
    ):
        with pytest.raises(ExportError, match=said):
            export_model(model, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="without images"):
        photos_to_check(tmp_path)
    with pytest.raises(ExportError, match="no folder"):
        photos_to_check(tmp_path / "missing")


def test_the_command_refuses_in_one_line(fixed_words: Exported, china_photo: Path, tmp_path: Path) -> None:
    file, out = fixed_words.files[0], tmp_path / "a.onnx"
    for arguments, said in (
        (("export", "--out", out, "--size", "12"), "write height x width"),
        (("export", "--out", out, "--size", "100x100"), "multiples of 32"),
        (("export", "--out", out, "--background"), "give them as --classes"),
        (("export", "--out", out, "--model", file), "answers `lexiseg segment` alone"),
        (("segment", china_photo, "--model", file, "--tile", 128), "--tile: not with an exported model"),
        (("segment", china_photo, "--model", file, "--classes", "sky"), "its words are fixed"),
        (("segment", china_photo, "--model", file, "--background"), "its words are fixed"),
        (("segment", china_photo, "--model", tmp_path / "none.onnx"), "there is no such file"),
        (("segment", china_photo), "--classes is missing"),
    ):
        done = lexiseg(*arguments)
        assert done.exit_code == 2, done.output
        assert said in done.output
        assert len([line for line in done.output.splitlines() if line.startswith("lexiseg: ")]) == 1


def test_the_command_segments(fixed_words: Exported, china_photo: Path, tmp_path: Path) -> None:
    done = lexiseg("segment", china_photo, "--model", fixed_words.files[0], "--out", tmp_path, "--task", "panoptic")
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "china.json").read_text(encoding="utf-8"))
    assert told["model"] == "street-tiny"
    assert {"sky", "building"} <= {segment["label"] for segment in told["segments"]}


def test_agreement_by_hand() -> None:
    first = SemanticMap(torch.tensor([[0, 1], [1, 1]]), ())
    second = SemanticMap(torch.tensor([[0, 1], [1, 0]]), ())
    part = Segment(1, 0.5, 2, torch.zeros(2))
    one = PanopticMap(torch.tensor([[0, 1], [1, 2]], dtype=torch.int32), (part, part))
    other = PanopticMap(torch.tensor([[0, 2], [2, 0]], dtype=torch.int32), (part, part))
    check = agreement([({"semantic": first, "panoptic": one}, {"semantic": second, "panoptic": other})])
    assert (check.photos, check.pixels, check.same_labels, check.same_segments) == (1, 4, 0.75, 0.75)
    assert as_percent(0.99999999) == "99.9999 %"
    assert as_percent(1.0) == "100.0000 %"


def test_canvas_of_one_size() -> None:
    photo = Photo(np.full((100, 300, 3), 200, np.uint8), "wide")
    images = Canvas(64, 1000, within=(64, 128))([photo])
    assert (images.canvas_hw, images.sizes_hw) == ((64, 128), ((43, 128),))
    assert images.pixels[0, :, 43:].abs().max() == 0
    twice = Canvas(64, 1000, second_short_edge=32, within=(64, 96))
    images = twice([photo])
    assert (images.canvas_hw, images.sizes_hw) == ((64, 96), ((32, 96),))
    assert images.unscaled is not None and images.unscaled.sizes_hw == ((64, 192),)
    assert twice.picture_hw((100, 300)) == (32, 96)


@pytest.mark.slow
@pytest.mark.parametrize("size_hw", [None, (64, 96)])
@pytest.mark.parametrize("builder", ["maftplus", "maskclip_pp", "mask_adapter_fcclip", "mask_adapter_maftplus"])
def test_every_kind(builder: str, size_hw: tuple[int, int] | None, tmp_path: Path) -> None:
    """Random weights decide by a hair everywhere: the numbers are compared, not the labels."""
    model = load(toy_model(tmp_path / builder, builder))
    out = tmp_path / "toy.onnx"
    export_model(model, out, sizes=[] if size_hw is None else [size_hw], least_agreement=0.0)
    exported = ExportedSegmenter.load(out, "cpu")
    theirs = reference(model, exported)
    question, words = exported.prepare(WORD_LIST), theirs.prepare(WORD_LIST)
    chance = np.random.default_rng(0)
    for shape in ((70, 100, 3), (50, 90, 3), (120, 80, 3)):
        photo = Photo(chance.integers(0, 255, shape, np.uint8), "noise")
        images = theirs.model.canvas([photo])
        with torch.inference_mode():
            proposals, scores = theirs.model.system(images, words.bank)
        found = exported.graphs[0].run(exported.graphs[0].canvas([photo]), question.feed)
        torch.testing.assert_close(found.mask_logits, proposals.mask_logits[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.class_probs, scores.class_probs[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.void_prob, scores.void_prob[0], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_precisions(precision: Precision, model: Model, china_photo: Path, tmp_path: Path) -> None:
    words = Vocabulary.parse(WORDS)
    done = export_model(model, tmp_path / "a.onnx", vocabulary=words, sizes=[FIXED_HW], precision=precision)
    assert done.checks[0].same_labels >= {"float32": 0.999, "int8": 0.9}[precision]
    assert done.files[0].stat().st_size < {"float32": 40, "int8": 20}[precision] * 2**20
    assert ExportedSegmenter.load(done.files[0]).description.precision == precision


@pytest.mark.slow
def test_a_file_that_disagrees_is_not_left_behind(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="of the pixels of 2 photos have the class"):
        export_model(
            model,
            tmp_path / "a.onnx",
            vocabulary=Vocabulary.parse(WORDS),
            sizes=[(64, 96)],
            least_agreement=1.1,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_exports(china_photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.onnx"
    done = lexiseg("export", "--classes", "sky, tree", "--size", "64x96", "--size", "96x64", "--out", out)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two-64x96.onnx", "two-96x64.onnx"]
    assert "of the pixels have the class that PyTorch gives them" in done.output
    assert lexiseg("segment", china_photo, "--model", out, "--out", tmp_path / "out").exit_code == 0

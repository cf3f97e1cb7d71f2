"""Exported files against the models they were made of, on real photos."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lexiseg.data.packages import LabelledPhotos
from lexiseg.export import Exported
from lexiseg.export.checking import TASKS, agreement
from lexiseg.exported import ExportedFileError, ExportedSegmenter
from lexiseg.exported.description import KEY, TEXT_KEY
from lexiseg.exported.running import sized_file
from lexiseg.images import ImageError, ImageLimits, read_image
from lexiseg.results import Result
from lexiseg.segmenter import Segmenter
from lexiseg.zoo.model_folder import Model
from tests.export.conftest import FIXED_HW, WORDS


@pytest.fixture(scope="module")
def segmenter(any_words: Exported) -> ExportedSegmenter:
    return ExportedSegmenter.load(any_words.files[0], "cpu")


def same(one: Result, other: Result) -> float:
    """Share of the pixels with the same label."""
    return float((one.label_map == other.label_map).mean())


def test_the_check_at_export(any_words: Exported, fixed_words: Exported) -> None:
    for exported in (any_words, fixed_words):
        (check,) = exported.checks
        assert (check.photos, check.pixels) == (1, 427 * 640)
        assert check.same_labels >= 0.999
        assert check.same_segments >= 0.999


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_same_results_as_pytorch(task: str, segmenter: ExportedSegmenter, model: Model, china_photo: Path) -> None:
    theirs = Segmenter(model, "cpu")(china_photo, WORDS, task)
    ours = segmenter(china_photo, WORDS, task)
    assert same(ours, theirs) >= 0.999
    assert [s.label for s in ours.segments] == [s.label for s in theirs.segments]
    np.testing.assert_allclose(
        [s.score for s in ours.segments], [s.score for s in theirs.segments], rtol=1e-3, atol=1e-4
    )
    assert (ours.model, ours.photo, ours.vocabulary) == (theirs.model, theirs.photo, theirs.vocabulary)


@pytest.mark.slow
def test_fifty_real_photos(segmenter: ExportedSegmenter, model: Model, shared: Path) -> None:
    data, theirs = LabelledPhotos(shared / "data" / "camvid.zip"), Segmenter(model, "cpu")
    words, ids = list(data.classes), data.ids("test")
    pictures = (data.photo(name).image for name in ids[:: len(ids) // 50][:50])
    check = agreement((theirs.predict(rgb, words, TASKS), segmenter.predict(rgb, words, TASKS)) for rgb in pictures)
    assert check.photos == 50
    assert min(check.same_labels, check.same_segments) >= 0.999


def test_a_photo_of_another_shape_is_segmented_as_pytorch_does(
    segmenter: ExportedSegmenter, model: Model, china_photo: Path
) -> None:
    upright = np.rot90(Segmenter(model, "cpu")(china_photo, "sky").rgb).copy()
    assert same(segmenter(upright, "sky, tree"), Segmenter(model, "cpu")(upright, "sky, tree")) >= 0.999


def test_words_inside_are_the_same_as_words_given(
    segmenter: ExportedSegmenter, fixed_words: Exported, china_photo: Path
) -> None:
    fixed = ExportedSegmenter.load(fixed_words.files[0], "cpu")
    assert same(fixed(china_photo), segmenter(china_photo, WORDS)) >= 0.999
    assert fixed.vocabulary == segmenter.prepare(WORDS).vocabulary
    assert fixed(china_photo, WORDS, "panoptic").words == ("sky", "tree", "building", "lake", "person")
    with pytest.raises(ValueError, match="its words are fixed"):
        fixed(china_photo, "sky, car")
    with pytest.raises(ValueError, match="its words are fixed"):
        fixed(china_photo, background=True)


def test_a_photo_that_does_not_fit_is_made_smaller(fixed_words: Exported) -> None:
    fixed = ExportedSegmenter.load(fixed_words.files[0], "cpu")
    canvas = fixed.graphs[0].canvas
    assert canvas.fit((400, 400)) == (360, 360)
    assert canvas.fit((640, 320)) == (384, 192)
    photo = read_image(np.zeros((640, 320, 3), np.uint8))
    images = canvas([photo])
    assert (images.canvas_hw, images.sizes_hw) == (FIXED_HW, ((384, 192),))
    assert fixed(photo).label_map.shape == (640, 320)


def test_new_words_need_the_text_tower(
    any_words: Exported, china_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEXISEG_CACHE", "off")
    file = tmp_path / "alone.onnx"
    file.write_bytes(any_words.files[0].read_bytes())
    alone = ExportedSegmenter.load(file)
    with pytest.raises(ExportedFileError, match="missing; alone.onnx needs it to encode words"):
        alone(china_photo, "sky")
    (tmp_path / any_words.text_files[0].name).write_bytes(b"another file")
    with pytest.raises(ExportedFileError, match="is not the file that alone.onnx came with"):
        alone(china_photo, "sky")
    with pytest.raises(ValueError, match="no words of its own"):
        alone(china_photo)


def test_the_text_tower_encodes_as_pytorch_does(segmenter: ExportedSegmenter, model: Model) -> None:
    words = ["sky", "a very long name of a thing", "car"]
    ours = segmenter._load_text(segmenter.description.text).encode(words)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, model.text_encoder().encode(words), rtol=1e-4, atol=1e-5)


def test_many_photos(segmenter: ExportedSegmenter, china_photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    outcomes = dict(segmenter.stream([bad, china_photo], "sky, tree", min_score=0.1))
    assert isinstance(outcomes[bad], ImageError)
    assert isinstance(outcomes[china_photo], Result)
    assert len(segmenter([china_photo], "sky")) == 1  # type: ignore[arg-type]
    small = ExportedSegmenter(segmenter.graphs, ImageLimits(max_pixels=1000))
    with pytest.raises(ImageError, match="more than the limit"):
        small(china_photo, "sky")
    for wrong, said in (({"task": "depth"}, "no task is called"), ({"min_score": 2}, "makes no sense")):
        with pytest.raises(ValueError, match=said):
            segmenter(china_photo, "sky", **wrong)  # type: ignore[arg-type]


def test_what_the_file_says(fixed_words: Exported, any_words: Exported, model: Model) -> None:
    file = onnx.load(fixed_words.files[0])
    told = json.loads({entry.key: entry.value for entry in file.metadata_props}[KEY])
    assert told["classes"][2]["phrases"] == ["building", "house", "temple"]
    assert (told["model"], told["precision"], told["size_hw"]) == ("street-tiny", "float16", list(FIXED_HW))
    assert told["outputs"]["overlap_threshold"] == model.outputs.overlap_threshold
    assert told["card"]["weights_licence"] == model.card["weights_licence"]
    assert told["check"]["same_labels"] == fixed_words.checks[0].same_labels
    assert model.card["weights_licence"] in file.doc_string
    assert file.producer_name == "lexiseg"
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in file.graph.initializer)
    assert fixed_words.files[0].stat().st_size < 0.7 * any_words.files[0].stat().st_size
    assert sorted(path.name for path in any_words.files[0].parent.iterdir()) == ["tiny.onnx", "tiny.text.onnx"]
    assert TEXT_KEY in {entry.key for entry in onnx.load(any_words.text_files[0]).metadata_props}


def test_files_for_several_sizes(fixed_words: Exported, china_photo: Path, tmp_path: Path) -> None:
    """The same graph under two names: which one is asked is a matter of the descriptions."""
    graph = onnx.load(fixed_words.files[0])
    told = json.loads(graph.metadata_props[0].value)
    for size_hw in (FIXED_HW, (544, 384), (640, 640)):
        onnx.helper.set_model_props(graph, {KEY: json.dumps({**told, "size_hw": size_hw})})
        onnx.save(graph, sized_file(tmp_path / "tiny.onnx", size_hw))
    several = ExportedSegmenter.load(tmp_path / "tiny.onnx")
    chosen = {shape: several.graph_for(shape).description.size_hw for shape in ((427, 640), (640, 427), (300, 300))}
    assert chosen == {(427, 640): FIXED_HW, (640, 427): (544, 384), (300, 300): FIXED_HW}
    assert several(china_photo).label_map.shape == (427, 640)
    onnx.helper.set_model_props(graph, {KEY: json.dumps({**told, "model": "another", "size_hw": (64, 64)})})
    onnx.save(graph, sized_file(tmp_path / "tiny.onnx", (64, 64)))
    with pytest.raises(ExportedFileError, match="of different models or words"):
        ExportedSegmenter.load(tmp_path / "tiny.onnx")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format"),
        ({"size_hw": [0, 5]}, "size_hw"),
        ({"surprise": 1}, "surprise"),
        ({"classes": []}, "classes"),
        ({"classes": None}, "neither words nor a file"),
        ({"classes": None, "text": {"file": "x.onnx", "sha256": "0" * 64}}, "its inputs are not those"),
        ({"text": {"file": "../../etc/x.onnx", "sha256": "0" * 64}}, "text.file"),
        ({"templates": ["none"]}, "templates"),
        ({"canvas": {"short_edge": 1}}, "short_edge"),
    ],
)
def test_descriptions_that_are_not_believed(
    change: dict[str, object], said: str, fixed_words: Exported, tmp_path: Path
) -> None:
    graph = onnx.load(fixed_words.files[0])
    told = json.loads(graph.metadata_props[0].value)
    onnx.helper.set_model_props(graph, {KEY: json.dumps({**told, **change})})
    onnx.save(graph, tmp_path / "changed.onnx")
    with pytest.raises(ExportedFileError, match=said) as refused:
        ExportedSegmenter.load(tmp_path / "changed.onnx")
    assert "changed.onnx" in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_are_none(any_words: Exported, tmp_path: Path) -> None:
    foreign = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "foreign",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        ),
        ir_version=9,
        opset_imports=[onnx.helper.make_opsetid("", 18)],
    )
    onnx.save(foreign, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(any_words.files[0].read_bytes()[:5000])
    (tmp_path / "empty.onnx").touch()
    for path, said in (
        (tmp_path / "foreign.onnx", "was not made by this package"),
        (tmp_path / "broken.onnx", "cannot be opened as ONNX"),
        (tmp_path / "empty.onnx", "0 bytes"),
        (tmp_path / "missing.onnx", "there is no such file"),
        (any_words.text_files[0], "encodes words, and belongs to another one"),
    ):
        with pytest.raises(ExportedFileError, match=said) as refused:
            ExportedSegmenter.load(path)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="not on 'mps'"):
        ExportedSegmenter.load(any_words.files[0], "mps")


def test_no_network_of_the_package_is_built(fixed_words: Exported, china_photo: Path) -> None:
    """A file with its words inside runs without the slots, the zoo, open_clip and timm."""
    program = f"""
import sys
from lexiseg.exported import ExportedSegmenter
ExportedSegmenter.load({str(fixed_words.files[0])!r})({str(china_photo)!r}).label_map
parts = {{"lexiseg." + part for part in ("zoo", "clip", "proposals", "regions", "scoring", "layers", "system")}}
print(sorted(name for name in sys.modules if name in ("open_clip", "timm") or ".".join(name.split(".")[:2]) in parts))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

"""Folders that cannot be used: each gives one line naming the folder, what is wrong and what to do."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lexiseg.proposals.transformers_folder import (
    TransformersFolderError,
    load_model,
    pixel_scale,
    read_config,
    read_preprocessor,
)
from lexiseg.proposals.transformers_masks import KINDS, load_transformers_generator
from lexiseg.proposals.transformers_view import HALVES, IMAGENET

Folder = Callable[[str], Path]


@pytest.fixture
def eomt(transformers_folder: Folder, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(transformers_folder("eomt"), tmp_path / "eomt"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def refused(folder: Path, match: str, **settings: Any) -> None:
    with pytest.raises(TransformersFolderError, match=match) as caught:
        load_transformers_generator(folder, **settings)
    message = str(caught.value)
    assert message.startswith(f"{folder}: ")
    assert "\n" not in message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message


def test_names_are_not_fetched(tmp_path: Path) -> None:
    refused(Path("facebook/sam-vit-base"), "is no folder; give the local folder")
    refused(tmp_path / "nowhere", "is no folder")


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    refused(tmp_path, "has no config.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[" * 5000, "config.json is not valid JSON"),
        ("[]", "config.json is not a JSON object"),
        ("{}", "model_type None; known are mask2former, eomt"),
        ('{"model_type": "bert"}', "model_type 'bert'; known are"),
        ('{"model_type": ["sam"]}', "model_type"),
        ('{"model_type": "sam3"}', "its detector, which needs words"),
        ('{"model_type": "eomt", "num_hidden_layers": 100000}', "num_hidden_layers = 100000, above the limit of 1000"),
        ('{"model_type": "eomt", "inner": [{"hidden_size": 10000000}]}', "hidden_size = 10000000, above the limit"),
        ('{"model_type": "eomt", "depths": [1, 9999]}', "depths = 9999, above the limit of 1000"),
        (" " * (4 * 2**20 + 1), "config.json is larger than 4 MiB"),
    ],
)
def test_configurations_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    refused(tmp_path, message)


@pytest.mark.parametrize(
    "values",
    [
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:somebody/something"}},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:/somewhere"}},
        {"backbone_config": None, "backbone": "somebody/something"},
    ],
)
def test_backbones_outside_the_folder(transformers_folder: Folder, tmp_path: Path, values: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(transformers_folder("mask2former"), tmp_path / "model"))
    change(folder / "config.json", **values)
    refused(folder, "takes its backbone from .*, outside the folder")


def test_pickles_are_refused(eomt: Path) -> None:
    tensors = load_file(eomt / "model.safetensors")
    (eomt / "model.safetensors").unlink()
    torch.save(tensors, eomt / "pytorch_model.bin")
    refused(eomt, "only as pytorch_model.bin, a pickle")


def test_pickles_beside_good_weights_stay_unread(eomt: Path) -> None:
    (eomt / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert load_transformers_generator(eomt).class_names == ("wall", "cat")


def test_no_weights(eomt: Path) -> None:
    (eomt / "model.safetensors").unlink()
    refused(eomt, "has no model.safetensors; download")


def test_damaged_weights(eomt: Path) -> None:
    whole = (eomt / "model.safetensors").read_bytes()
    (eomt / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(eomt, "cannot be loaded as EomtForUniversalSegmentation")


def test_adapters_are_no_models(eomt: Path) -> None:
    (eomt / "adapter_config.json").write_text('{"base_model_name_or_path": "somebody/something"}', encoding="utf-8")
    refused(eomt, "holds an adapter")


def test_weights_must_be_complete(eomt: Path) -> None:
    """Transformers itself would fill the gap with random numbers and go on."""
    tensors = load_file(eomt / "model.safetensors")
    del tensors["query.weight"]
    save_file(tensors, eomt / "model.safetensors", {"format": "pt"})
    refused(eomt, r"has no weights for 1 tensors \(query.weight\)")


def test_what_files_hold_besides_the_model(eomt: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Older releases stored buffers that are computed now; those of the training loss may be missing."""
    tensors = load_file(eomt / "model.safetensors")
    tensors["stranger"] = torch.zeros(2)
    del tensors["criterion.empty_weight"]
    save_file(tensors, eomt / "model.safetensors", {"format": "pt"})
    with caplog.at_level("INFO", "lexiseg"):
        load_transformers_generator(eomt)
    assert "1 tensors are not of the model and stay unread (stranger)" in caplog.text


@pytest.mark.parametrize("part", ["pytorch_model.bin", "../model.safetensors", "missing.safetensors"])
def test_parts_that_are_not_in_the_folder(eomt: Path, part: str) -> None:
    (eomt / "pytorch_model.bin").write_bytes(b"")
    index = {"weight_map": {"query.weight": part}}
    (eomt / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (eomt / "model.safetensors").rename(eomt.parent / "model.safetensors")
    refused(eomt, "index.json names .*, which is no safetensors file in the folder")


def test_weights_of_another_size(eomt: Path) -> None:
    change(eomt / "config.json", num_queries=5)
    refused(eomt, "cannot be loaded as EomtForUniversalSegmentation")


@pytest.mark.parametrize("image_size", [[64, 32], 10_000])
def test_inputs_that_are_no_square(transformers_folder: Folder, tmp_path: Path, image_size: Any) -> None:
    folder = Path(shutil.copytree(transformers_folder("sam2"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["prompt_encoder_config"]["image_size"] = image_size
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(folder, "image_size is .*; only squares of up to 8192 pixels|cannot be loaded as Sam2Model")


def test_sizes_that_are_none(transformers_folder: Folder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(transformers_folder("mask2former"), tmp_path / "model"))
    change(folder / "preprocessor_config.json", size={"shortest_edge": 0})
    refused(folder, "its settings cannot be used: short_edge is 0")


def test_code_in_the_folder_stays_unread(eomt: Path) -> None:
    change(eomt / "config.json", auto_map={"AutoModel": "modeling_evil.Evil"})
    (eomt / "modeling_evil.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert load_transformers_generator(eomt).class_names == ("wall", "cat")


def test_settings_of_another_family(transformers_folder: Folder) -> None:
    with pytest.raises(ValueError, match="eomt has no setting points_per_side; it has own_classes"):
        load_transformers_generator(transformers_folder("eomt"), points_per_side=3)
    with pytest.raises(ValueError, match="short_edge is 0; give a whole number in 1..8192"):
        load_transformers_generator(transformers_folder("mask2former"), short_edge=0)
    with pytest.raises(ValueError, match="own_classes is 'no'; give true or false"):
        load_transformers_generator(transformers_folder("mask2former"), own_classes="no")


def test_without_transformers(eomt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install 'lexiseg\\[transformers\\]'"):
        load_transformers_generator(eomt)


def test_loading_says_nothing(eomt: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import transformers

    logging = transformers.utils.logging
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load_transformers_generator(eomt)
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    assert capfd.readouterr() == ("", "")


def test_weights_in_parts(eomt: Path) -> None:
    tensors = load_file(eomt / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, eomt / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}
    (eomt / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (eomt / "model.safetensors").unlink()
    model = load_model(eomt, KINDS["eomt"].model_class)
    assert torch.equal(model.state_dict()["query.weight"], tensors["query.weight"])


def test_half_precision_is_read_as_single(eomt: Path) -> None:
    tensors = {name: x.half() for name, x in load_file(eomt / "model.safetensors").items()}
    save_file(tensors, eomt / "model.safetensors", {"format": "pt"})
    change(eomt / "config.json", dtype="float16")
    model = load_model(eomt, KINDS["eomt"].model_class)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_normalisation(tmp_path: Path) -> None:
    assert pixel_scale(tmp_path, {}, HALVES) == HALVES
    assert pixel_scale(tmp_path, {"image_mean": [0.1, 0.2, 0.3]}, IMAGENET) == IMAGENET
    scale = pixel_scale(tmp_path, {"image_mean": [0.0, 0.5, 1], "image_std": [1, 0.5, 0.1]}, IMAGENET)
    assert scale.mean == pytest.approx((0, 127.5, 255))
    assert scale.std == pytest.approx((255, 127.5, 25.5))
    raw = pixel_scale(tmp_path, {"image_mean": [1, 2, 3], "image_std": [1, 1, 2], "do_rescale": False}, IMAGENET)
    assert (raw.mean, raw.std) == ((1, 2, 3), (1, 1, 2))
    unit = pixel_scale(tmp_path, {"do_normalize": False, "rescale_factor": 0.5}, IMAGENET)
    assert (unit.mean, unit.std) == ((0, 0, 0), (2, 2, 2))


@pytest.mark.parametrize(
    "values",
    [
        {"image_mean": [0.5, 0.5], "image_std": [1, 1, 1]},
        {"image_mean": [0.5, 0.5, "x"], "image_std": [1, 1, 1]},
        {"image_mean": [0.5, 0.5, float("nan")], "image_std": [1, 1, 1]},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 1, 0]},
        {"image_mean": 0.5, "image_std": 0.5},
        {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "rescale_factor": 0},
    ],
)
def test_normalisations_that_are_none(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(TransformersFolderError, match="three numbers, three positive numbers and a positive number"):
        pixel_scale(tmp_path, values, IMAGENET)


def test_where_the_processor_is_written(tmp_path: Path) -> None:
    """Its own file first, then the file of the whole processor."""
    assert read_preprocessor(tmp_path) == {}
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": 1}}', encoding="utf-8")
    assert read_preprocessor(tmp_path) == {"size": 1}
    (tmp_path / "preprocessor_config.json").write_text('{"size": 2}', encoding="utf-8")
    assert read_preprocessor(tmp_path) == {"size": 2}


def test_the_configuration_as_it_is(eomt: Path) -> None:
    assert read_config(eomt)["num_queries"] == 6

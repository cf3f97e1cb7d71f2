"""A CLIP in open_clip's layout, against open_clip itself."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from lexiseg.regions.mask_bias import MaskBiasedAttention
from lexiseg.types import Images
from lexiseg.zoo.loading import compose, load
from lexiseg.zoo.model_folder import ModelFolderError
from lexiseg.zoo.open_clip_folder import load_open_clip, save_open_clip
from tests.zoo.conftest import TOWERS
from tests.zoo.toy_folders import open_clip_model, toy_open_clip


@pytest.mark.parametrize("name", TOWERS)
def test_the_same_numbers_as_open_clip(name: str, tmp_path: Path) -> None:
    folder = toy_open_clip(tmp_path / "clip", name)
    saved = save_open_clip(lambda file: folder / file, "clip", tmp_path / "saved")
    theirs = open_clip_model(name)
    prompts = ["a cat", "a photo of a house"]
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    images = Images(pixels, ((64, 64),) * 2, ((64, 64),) * 2)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    for model in (load_open_clip(lambda file: folder / file, "clip"), load(saved)):
        with torch.no_grad():
            torch.testing.assert_close(
                model.text_encoder().encode(prompts), theirs.encode_text(open_clip.tokenize(prompts))
            )
            assert torch.equal(model.system.scorer.logit_scale, theirs.logit_scale)
            features = model.system.encoder(images)
            embeds = model.system.embedder(images, features, torch.ones(2, 1, 16, 16)).embeds[:, 0]
            if name != "resnet":  # its own pooling has one more key than the masked one
                torch.testing.assert_close(
                    embeds, theirs.encode_image((pixels / 255 - mean) / std), atol=1e-5, rtol=1e-4
                )
        assert functional.cosine_similarity(embeds, theirs.encode_image((pixels / 255 - mean) / std)).min() > 0.8
        assert model.templates == load(saved).templates and len(model.templates) == 14


def test_a_transformer_of_openai_reads_masks_as_maft_does_before_it_is_tuned(tmp_path: Path) -> None:
    folder = toy_open_clip(tmp_path / "clip", "transformer")
    saved = save_open_clip(lambda file: folder / file, "clip", tmp_path / "saved")
    theirs = open_clip_model("transformer")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for model in (load_open_clip(lambda file: folder / file, "clip"), load(saved)):
        embedder = model.system.embedder
        assert (embedder.side, embedder.first_block) == (480, 1)
        with torch.no_grad():
            torch.testing.assert_close(embedder.tower(pixels), theirs.encode_image(pixels), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                model.text_encoder().encode(["a cat"]), theirs.encode_text(open_clip.tokenize(["a cat"]))
            )
        assert model.mix_templates
    composed = compose("given", folder)
    assert isinstance(composed.system.embedder.embedder, MaskBiasedAttention)


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_weights_under_other_names(tmp_path: Path) -> None:
    folder = toy_open_clip(tmp_path / "clip")
    state = load_file(folder / "open_clip_model.safetensors")
    mark = load_open_clip(lambda file: folder / file, "clip").text_encoder().encode(["sky"])
    text = ("token_embedding", "transformer", "ln_final", "positional_embedding", "text_projection")
    later = {("text." + name if name.startswith(text) else name): value for name, value in state.items()}
    (folder / "open_clip_model.safetensors").unlink()
    save_file(later, folder / "open_clip_pytorch_model.safetensors")
    assert torch.equal(load_open_clip(lambda file: folder / file, "clip").text_encoder().encode(["sky"]), mark)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_cfg": 3}, "model_cfg: Input should be"),
        ({"model_cfg": {"embed_dim": 8}}, "vision_cfg, text_cfg missing"),
        (
            {"model_cfg": {**TOWERS["resnet"], "vision_cfg": {"layers": 12, "width": 8}}},
            "no classifier of masks can be built",
        ),
        ({"model_cfg": {**TOWERS["resnet"], "custom": "hf-hub:someone/model"}}, "model_cfg.custom: .* is not the name"),
        ({"model_cfg": {**TOWERS["resnet"], "embed_dim": 10**9}}, "beyond any model's size"),
        ({"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}, r"wants its pictures normalised by \[0.5, 0.5, 0.5\]"),
        ({"preprocess_cfg": {"mean": [0.5]}}, "preprocess_cfg.mean"),
        ({"model_cfg": {**TOWERS["convnext mlp"], "embed_dim": 24}}, "of another shape"),
        ({"model_cfg": TOWERS["resnet"]}, "in the file, but not in the model:\n    visual.head"),
    ],
)
def test_what_cannot_be_built_is_told(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    folder = edited(toy_open_clip(tmp_path / "clip"), **changes)
    with pytest.raises(ModelFolderError, match=words) as caught:
        load_open_clip(lambda file: folder / file, "clip")
    assert str(folder) in str(caught.value)


def test_missing_files_and_pickles(tmp_path: Path) -> None:
    folder = toy_open_clip(tmp_path / "clip")
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"has no open_clip_model.safetensors; .* \(a pickle could run code"):
        load_open_clip(lambda file: folder / file, "clip")
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ModelFolderError, match="open_clip_config.json: missing"):
        load_open_clip(lambda file: folder / file, "clip")

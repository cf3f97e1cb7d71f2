"""The assembled system: its numbers, its options, and what a person gets from a folder of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexiseg.segmenter import Segmenter
from lexiseg.types import Images, Scores, TextBank
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.maftplus import maftplus
from lexiseg.zoo.model_folder import ModelFolderError, save_model_folder
from tests.zoo.conftest import GENERATOR, TOWERS, randomise

TOWER = TOWERS["convnext mlp"]


def scores_of(**options: Any) -> Scores:
    system = maftplus(TOWER, device="cpu", **{**GENERATOR, **options}).eval()
    randomise(system, 0)
    chance = torch.Generator().manual_seed(1)
    pixels = torch.rand(1, 3, 64, 96, generator=chance) * 255
    rows = torch.nn.functional.normalize(torch.randn(4, 1, 16, generator=chance), dim=-1)
    text = TextBank(rows, rows, torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, True]))
    with torch.no_grad():
        return system(Images(pixels, ((64, 96),), ((64, 96),)), text)[1]


def test_numbers_of_the_published_models() -> None:
    system = maftplus("convnext_base_w_320")
    assert system.generator.decoder.query_feat.weight.shape == (100, 256)
    assert system.scorer.transfer.linear.weight.shape == (640, 640)
    assert system.scorer.transfer.multihead_attn.heads == 8
    assert (system.scorer.transfer.norm_order, system.embedder.dense_order) == ("after_sum", "memory")


def test_every_option_matters() -> None:
    plain = scores_of()
    torch.testing.assert_close(plain.class_probs.sum(-1) + plain.void_prob, torch.ones(1, 6))
    for other in (scores_of(norm_order="before_sum"), scores_of(dense_order="position"), scores_of(transfer_heads=4)):
        assert not torch.allclose(other.class_probs, plain.class_probs, rtol=1e-4)
        assert torch.equal(other.void_prob, plain.void_prob)  # of the generator, which they do not concern


def test_folder_to_segments(tmp_path: Path) -> None:
    system, text = maftplus(TOWER, device="cpu", **GENERATOR), text_encoder(TOWER, device="cpu")
    randomise(system, 0)
    arguments = {"tower": TOWER, "norm_order": "before_sum", **GENERATOR}
    save_model_folder(tmp_path / "toy", system, text, builder="maftplus", arguments=arguments, templates=["{}"])
    segmenter = Segmenter.from_pretrained(tmp_path / "toy", device="cpu")
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for task in ("semantic", "panoptic", "instance"):
        result = segmenter(photo, "cat, grass | lawn, sky", task)
        assert result.label_map.shape == (40, 60)

    wrong = {**arguments, "norm_order": "sideways"}
    with pytest.raises(ModelFolderError, match="norm_order"):
        save_model_folder(tmp_path / "wrong", system, text, builder="maftplus", arguments=wrong, templates=["{}"])

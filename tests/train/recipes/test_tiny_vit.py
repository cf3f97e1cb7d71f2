import random
from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg.regions.mask_bias import MaskBiasedAttention
from lexiseg.train.recipes import tiny_vit as recipe
from lexiseg.zoo.model_folder import load_folder
from tests.train.recipes.test_maftplus import toy_package
from tests.zoo.toy_folders import TRANSFORMER, toy_model


def test_crops_are_parts_of_the_photo() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[..., 0] = np.arange(60)
    for seed in range(20):
        crop = recipe.random_crop(random.Random(seed), image)
        assert crop.shape == (recipe.CROP, recipe.CROP, 3)
        steps = np.diff(crop[0, :, 0].astype(int))
        assert (steps >= 0).all() or (steps <= 0).all()  # some are mirrored


def test_a_small_transformer_learns_from_another_clip(tmp_path: Path) -> None:
    data, teacher = toy_package(tmp_path / "toy"), toy_model(tmp_path / "fcclip", "fcclip")
    assert not recipe.train(data, tmp_path / "run", str(teacher), steps=2, batch=4, deadline=0.0)
    assert recipe.train(data, tmp_path / "run", str(teacher), steps=2, batch=4)
    model, taught = load_folder(tmp_path / "run" / "model"), load_folder(teacher)
    embedder = model.system.embedder
    assert isinstance(embedder, MaskBiasedAttention) and embedder.first_block == recipe.FIRST_BLOCK
    assert torch.equal(model.text_encoder().encode(["a dog"]), taught.text_encoder().encode(["a dog"]))
    images = recipe.crops_of(random.Random(0), [recipe.PackagePhotos(recipe.packages_in(data)[0], "train")], 3)
    torch.testing.assert_close(recipe.whole_embeds(taught.system, images).norm(dim=-1), torch.ones(3))


def test_packages_in_a_folder(tmp_path: Path) -> None:
    toy_package(tmp_path / "data" / "toy")
    assert [package.name for package in recipe.packages_in(tmp_path / "data")] == ["toy"]
    assert [package.name for package in recipe.packages_in(tmp_path / "data" / "toy")] == ["toy"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no data package"):
        recipe.packages_in(tmp_path / "empty")


def test_teachers_it_cannot_learn_from(tmp_path: Path) -> None:
    teacher = toy_model(tmp_path / "maft", "maft", TRANSFORMER)
    with pytest.raises(ValueError, match="pools the map"):
        recipe.train(toy_package(tmp_path / "toy"), tmp_path / "run", str(teacher))

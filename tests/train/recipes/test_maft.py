import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from lexiseg.data.packages import LabelledPhoto
from lexiseg.proposals.freeseg import FreeSegGenerator
from lexiseg.system import System
from lexiseg.train.recipes import maft as recipe
from lexiseg.types import TextBank
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.loading import settings_of
from lexiseg.zoo.maft import freeseg, maft
from lexiseg.zoo.model_folder import BUILDERS, Builder, load_folder
from tests.train.recipes.test_maftplus import Fixed, toy_package, toy_photo
from tests.zoo.toy_folders import ARGUMENTS, TRANSFORMER, toy_model

CROP = 64


def toy_system() -> System:
    torch.manual_seed(0)
    return maft(TRANSFORMER, device="cpu", **ARGUMENTS["maft"])


def toy_text() -> TextBank:
    rows = functional.normalize(torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    return TextBank(rows, rows, torch.tensor([0, 0, 1, 2]), torch.ones(3, dtype=torch.bool))


def batch() -> tuple[Any, Any]:
    photos = [toy_photo(), toy_photo(60, 40)]
    return recipe.batch_of(Fixed(0.9), photos, CROP, torch.device("cpu"))


def moved(losses: dict[str, torch.Tensor], names: tuple[str, ...], system: System) -> set[str]:
    """The tensors of the system that these losses move."""
    system.zero_grad(set_to_none=True)
    sum(losses[name] for name in names).backward(retain_graph=True)
    return {name for name, p in system.named_parameters() if p.grad is not None and p.grad.any()}


def test_what_the_second_step_trains() -> None:
    """By the names of the released tower: 8 tensors per block and the norm behind them."""
    with torch.device("meta"):
        tuned = recipe.prepare_tower(maft("ViT-B-16-quickgelu"))
    names = {name for name, p in tuned.embedder.named_parameters() if p.requires_grad}
    parts = [f"{part}.{kind}" for part in ("attn.out_proj", "ln_1", "ln_2") for kind in ("weight", "bias")]
    parts += ["attn.in_proj_weight", "attn.in_proj_bias"]
    expected = {f"tower.transformer.resblocks.{block}.{part}" for block in range(12) for part in parts}
    assert names == expected | {"tower.ln_post.weight", "tower.ln_post.bias"} and len(names) == 98
    groups = recipe.tower_groups(tuned)
    known = {id(p): name for name, p in tuned.embedder.named_parameters()}
    assert {known[id(group["params"][0])] for group in groups} == names
    for group in groups:
        norm = ".ln_" in known[id(group["params"][0])]
        assert group["weight_decay"] == (0.0 if norm else 1e-4) and group["lr"] == 1e-5


def test_the_released_list_of_what_trains(shared: Path) -> None:
    path = shared / "parity" / "maft" / "trainable-step2.json"
    with torch.device("meta"):
        tuned = recipe.prepare_tower(maft("ViT-B-16-quickgelu"))
    names = {name for name, p in tuned.embedder.named_parameters() if p.requires_grad}
    assert {name.replace("tower.", "IPCLIP.") for name in names} == set(json.loads(path.read_text())["names"])


def test_what_the_first_step_trains() -> None:
    system = toy_system()
    generator, head = recipe.prepare_generator(system)
    names = {id(p): name for name, p in system.named_parameters()}
    groups = {names[id(group["params"][0])]: group for group in recipe.generator_groups(generator)}
    trained = {name for name, p in system.named_parameters() if p.requires_grad}
    assert set(groups) == trained == {name for name in names.values() if name.startswith("generator.")}
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(1.5e-5 if name.startswith("generator.backbone.") else 1.5e-4)
        assert group["weight_decay"] in (0.0, 1.5e-4)
    spared = {name for name, group in groups.items() if not group["weight_decay"]}
    assert {"generator.head.decoder.query_feat.weight", "generator.head.interaction.layer_norm_k_1.bias"} <= spared
    decayed = {"generator.head.void_embedding.weight", "generator.head.interaction.gamma"}
    assert decayed <= set(groups) - spared
    assert head.training and not system.embedder.training


def test_the_prediction_before_the_last_has_no_loss() -> None:
    assert recipe.supervised(list("abcde")) == list("abce")  # type: ignore[arg-type, comparison-overlap]
    system, (images, targets) = toy_system(), batch()
    generator, _ = recipe.prepare_generator(system)
    losses = recipe.generator_losses(generator, images, targets, toy_text())
    assert len(losses) == 3 * 3  # three layers, four predictions
    changed = moved(losses, tuple(losses), system)
    assert all(name.startswith("generator.") for name in changed)
    assert {"generator.backbone.stem.conv1.weight", "generator.head.interaction.attn.k_proj.weight"} <= changed
    assert "generator.head.void_embedding.weight" in changed


def test_what_each_loss_of_the_second_step_moves() -> None:
    """The whole picture's pass never sees masks; both move the tower alone."""
    system, (images, targets) = toy_system(), batch()
    tuned = recipe.prepare_tower(system)
    with torch.no_grad():  # a start at which teacher and student differ
        for parameter in tuned.embedder.parameters():
            parameter.mul_(1.1)
    losses = recipe.tower_losses(tuned, images, targets, toy_text())
    trained = {name for name, p in system.named_parameters() if p.requires_grad}
    assert moved(losses, ("loss_mask_aware",), system) <= trained
    assert moved(losses, ("loss_distillation",), system) <= trained
    assert moved(losses, tuple(losses), system) >= {name for name in trained if "ln_post" in name or "ln_1" in name}
    assert not any(p.requires_grad for p in tuned.teacher.parameters())


def test_the_second_step_begins_where_nothing_has_moved() -> None:
    system, (images, targets) = toy_system(), batch()
    losses = recipe.tower_losses(recipe.prepare_tower(system), images, targets, toy_text())
    assert float(losses["loss_distillation"].detach()) == pytest.approx(0, abs=1e-10)
    assert float(losses["loss_mask_aware"].detach()) > 0


def test_dropout_of_the_frozen_generator() -> None:
    system, (images, targets) = toy_system(), batch()
    tuned = recipe.prepare_tower(system)
    found = {
        mode: [
            float(recipe.tower_losses(tuned, images, targets, toy_text(), mode)["loss_mask_aware"].detach())
            for _ in range(2)
        ]
        for mode in ("off", "official")
    }
    assert found["off"][0] == found["off"][1]
    assert found["official"][0] != found["official"][1]


def test_crops_are_filled_with_grey_that_is_in_no_mask() -> None:
    images, targets = recipe.batch_of(random.Random(3), [toy_photo(20, 90)], 64, torch.device("cpu"))
    assert images.pixels.shape == (1, 3, 64, 64) and images.sizes_hw == ((64, 64),)
    grey = (images.pixels[0] == 128).all(0)
    assert grey.any() and not grey.all()
    assert not targets[0].masks[:, grey].any()
    assert set(targets[0].labels.tolist()) <= {0, 2}


def test_unseen_classes() -> None:
    classes = ("sky", "cow", "tree", "road", "river", "grass")
    assert recipe.unseen_classes(classes, "tree, cow") == {1, 2}
    assert len(recipe.UNSEEN["coco-stuff"]) == len(recipe.UNSEEN["ade20k"]) == 15
    assert recipe.unseen_classes([f"class {i}" for i in range(150)], "ade20k") == set(recipe.UNSEEN["ade20k"])
    with pytest.raises(ValueError, match="giraffe.*not among the 6 classes"):
        recipe.unseen_classes(classes, "coco-stuff")
    with pytest.raises(ValueError, match="all classes"):
        recipe.unseen_classes(("a", "b"), "a,b")


def test_labels_without_unseen_classes() -> None:
    labels = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)
    photo = LabelledPhoto("x", np.zeros((2, 3, 3), np.uint8), labels, np.zeros_like(labels))
    photos = recipe.SeenPhotos([photo], 4, {1}, 255)
    assert photos.seen == (0, 2, 3)
    assert photos[0].labels.tolist() == [[0, 255, 1], [2, 255, 255]]


@pytest.mark.parametrize("step", ["generator", "tower"])
def test_two_steps_and_what_stays(step: Any, tmp_path: Path) -> None:
    system = toy_system()
    before = {name: x.clone() for name, x in system.state_dict().items()}
    photos = [toy_photo(), toy_photo(60, 40), toy_photo(50, 50)]
    options = {"batch": 2, "crop": CROP, "log_every": 1}
    assert recipe.train(system, toy_text(), photos, tmp_path, step, total_steps=2, **options)
    changed = {name for name, x in system.state_dict().items() if not torch.equal(before[name], x)}
    assert {name.split(".")[0] for name in changed} == {"generator" if step == "generator" else "embedder"}
    assert not system.generator.training
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    wanted = {"loss_ce", "loss_mask", "loss_dice"} if step == "generator" else {"loss_mask_aware", "loss_distillation"}
    assert len(lines) == 2 and wanted <= set(lines[0])


def test_from_the_first_step_to_the_second_and_on(tmp_path: Path) -> None:
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start", "maft", TRANSFORMER)
    options = {"batch": 1, "crop": CROP, "unseen": "dog"}
    first, second = tmp_path / "first", tmp_path / "second"
    assert recipe.train_package(data, first, str(start), step="generator", steps=1, **options)
    assert not recipe.train_package(data, second, str(first / "model"), steps=2, deadline=0.0, **options)
    assert not (second / "model").exists()
    assert recipe.train_package(data, second, str(first / "model"), steps=2, **options)
    given, drawn, tuned = (load_folder(folder) for folder in (start, first / "model", second / "model"))
    assert tuned.training_phrases == ("wall", "grass")
    states = [model.system.state_dict() for model in (given, drawn, tuned)]
    for name in states[0]:
        frozen_twice = torch.equal(states[0][name], states[1][name]), torch.equal(states[1][name], states[2][name])
        if name.startswith("embedder."):
            assert frozen_twice[0], name
        else:
            assert frozen_twice[1], name
    assert isinstance(tuned.system.generator.head, FreeSegGenerator)
    assert tuned.card["started_from"] == "model"


def test_a_freeseg_becomes_a_maft(tmp_path: Path) -> None:
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start", "freeseg", TRANSFORMER)
    assert recipe.train_package(data, tmp_path / "out", str(start), steps=1, batch=1, crop=CROP)
    assert settings_of(tmp_path / "out" / "model").builder == "maft"


def test_a_tower_alone_gets_a_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start", "maft_given", TRANSFORMER)
    sizes = {name: value for name, value in ARGUMENTS["freeseg"].items() if name not in ("side", "first_block")}
    small = Builder(partial(freeseg, **sizes), text_encoder)
    monkeypatch.setitem(BUILDERS, "freeseg", small)
    options = {"batch": 1, "crop": CROP, "steps": 1}
    assert recipe.train_package(data, tmp_path / "out", str(start), step="generator", **options)
    made, before = load_folder(tmp_path / "out" / "model").system, load_folder(start).system
    assert isinstance(made.generator.head, FreeSegGenerator)
    for name, value in before.embedder.state_dict().items():
        assert torch.equal(made.embedder.state_dict()[name], value)
    with pytest.raises(ValueError, match="masks of street-tiny are for --step tower"):
        recipe.train_package(data, tmp_path / "none", str(start), step="generator", masks="street-tiny", **options)


def test_masks_of_another_model(tmp_path: Path) -> None:
    """The tower alone, behind a generator that it is not saved with."""
    data, tower = toy_package(tmp_path / "toy"), toy_model(tmp_path / "tower", "maft_given", TRANSFORMER)
    drawer = toy_model(tmp_path / "fcclip", "fcclip", seed=4)
    options = {"batch": 2, "crop": CROP, "steps": 1}
    assert recipe.train_package(data, tmp_path / "out", str(tower), masks=str(drawer), **options)
    before, after = (load_folder(folder).system.state_dict() for folder in (tower, tmp_path / "out" / "model"))
    assert before.keys() == after.keys()
    assert not torch.equal(before["embedder.tower.ln_post.weight"], after["embedder.tower.ln_post.weight"])
    assert torch.equal(before["embedder.tower.proj"], after["embedder.tower.proj"])
    with pytest.raises(ValueError, match="dropout as in the official training is FreeSeg's"):
        recipe.train_package(data, tmp_path / "none", str(tower), masks=str(drawer), dropout="official", **options)
    with pytest.raises(ValueError, match="draws no masks: say which model does with --masks"):
        recipe.train_package(data, tmp_path / "none", str(tower), **options)


def test_what_the_command_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="generator, tower"):
        recipe.train_package(tmp_path, tmp_path, "start", step="both")
    with pytest.raises(ValueError, match="off, official"):
        recipe.train_package(tmp_path, tmp_path, "start", dropout="on")
    data, fcclip = toy_package(tmp_path / "toy"), toy_model(tmp_path / "fcclip", "fcclip")
    with pytest.raises(ValueError, match="'fcclip'; MAFT starts from"):
        recipe.train_package(data, tmp_path / "out", str(fcclip))
    with pytest.raises(TypeError, match="class token per mask"):
        recipe.prepare_tower(load_folder(fcclip).system)
    with pytest.raises(TypeError, match="FreeSeg's generator"):
        recipe.prepare_generator(load_folder(fcclip).system)

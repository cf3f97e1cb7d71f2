import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from lexiseg.data.packages import LabelledPhoto
from lexiseg.images import Canvas
from lexiseg.system import System
from lexiseg.train.losses import Criterion
from lexiseg.train.recipes import maftplus as recipe
from lexiseg.types import TextBank
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.maftplus import maftplus
from lexiseg.zoo.model_folder import load_folder, save_model_folder

TOWER = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop_path": 0.5,
        "image_size": 64,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
SMALL = {
    "width": 8,
    "mask_width": 8,
    "num_queries": 5,
    "encoder_layers": 1,
    "encoder_ffn_width": 8,
    "decoder_layers": 2,
    "decoder_ffn_width": 8,
    "heads": 2,
    "points": 2,
    "norm_groups": 2,
}
CANVAS = Canvas(short_edge=128, long_edge=192)
CRITERION = Criterion(num_points=32)


def toy_system() -> System:
    torch.manual_seed(0)
    return maftplus(TOWER, device="cpu", **SMALL)


def toy_text() -> TextBank:
    rows = functional.normalize(torch.randn(4, 1, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    return TextBank(rows, rows, torch.tensor([0, 0, 1, 2]), torch.ones(3, dtype=torch.bool))


def toy_photo(height: int = 40, width: int = 60) -> LabelledPhoto:
    """Left half class 0, right half class 2, nothing said below."""
    labels = np.full((height, width), 2, np.uint8)
    labels[:, : width // 2] = 0
    labels[-8:] = 255
    image = np.zeros((height, width, 3), np.uint8)
    image[labels == 0] = 200
    return LabelledPhoto("toy", image, labels, np.zeros_like(labels))


class Fixed(random.Random):
    """Always draws the same."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def random(self) -> float:
        return self.number


def batch() -> tuple:
    return recipe.batch_of(Fixed(0.9), [toy_photo(), toy_photo(60, 40)], CANVAS, torch.device("cpu"))


def gradients(losses: dict[str, torch.Tensor], names: tuple[str, ...], system: System) -> set[str]:
    """The parts of the system that these losses move."""
    system.zero_grad(set_to_none=True)
    sum(losses[name] for name in names).backward(retain_graph=True)
    return {name.split(".")[0] for name, p in system.named_parameters() if p.grad is not None and p.grad.any()}


def test_groups_follow_the_rule_of_the_official_trainer() -> None:
    system = toy_system()
    names = {id(p): name for name, p in system.named_parameters()}
    groups = {names[id(group["params"][0])]: group for group in recipe.parameter_groups(recipe.prepare(system))}
    assert set(groups) == {name for name, p in system.named_parameters() if p.requires_grad}
    frozen = {name for name, p in system.named_parameters() if not p.requires_grad}
    assert frozen == {name for name in names.values() if name.startswith("embedder.")} | {"scorer.logit_scale"}
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(1e-5 if name.startswith("encoder.") else 1e-4)
        assert group["lr"] == pytest.approx(recipe.LEARNING_RATE * group["lr_scale"])
        assert group["weight_decay"] in (0.0, 2e-5)
    decayed = {name for name, group in groups.items() if group["weight_decay"]}
    assert {
        "encoder.trunk.stages.0.blocks.0.gamma",
        "encoder.trunk.stem.0.bias",
        "scorer.transfer.linear.bias",
    } <= decayed
    spared = {"encoder.trunk.stem.1.weight", "scorer.transfer.norm.bias", "generator.void_embedding.weight"}
    assert spared <= set(groups) - decayed


def test_schedule() -> None:
    rates = [1e-4 * recipe.polynomial_schedule(step, 60_000) for step in (1, 1000, 27_500, 59_999)]
    assert rates == pytest.approx([9.99985e-5, 9.84987e-5, 5.75916e-5, 5.008e-9], rel=1e-4)


def test_whole_photo_at_the_size_of_the_test() -> None:
    image, labels = recipe.augment(Fixed(0.9), toy_photo(), CANVAS)
    assert image.shape == (128, 192, 3) and labels.shape == (128, 192)
    assert (labels[0, 0], labels[0, -1], labels[-1, 0]) == (0, 2, 255)
    flipped, turned = recipe.augment(Fixed(0.1), toy_photo(), CANVAS)
    assert np.array_equal(flipped, image[:, ::-1]) and np.array_equal(turned, labels[:, ::-1])


def test_one_mask_per_class_and_none_for_the_unlabelled() -> None:
    targets = recipe.targets_of(np.array([[2, 0, 2], [255, 0, 255]], np.uint8))
    assert targets.labels.tolist() == [0, 2]
    assert targets.masks.tolist() == [[[False, True, False]] * 2, [[True, False, True], [False] * 3]]
    assert targets.known is None
    assert len(recipe.targets_of(np.full((2, 2), 255, np.uint8)).labels) == 0


def test_padding_is_in_no_mask() -> None:
    images, targets = batch()
    assert images.canvas_hw == (192, 192)
    assert [target.masks.shape for target in targets] == [(2, 192, 192)] * 2
    assert not targets[0].masks[:, 128:].any() and not targets[1].masks[:, :, 128:].any()
    assert targets[0].masks[0, 0, 0] and targets[1].masks[1, 0, 127]


def test_what_each_loss_moves() -> None:
    """The generator learns from masks and classes alone, CLIP and the transfer from the other two losses alone."""
    system, (images, targets) = toy_system(), batch()
    tuned = recipe.prepare(system)
    with torch.no_grad():  # a start at which teacher and student differ
        for parameter in tuned.encoder.parameters():
            parameter.mul_(1.1)
    losses = recipe.losses_of(tuned, images, targets, toy_text(), CRITERION)
    own = ("loss_mask_aware", "loss_compensation")
    assert set(own) < set(losses) and len(losses) == 3 * 3 + 2
    assert gradients(losses, tuple(name for name in losses if name not in own), system) == {"generator"}
    assert gradients(losses, ("loss_mask_aware",), system) == {"encoder", "scorer"}
    assert gradients(losses, ("loss_compensation",), system) == {"encoder"}
    assert not any(p.requires_grad for p in tuned.teacher.parameters())


def test_compensation_is_a_tenth_of_the_distance_and_begins_at_zero() -> None:
    system, (images, targets) = toy_system(), batch()
    tuned = recipe.prepare(system)
    assert float(recipe.losses_of(tuned, images, targets, toy_text(), CRITERION)["loss_compensation"].detach()) == 0


def dropping(module: nn.Module) -> bool:
    return any(layer.training for layer in module.modules() if type(layer).__name__ == "DropPath")


def test_stochastic_depth_of_the_official_training() -> None:
    tuned = recipe.prepare(toy_system())
    seen = {}
    for mode in ("off", "official"):
        for step in (0, 4999, 5000):
            recipe.stochastic_depth(tuned, mode, step)
            seen[mode, step] = (dropping(tuned.teacher), dropping(tuned.encoder))
    assert seen == {
        ("off", 0): (False, False),
        ("off", 4999): (False, False),
        ("off", 5000): (False, False),
        ("official", 0): (True, False),
        ("official", 4999): (True, False),
        ("official", 5000): (True, True),
    }
    images, _ = batch()
    with torch.no_grad():
        assert not torch.equal(tuned.teacher(images).dense, tuned.teacher(images).dense)  # noisy answers
    tuned.teacher.add_module("norm", nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="batch norm"):
        recipe.stochastic_depth(tuned, "official", 0)


def test_two_steps_and_what_stays(tmp_path: Path) -> None:
    system = toy_system()
    before = {name: x.clone() for name, x in system.state_dict().items()}
    photos = [toy_photo(), toy_photo(60, 40), toy_photo(50, 50)]
    options = {"batch": 2, "canvas": CANVAS, "criterion": CRITERION, "log_every": 1}
    assert recipe.train(system, toy_text(), photos, tmp_path, total_steps=2, **options)
    changed = {name for name, x in system.state_dict().items() if not torch.equal(before[name], x)}
    assert {name.split(".")[0] for name in changed} == {"encoder", "generator", "scorer"}
    assert "scorer.logit_scale" not in changed
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and {"loss_mask_aware", "loss_compensation"} <= set(lines[0])
    assert lines[0]["loss_compensation"] == 0  # nothing has moved yet


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    options = {"batch": 1, "canvas": CANVAS, "criterion": CRITERION, "total_steps": 3}
    photos = [toy_photo(), toy_photo(60, 40)]
    whole, parts = toy_system(), toy_system()
    recipe.train(whole, toy_text(), photos, tmp_path / "whole", **options)
    assert not recipe.train(parts, toy_text(), photos, tmp_path / "parts", deadline=0.0, **options)
    # A new process builds the system the run began with; its trunk is the teacher again.
    parts = toy_system()
    recipe.train(parts, toy_text(), photos, tmp_path / "parts", **options)
    for name, x in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], x)


def test_systems_it_cannot_train() -> None:
    with pytest.raises(TypeError, match="image-conditioned"):
        recipe.prepare(System(None, nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity()))


def toy_package(folder: Path) -> Path:
    """Three labelled photos on disk."""
    ids = ["a", "b", "c"]
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for number, id in enumerate(ids):
        photo = toy_photo(40 + 10 * number, 60)
        Image.fromarray(photo.image).save(folder / "images" / f"{id}.jpg")
        Image.fromarray(photo.labels).save(folder / "labels" / f"{id}.png")
    description = {"name": "toy", "classes": ["wall", "dog", "grass"], "ignore": 255, "splits": {"train": ids}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def toy_model(folder: Path) -> Path:
    """An FC-CLIP model on disk."""
    torch.manual_seed(0)
    system, text = fcclip(TOWER, device="cpu", **SMALL), text_encoder(TOWER, device="cpu")
    arguments = {"tower": TOWER, **SMALL, "alpha": 0.1}
    return save_model_folder(
        folder, system, text, builder="fcclip", arguments=arguments, templates=["a photo of a {}."], canvas=CANVAS
    )


def test_command_tunes_an_fcclip_model_and_goes_on_with_the_result(tmp_path: Path) -> None:
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start")
    options = {"batch": 1, "short_edge": 128, "long_edge": 192, "points": 16}
    first = tmp_path / "first"
    assert not recipe.train_package(data, first, str(start), steps=2, deadline=0.0, **options)
    assert not (first / "model").exists()
    assert recipe.train_package(data, first, str(start), steps=2, **options)

    given, tuned = load_folder(start).system.state_dict(), load_folder(first / "model")
    state = tuned.system.state_dict()
    assert tuned.training_phrases == ("wall", "dog", "grass")
    assert tuned.system.scorer.transfer.norm_order == "after_sum"
    assert set(state) - set(given) == {name for name in state if name.startswith("scorer.transfer.")}
    same = {name for name, x in given.items() if torch.equal(x, state[name])}
    assert {name for name in given if name.startswith("embedder.")} | {"scorer.logit_scale"} <= same
    assert "generator.void_embedding.weight" not in same and "encoder.trunk.stem.0.weight" not in same

    again = tmp_path / "again"
    assert recipe.train_package(data, again, str(first / "model"), steps=1, **options)
    assert load_folder(again / "model").card["started_from"] == "model"


def test_crops_with_a_mask_per_segment(tmp_path: Path) -> None:
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start")
    options = {"batch": 2, "steps": 2, "targets": "segments", "crop": 128, "points": 16, "norm_order": "before_sum"}
    assert recipe.train_package(data, tmp_path / "out", str(start), **options)
    assert load_folder(tmp_path / "out" / "model").system.scorer.transfer.norm_order == "before_sum"


def test_what_the_command_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="after_sum, before_sum"):
        recipe.train_package(tmp_path, tmp_path, norm_order="sideways")
    with pytest.raises(ValueError, match="classes, segments"):
        recipe.train_package(tmp_path, tmp_path, targets="boxes")
    data = toy_package(tmp_path / "toy")
    folder = save_model_folder(
        tmp_path / "clusters",
        clustered(TOWER, device="cpu"),
        text_encoder(TOWER, device="cpu"),
        builder="clustered",
        arguments={"tower": TOWER},
        templates=["{}"],
    )
    with pytest.raises(ValueError, match="'clustered'; MAFT\\+ starts from"):
        recipe.train_package(data, tmp_path / "out", str(folder))

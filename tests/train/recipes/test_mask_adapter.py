"""Two steps of both stages on a toy, on FC-CLIP and on MAFT+."""

import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from lexiseg.clip.projection import Projection
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.regions.mask_adapter import MaskAdapter, MaskAdapterPool
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.image_conditioned import ContentDependentTransfer, ImageConditioned
from lexiseg.system import System
from lexiseg.train.mask_adapter import label_loss, present, stack, truth_slots
from lexiseg.train.points import uniform
from lexiseg.train.recipes import mask_adapter as recipe
from lexiseg.train.recipes.fcclip import batch_of
from lexiseg.types import TextBank
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.maftplus import maftplus
from lexiseg.zoo.model_folder import load_folder, save_model_folder
from tests.train.recipes.test_fcclip import SMALL, ToyTrunk, toy_photo
from tests.train.recipes.test_maftplus import toy_model, toy_package
from tests.zoo.conftest import GENERATOR, TOWERS

WIDTH = 8


def toy_text() -> TextBank:
    rows = functional.normalize(torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    return TextBank(rows, rows, torch.arange(3), torch.ones(3, dtype=torch.bool))


def toy_system(on_maftplus: bool) -> System:
    torch.manual_seed(0)
    adapter = MaskAdapter(WIDTH, width=8, mask_width=4, num_maps=3)
    generator = fcclip_generator((4, 4, 4, 4), joint_width=WIDTH, **SMALL)
    nn.init.normal_(generator.decoder.query_feat.weight)
    order = "memory" if on_maftplus else "position"
    embedder = MaskAdapterPool(adapter, Projection(4, WIDTH, norm_eps=1e-6), 0.45 if on_maftplus else 0.5, order)
    scorer = ImageConditioned(ContentDependentTransfer(WIDTH, heads=1)) if on_maftplus else Cosine()
    return System(ToyTrunk(), generator, embedder, scorer, nn.Identity())


PHOTOS = [toy_photo(), toy_photo(70, 50), toy_photo(30, 90)]
KINDS = pytest.mark.parametrize("on_maftplus", [False, True], ids=["fcclip", "maftplus"])
STAGES = pytest.mark.parametrize("stage", [recipe.warm_up, recipe.train])


@KINDS
@STAGES
def test_two_steps_change_the_adapter_alone(stage, on_maftplus: bool, tmp_path: Path) -> None:
    system = toy_system(on_maftplus)
    before = {name: x.clone() for name, x in system.state_dict().items()}
    assert stage(system, toy_text(), PHOTOS, tmp_path, total_steps=2, batch=2, crop=64, log_every=1)
    after = system.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    void = {"generator.void_embedding.weight"} if stage is recipe.train and not on_maftplus else set()
    assert void <= changed and "embedder.adapter.fuse.weight" in changed
    assert all(name.startswith("embedder.adapter.") for name in changed - void)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@STAGES
def test_a_run_goes_on_where_it_ended(stage, tmp_path: Path) -> None:
    options = {"total_steps": 3, "batch": 2, "crop": 64}
    whole, parts = toy_system(False), toy_system(False)
    stage(whole, toy_text(), PHOTOS, tmp_path / "whole", **options)
    assert not stage(parts, toy_text(), PHOTOS, tmp_path / "parts", deadline=0.0, **options)
    stage(parts, toy_text(), PHOTOS, tmp_path / "parts", **options)
    for name, x in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], x)


def test_it_learns(tmp_path: Path) -> None:
    """Bright and dark halves are two classes: the warm-up finds out where to look for each."""
    system = toy_system(False)
    parts = recipe.parts_of(system)
    images, targets = batch_of(random.Random(0), PHOTOS, 64, torch.device("cpu"))
    masks, labels = stack([truth_slots(present(target), 4, uniform(torch.device("cpu"))) for target in targets])

    @torch.no_grad()
    def loss() -> float:
        void = parts.generator.void_embedding
        _, logits = recipe.embeds_and_logits(parts, parts.encoder(images), masks, toy_text(), void)
        return float(label_loss(logits, labels))

    before = loss()
    recipe.warm_up(system, toy_text(), PHOTOS, tmp_path, total_steps=40, batch=2, crop=64)
    assert loss() < before


def test_groups_follow_the_rule_of_the_official_trainer() -> None:
    parts = recipe.parts_of(toy_system(False))
    void = parts.generator.void_embedding.requires_grad_(True)
    names = {id(p): name for name, p in parts.embedder.adapter.named_parameters()} | {id(void.weight): "void"}
    groups = recipe.parameter_groups(parts.embedder.adapter, void, 0.05)
    decay = {names[id(group["params"][0])]: group["weight_decay"] for group in groups}
    assert set(decay) == set(names.values())
    assert {name for name, value in decay.items() if value == 0} == {"norm.weight", "norm.bias", "void"}
    void.requires_grad_(False)
    assert len(recipe.parameter_groups(parts.embedder.adapter, void, 0.05)) == len(groups) - 1


def test_schedules() -> None:
    steps = (0, 43_370, 43_371, 47_313, 47_314)
    assert [recipe.step_schedule(step, recipe.TOTAL_STEPS) for step in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert recipe.polynomial_schedule(0, 100) == 1
    assert recipe.polynomial_schedule(50, 100) == pytest.approx(math.sqrt(0.5) ** 1.8)


def test_systems_it_cannot_train(tmp_path: Path) -> None:
    system = System(None, nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity())
    with pytest.raises(TypeError, match="FC-CLIP's generator"):
        recipe.train(system, toy_text(), PHOTOS, tmp_path)


@pytest.mark.parametrize("builder", ["fcclip", "maftplus"])
def test_the_command_trains_and_goes_on(builder: str, tmp_path: Path) -> None:
    """From a model without an adapter to one with it, through both stages, stopped and started again between."""
    data, start = toy_package(tmp_path / "toy"), toy_model(tmp_path / "start")
    if builder == "maftplus":
        tower, sizes = TOWERS["convnext mlp"], GENERATOR
        parts = maftplus(tower, **sizes, device="cpu"), text_encoder(tower, device="cpu")
        arguments = {"builder": "maftplus", "arguments": {"tower": tower, **sizes}, "templates": ["{}"]}
        start = save_model_folder(tmp_path / "maftplus", *parts, **arguments)
    options = {"warmup_steps": 2, "steps": 2, "batch": 1, "warmup_batch": 1, "crop": 64, "warmup_crop": 64}
    options |= {"adapter_width": 8, "long_edge": 96}
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    for _ in range(2):  # a step of the first stage; its last, and a step of the second
        assert not recipe.train_package(data, pieces, str(start), deadline=0.0, **options)
        assert not (pieces / "model").exists()
    assert recipe.train_package(data, pieces, str(start), **options)
    assert recipe.train_package(data, whole, str(start), **options)

    given, made = load_folder(start).system.state_dict(), load_folder(pieces / "model")
    state, same = made.system.state_dict(), load_folder(whole / "model").system.state_dict()
    for name, x in state.items():
        torch.testing.assert_close(x, same[name])
    fresh = {name for name in state if name.startswith("embedder.adapter.")}
    assert fresh and set(state) - set(given) == fresh
    moved = {name for name, x in given.items() if not torch.equal(x, state[name])}
    assert moved == ({"generator.void_embedding.weight"} if builder == "fcclip" else set())
    assert made.canvas.long_edge == 96 and made.card["steps"] == [2, 2]


def test_models_that_an_adapter_cannot_stand_on(tmp_path: Path) -> None:
    tower = TOWERS["convnext linear"]
    parts = clustered(tower, device="cpu"), text_encoder(tower, device="cpu")
    arguments = {"builder": "clustered", "arguments": {"tower": tower}, "templates": ["{}"]}
    folder = save_model_folder(tmp_path / "clusters", *parts, **arguments)
    with pytest.raises(ValueError, match="an adapter stands on FC-CLIP or on MAFT"):
        recipe.train_package(toy_package(tmp_path / "toy"), tmp_path / "out", str(folder))

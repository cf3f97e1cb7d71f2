"""OVSeg's region classifier in training: what each stage changes, orders, resuming, parts for the converter."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lexiseg.clip.open_clip import build_crop_tower
from lexiseg.data.pairs import FILL, MaskWordPairs, Pair, Shard, shard_path, shown_part, write_shard
from lexiseg.train.clip_adaptation import of_all_processes, random_view
from lexiseg.train.loop import launch
from lexiseg.train.recipes import ovseg as recipe
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import load_folder, save_model_folder
from lexiseg.zoo.ovseg import ovseg_given
from tests.train.recipes.test_maftplus import toy_model

VIT = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 40, 230), "grey": (128, 128, 128)}


def toy_pairs(folder: Path) -> Path:
    """Rectangles of four colours, each with its word; the right half of each is blank."""
    rng = np.random.default_rng(0)
    regions, pairs = {}, []
    for number in range(12):
        word = list(COLOURS)[number % 4]
        region = np.full((20 + number, 24, 3), FILL, np.uint8)
        region[:, :12] = np.clip(np.array(COLOURS[word]) + rng.integers(-20, 20, (20 + number, 12, 3)), 0, 255)
        regions[f"regions/{number}.png"] = region
        pairs.append(Pair(f"regions/{number}.png", word, str(number), 0, 0.5, 0.1))
    folder.mkdir(parents=True)
    write_shard(shard_path(folder, 0), Shard(tuple(pairs), regions, {}))
    return folder


def toy_clip(folder: Path, prompt_depth: int = 0) -> Path:
    """A region classifier on masked crops, a transformer, on disk."""
    torch.manual_seed(0)
    arguments = {"tower": VIT, "prompt_depth": prompt_depth}
    system, text = ovseg_given(**arguments, device="cpu"), text_encoder(VIT, device="cpu")
    return save_model_folder(folder, system, text, builder="ovseg_given", arguments=arguments, templates=["a {}."])


OPTIONS = {"epochs": 1, "prompt_epochs": 1, "batch": 4, "learning_rate": 1e-3, "prompt_learning_rate": 0.05}


def changed(start: Path, model: Path) -> set[str]:
    """Which tensors of the tower are others now: "tower", "prompts"."""
    before, after = (load_folder(path).system.embedder.tower.state_dict() for path in (start, model))
    names = {name for name, x in after.items() if name not in before or not torch.equal(before[name], x)}
    return {"prompts" if name == "mask_embedding" else "tower" for name in names}


@pytest.mark.parametrize(
    ("order", "expected", "stages"),
    [
        ("full", {"tower"}, ["full"]),
        ("prompts", {"prompts"}, ["prompts"]),
        ("full-prompts", {"tower", "prompts"}, ["full", "prompts"]),
        ("prompts-full", {"tower", "prompts"}, ["full", "prompts"]),
        ("together", {"tower", "prompts"}, ["together"]),
    ],
)
def test_orders(order: str, expected: set[str], stages: list[str], tmp_path: Path) -> None:
    pairs, start, out = toy_pairs(tmp_path / "pairs"), toy_clip(tmp_path / "start"), tmp_path / "out"
    assert recipe.train_pairs(pairs, out, str(start), order=order, **OPTIONS)
    assert changed(start, out / "model") == expected
    assert sorted(path.stem for path in out.glob("*.safetensors")) == stages
    model = load_folder(out / "model")
    assert model.training_phrases == ("blue", "green", "grey", "red") and model.card["order"] == order
    prompts = model.system.embedder.tower.mask_embedding
    assert (prompts is None) == (order == "full")


def test_a_convnet_learns_what_blank_pixels_show(tmp_path: Path) -> None:
    pairs, start, out = toy_pairs(tmp_path / "pairs"), toy_model(tmp_path / "start"), tmp_path / "out"
    assert recipe.train_pairs(pairs, out, str(start), order="prompts", crop_side=32, **OPTIONS)
    tower = load_folder(out / "model").system.embedder.tower
    assert tower.image_size == 32 and tower.mask_embedding.any()
    pixels, keep = torch.randn(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    torch.testing.assert_close(tower(pixels, keep), tower(pixels))
    keep[0, :, 16:] = False
    other = pixels.clone()
    other[0, :, :, 16:] = 7
    assert not torch.allclose(tower(pixels, keep)[0], tower(pixels)[0])
    torch.testing.assert_close(tower(pixels, keep), tower(other, keep))
    assert not list(out.glob("*.safetensors"))  # OpenAI had no ConvNet


def test_it_learns_the_words(tmp_path: Path) -> None:
    pairs, start = toy_pairs(tmp_path / "pairs"), toy_model(tmp_path / "start")
    found = MaskWordPairs(pairs)

    def right(folder: Path) -> float:
        model, system, _ = recipe.start_system(folder, "full", 32, torch.device("cpu"))
        rows = torch.stack(list(recipe.word_rows(model, found.words, "{}").values()))
        regions = [found[number][0] for number in range(len(found))]
        pixels, masks = recipe.batch_of(random.Random(0), regions, 32, torch.device("cpu"))
        tower = system.embedder.tower
        with torch.no_grad():
            best = (tower(pixels, tower.keep(masks)) @ rows.T).argmax(1)
        return sum(found.words[i] == found[number][1] for number, i in enumerate(best.tolist())) / len(found)

    options = {**OPTIONS, "epochs": 20, "learning_rate": 3e-3, "warmup": 5, "draw": "distinct"}
    assert recipe.train_pairs(pairs, tmp_path / "out", str(start), order="full", crop_side=32, **options)
    assert right(tmp_path / "out" / "model") >= 0.75 > right(start)


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    pairs, start = toy_pairs(tmp_path / "pairs"), toy_clip(tmp_path / "start")
    options = {**OPTIONS, "order": "full-prompts", "start": str(start)}
    assert recipe.train_pairs(pairs, tmp_path / "whole", **options)
    stops = 0
    while not recipe.train_pairs(pairs, tmp_path / "parts", **options, deadline=0.0):
        stops += 1
        assert not (tmp_path / "parts" / "model").exists() and stops < 10
    assert stops >= 3  # after each step
    whole, parts = (load_folder(tmp_path / name / "model").system.state_dict() for name in ("whole", "parts"))
    for name, x in whole.items():
        torch.testing.assert_close(parts[name], x)


def test_parts_have_openais_names(tmp_path: Path) -> None:
    pairs, start, out = toy_pairs(tmp_path / "pairs"), toy_clip(tmp_path / "start"), tmp_path / "out"
    recipe.train_pairs(pairs, out, str(start), order="full-prompts", **OPTIONS)
    full, prompts = load_file(out / "full.safetensors"), load_file(out / "prompts.safetensors")
    assert {"visual.class_embedding", "token_embedding.weight", "text_projection", "logit_scale"} <= full.keys()
    assert "visual.mask_embedding" not in full and list(prompts) == ["visual.mask_embedding"]


def test_what_decays() -> None:
    adapted = recipe.Adapted(build_crop_tower(VIT, prompt_depth=2, device="cpu"))
    names = {id(p): name for name, p in adapted.named_parameters()}
    for stage, trained in ((recipe.FULL, 45), (recipe.PROMPTS, 2), (recipe.TOGETHER, 46)):
        recipe.prepare(adapted, stage)
        groups = recipe.parameter_groups(adapted, stage, 500.0)
        assert len(groups) == trained
        decays = {names[id(group["params"][0])] for group in groups if group["weight_decay"]}
        assert not {"logit_scale", "tower.mask_embedding", "tower.class_embedding"} & decays
        assert ("tower.positional_embedding" in decays) == stage.tower == ("tower.proj" in decays)
        scales = {names[id(group["params"][0])]: group["lr_scale"] for group in groups}
        assert scales["logit_scale"] == 1.0
        assert scales.get("tower.mask_embedding") == {"full": None, "prompts": 1.0, "together": 500.0}[stage.name]


def test_the_scale_stays_between_one_and_a_hundred() -> None:
    adapted = recipe.Adapted(torch.nn.Identity(), 30.0)
    assert float(adapted.factor().detach()) == pytest.approx(30)
    for value, expected in ((9.0, 100.0), (-1.0, 1.0)):
        with torch.no_grad():
            adapted.logit_scale.fill_(value)
        assert float(adapted.factor().detach()) == pytest.approx(expected)


def test_distinct_words() -> None:
    words = ["a", "a", "a", "b", "b", "c"]
    numbers = recipe.distinct_numbers(random.Random(0), words, 3)
    assert sorted(words[number] for number in numbers) == ["a", "b", "c"]
    assert len(recipe.distinct_numbers(random.Random(0), words, 8)) == 3


def test_random_views_keep_the_colour_of_the_background() -> None:
    region = np.full((40, 60, 3), FILL, np.uint8)
    region[:, :30] = 255
    views = [random_view(random.Random(seed), region, 32) for seed in range(4)]
    for view in views:
        shown = shown_part(view)
        assert view.shape == (32, 32, 3) and shown[:, :12].all() and not shown[:, -8:].any()
    assert not np.array_equal(views[0], views[1])
    line = random_view(random.Random(0), np.zeros((1, 50, 3), np.uint8), 8)  # no part of it has a usual shape
    assert line.shape == (8, 8, 3) and not line.any()


def gathers(out: Path) -> None:
    """One of two processes: its own row has a gradient, the other's is there all the same."""
    rank = torch.distributed.get_rank()
    row = torch.full((1, 2), float(rank + 1), requires_grad=True)
    rows = of_all_processes(row)
    (rows * torch.tensor([[1.0], [10.0]])).sum().backward()
    (out / str(rank)).write_text(repr([rows.tolist(), row.grad.tolist()]))


@pytest.mark.slow
def test_rows_of_all_processes(tmp_path: Path) -> None:
    launch(gathers, 2, tmp_path, tmp_path)
    rows = [[1.0, 1.0], [2.0, 2.0]]
    assert (tmp_path / "0").read_text() == repr([rows, [[1.0, 1.0]]])
    assert (tmp_path / "1").read_text() == repr([rows, [[10.0, 10.0]]])


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    pairs = toy_pairs(tmp_path / "pairs")
    with pytest.raises(ValueError, match="'both': choose one of full, prompts"):
        recipe.train_pairs(pairs, tmp_path / "out", order="both")
    with pytest.raises(ValueError, match="no place for prompts"):
        recipe.prepare(recipe.Adapted(build_crop_tower(VIT, device="cpu")), recipe.PROMPTS)
    start = toy_clip(tmp_path / "start")
    with pytest.raises(ValueError, match="reads crops of 32 pixels, not of 64"):
        recipe.train_pairs(pairs, tmp_path / "out", str(start), crop_side=64)

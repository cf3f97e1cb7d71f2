"""OVSeg assembled: small systems, their verdicts, and official checkpoints into model folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexiseg.backbones.resnet import ResNet
from lexiseg.backbones.swin import Swin
from lexiseg.images import Canvas
from lexiseg.scoring.fusion import PowerProduct, RegionOnly
from lexiseg.segmenter import Segmenter
from lexiseg.weights import ovseg as layout
from lexiseg.weights.rules import ConversionError, source_name
from lexiseg.zoo.composition import CompositionError
from lexiseg.zoo.convert import convert, convert_state, published_entry, recognise
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.loading import compose_folder, load
from lexiseg.zoo.model_folder import load_folder
from lexiseg.zoo.ovseg import build_backbone, ovseg
from tests.proposals.tiny_transformers import tiny_sam
from tests.train.recipes.test_maftplus import toy_model
from tests.zoo.conftest import TEXT, randomise

TOWER: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": TEXT | {"width": 64, "heads": 1},
}
SWIN = {"width": 8, "depths": [1, 2, 1, 1], "heads": [1, 2, 2, 4], "window": 3}
RESNET = {"depths": [1, 1, 2, 2], "width": 8, "last_dilations": [1, 2]}
GENERATOR = {
    "width": 32,
    "mask_width": 24,
    "num_queries": 6,
    "decoder_width": 16,
    "decoder_layers": 2,
    "decoder_ffn_width": 20,
    "class_width": 12,
}


def official(system: torch.nn.Module, text: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dicts under the official names, with what else the files hold."""
    rules = [rule for rule in layout.SYSTEM_RULES if rule.pattern != "sem_seg_head.{*}"]
    source = {source_name(name, rules): tensor for name, tensor in system.state_dict().items()}
    source |= {layout.CLIP + name: tensor for name, tensor in text.state_dict().items()}
    for name in [name for name in source if name.endswith("relative_position_bias_table")]:
        source[name.replace("bias_table", "index")] = torch.zeros(9, 9, dtype=torch.int64)
    source |= {"criterion.empty_weight": torch.ones(172), layout.CLIP + "logit_scale": torch.tensor(4.0)}
    return source | {f"clip_adapter.pixel_{kind}": torch.ones(1, 3, 1, 1) for kind in ("mean", "std")}


@pytest.mark.parametrize("backbone", [SWIN, RESNET], ids=["swin", "resnet"])
def test_a_small_system_runs_on_a_batch(backbone: dict[str, Any], run: Any) -> None:
    torch.manual_seed(0)
    system = ovseg(TOWER, backbone=backbone, threshold=0.3, device="cpu", **GENERATOR)
    masks, scores = run(system)
    assert masks.shape == (2, 6, 16, 24)
    assert scores.class_probs.shape == (2, 6, 3) and scores.class_probs.isfinite().all()


@pytest.mark.parametrize("backbone", [SWIN, RESNET], ids=["swin", "resnet"])
def test_from_an_official_file_to_the_same_numbers(backbone: dict[str, Any], run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    large = backbone is SWIN
    system = ovseg(TOWER, backbone=backbone, threshold=0.4 if large else 0.5, device="cpu", **GENERATOR)
    text = text_encoder(TOWER, device="cpu")
    randomise(system)
    randomise(text, 1)
    with torch.no_grad():
        for parameter in system.generator.backbone.parameters():
            parameter.mul_(0.1)  # all weights are positive now: deep down they would add up without end
    source = official(system, text)
    torch.save({"model": source, "iteration": 3}, tmp_path / "toy.pth")

    report = convert(tmp_path / "toy.pth", tmp_path / "out")
    model = load_folder(tmp_path / "out")

    assert report.layout == ("ovseg-large" if large else "ovseg-small")
    assert len(report.ignored) + report.system_tensors + report.text_tensors == len(source) and report.fresh == {}
    assert (model.canvas.short_edge, model.canvas.long_edge) == ((640, 2560) if large else (512, 2048))
    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks)
    assert torch.equal(scores.class_probs, same_scores.class_probs)
    assert torch.equal(text.encode(["a cat"]), model.text_encoder().encode(["a cat"]))


def test_one_file_serves_with_a_users_words_too(tmp_path: Path) -> None:
    system = ovseg(TOWER, backbone=SWIN, device="cpu", **GENERATOR)
    torch.save(official(system, text_encoder(TOWER, device="cpu")), tmp_path / "toy.pth")
    convert(tmp_path / "toy.pth", tmp_path / "out", "ovseg-large-words")
    model = load_folder(tmp_path / "out")
    assert isinstance(model.system.fuse, RegionOnly)
    assert model.system.embedder.threshold == model.outputs.paint_threshold == 0.35


def test_what_decides() -> None:
    both, clip = (ovseg(TOWER, backbone=SWIN, verdict=verdict, **GENERATOR) for verdict in ("both", "clip"))
    assert isinstance(both.fuse, PowerProduct) and both.fuse.weight == 0.7
    assert isinstance(clip.fuse, RegionOnly)
    assert "scorer.logit_scale" not in both.state_dict()
    assert not any(parameter.requires_grad for parameter in both.embedder.parameters())


def test_an_older_name_of_the_pixel_decoder() -> None:
    system, text = ovseg(TOWER, backbone=SWIN, **GENERATOR), text_encoder(TOWER)
    source = official(system, text)
    older = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): tensor for name, tensor in source.items()}
    account, *_ = convert_state(older, {"tower": TOWER, "backbone": SWIN, **GENERATOR}, "ovseg-large")
    assert account.used["sem_seg_head.layer_4.weight"] == "generator.head.pixel_decoder.layer_4.weight"


@pytest.mark.parametrize(
    ("name", "tower", "backbone", "arguments"),
    [
        ("ovseg-small", "ViT-B-16-quickgelu", "resnet101c", {"threshold": 0.5}),
        ("ovseg-large", "ViT-L-14-quickgelu", "swin_base", {}),
    ],
)
def test_published_models_are_recognised_by_their_shapes(
    name: str, tower: str, backbone: str, arguments: dict[str, float]
) -> None:
    source = official(ovseg(tower, backbone=backbone), text_encoder(tower))
    assert recognise(Path("file"), source) == name
    described = layout.describe(source)
    assert (described["tower"], described["backbone"], described["prompt_depth"]) == (tower, backbone, 3)
    entry = published_entry("ovseg", {"tower": tower, "backbone": backbone, **arguments})
    assert entry is not None and entry.name == name and "BY-NC" in entry.weights_licence


def test_backbones_by_name_and_by_size() -> None:
    with torch.device("meta"):
        assert isinstance(build_backbone("resnet101c"), ResNet)
        assert isinstance(build_backbone("swin_base"), Swin)
        assert build_backbone(RESNET).channels == (32, 64, 128, 256)
        with pytest.raises(ValueError, match="no backbone is called"):
            build_backbone("resnet50")


def clip_of(source: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The CLIP of an official checkpoint as a file of its own."""
    return {name.removeprefix(layout.CLIP): tensor for name, tensor in source.items() if name.startswith(layout.CLIP)}


def test_an_adapted_clip_alone_names_given_masks(tmp_path: Path) -> None:
    system, text = ovseg(TOWER, backbone=SWIN, device="cpu", **GENERATOR), text_encoder(TOWER, device="cpu")
    state = {f"module.{name}": tensor for name, tensor in clip_of(official(system, text)).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "clip.pt")
    report = convert(tmp_path / "clip.pt", tmp_path / "out")
    model = load_folder(tmp_path / "out")
    assert report.layout == "ovseg-clip" and len(report.ignored) == 1
    assert model.templates == ("a photo of {}",) and model.outputs.granularity == 0.8
    assert model.system.embedder.tower.prompt_depth == 3
    for name, tensor in system.embedder.state_dict().items():
        assert torch.equal(model.system.embedder.state_dict()[name], tensor)

    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    masks = np.zeros((2, 48, 64), bool)
    masks[0, :20], masks[1, 30:] = True, True
    result = Segmenter(model, "cpu")(photo, "sky, grass", "instance", masks=masks)
    assert [segment.label in ("sky", "grass") for segment in result.segments] == [True, True]


def test_a_clip_trained_afterwards_takes_the_place_of_the_first(tmp_path: Path) -> None:
    before, after = (ovseg(TOWER, backbone=SWIN, device="cpu", **GENERATOR) for _ in range(2))
    randomise(after, 5)
    text = text_encoder(TOWER, device="cpu")
    torch.save(official(before, text), tmp_path / "segmenter.pth")
    trained = clip_of(official(after, text))
    torch.save({"state_dict": trained}, tmp_path / "clip.pt")
    convert(tmp_path / "segmenter.pth", tmp_path / "out", clips=[tmp_path / "clip.pt"])
    model = load_folder(tmp_path / "out")
    state, of_clip, of_generator = model.system.state_dict(), after.state_dict(), before.state_dict()
    for name in state:
        assert torch.equal(state[name], (of_clip if name.startswith("embedder.") else of_generator)[name]), name
    assert model.card["joined_with"] == "clip.pt"

    del trained["visual.mask_embedding"]
    merged = layout.with_clip(official(before, text), trained)
    assert layout.describe(merged)["prompt_depth"] == 0
    trained["visual.proj"] = torch.zeros(64, 3)
    with pytest.raises(ConversionError, match=r"1 have another shape \(visual.proj\)"):
        layout.with_clip(official(before, text), trained)
    with pytest.raises(ConversionError, match="needed are"):
        layout.with_clip(trained, trained)


def test_parts_trained_one_after_the_other_are_joined(tmp_path: Path) -> None:
    before, after = (ovseg(TOWER, backbone=SWIN, device="cpu", **GENERATOR) for _ in range(2))
    randomise(after, 5)
    text = text_encoder(TOWER, device="cpu")
    full = clip_of(official(after, text))
    prompts = {"visual.mask_embedding": full.pop("visual.mask_embedding")}
    files = {"segmenter.pth": official(before, text), "full.pth": full, "prompts.pth": prompts}
    for name, state in files.items():
        torch.save(state, tmp_path / name)
    segmenter, tuned, learned = (tmp_path / name for name in files)
    expected = after.embedder.tower.state_dict()

    def tower(*parts: Path, file: Path = segmenter) -> dict[str, torch.Tensor]:
        convert(file, tmp_path / "out", clips=parts)
        return load_folder(tmp_path / "out").system.embedder.tower.state_dict()

    both, alone, without = tower(tuned, learned), tower(learned, file=tuned), tower(learned, tuned)
    for name, tensor in expected.items():
        assert torch.equal(both[name], tensor) and torch.equal(alone[name], tensor), name
    assert expected.keys() - without.keys() == {"mask_embedding"}  # a new CLIP has its own prompts, or none
    only = tower(learned)
    assert torch.equal(only["mask_embedding"], expected["mask_embedding"])
    assert torch.equal(only["proj"], before.embedder.tower.proj)
    assert load_folder(tmp_path / "out").card["joined_with"] == "prompts.pth"
    with pytest.raises(ConversionError, match=r"prompts for 3 places of 64 channels, but the CLIP has 16 of 64"):
        layout.with_prompts(full, {"visual.mask_embedding": torch.zeros(1, 3, 64)})
    with pytest.raises(ConversionError, match="needed are"):
        layout.with_prompts(prompts, prompts)


@pytest.mark.parametrize("chosen", ["ovseg-large", "ovseg-large-words"])
def test_from_the_front_door(chosen: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    system, text = ovseg(TOWER, backbone=SWIN, device="cpu", **GENERATOR), text_encoder(TOWER, device="cpu")
    torch.save(official(system, text), tmp_path / "toy.pth")
    convert(tmp_path / "toy.pth", tmp_path / "out", chosen)
    model = replace(load_folder(tmp_path / "out"), canvas=Canvas(64, 96))
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    result = Segmenter(model, "cpu")(photo, "sky, road | street, car")
    assert result.label_map.shape == (40, 56)
    assert set(np.unique(result.label_map)) <= ({0, 1, 2} if chosen == "ovseg-large" else {-1, 0, 1, 2})


def test_masks_of_sam_paint_by_the_best_of_every_word(tmp_path: Path) -> None:
    system, text = ovseg(TOWER, backbone=SWIN, device="cpu", **GENERATOR), text_encoder(TOWER, device="cpu")
    torch.save(clip_of(official(system, text)), tmp_path / "clip.pt")
    convert(tmp_path / "clip.pt", tmp_path / "clip")
    (tmp_path / "sam").mkdir()
    tiny_sam(tmp_path / "sam")
    points = {"points_per_side": 3, "min_quality": -1e9, "min_stability": -1.0}
    canvas = Canvas(64, 96)
    segmenter = Segmenter.compose(tmp_path / "sam", tmp_path / "clip", "cpu", settings=points, canvas=canvas)
    assert (segmenter.model.outputs.paint_threshold, segmenter.model.outputs.granularity) == (0.5, 0.8)
    photo = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    result = segmenter(photo, "sky, road | street, car")
    assert set(np.unique(result.label_map)) <= {-1, 0, 1, 2}

    folder = compose_folder(tmp_path / "both", tmp_path / "sam", tmp_path / "clip", settings=points, granularity=0.3)
    assert load(folder).outputs.granularity == 0.3
    with pytest.raises(CompositionError, match="granularity is in 0..1, not 2"):
        compose_folder(tmp_path / "both", tmp_path / "sam", tmp_path / "clip", granularity=2)
    with pytest.raises(CompositionError, match="toy has no granularity to choose"):
        compose_folder(tmp_path / "other", "given", toy_model(tmp_path / "toy"), granularity=0.5)

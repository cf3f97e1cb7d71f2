"""MAFT and FreeSeg assembled: small systems, and official checkpoints into model folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.grown import GrownUntilSeen
from lexiseg.regions.mask_bias import MaskBiasedAttention
from lexiseg.scoring.fusion import PowerProduct, RegionOnly
from lexiseg.segmenter import Segmenter
from lexiseg.weights import maft as layout
from lexiseg.weights.rules import ConversionError, source_name
from lexiseg.zoo.catalogue import ZOO
from lexiseg.zoo.convert import convert, convert_state, published_entry, recognise
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.loading import compose
from lexiseg.zoo.maft import freeseg, maft, maft_given
from lexiseg.zoo.model_folder import load_folder
from tests.zoo.conftest import TEXT, randomise
from tests.zoo.toy_folders import ARGUMENTS, TRANSFORMER, toy_model

TOWER: dict[str, Any] = {**TRANSFORMER, "text_cfg": TEXT | {"width": 64, "heads": 1}}
"""Heads as no shape tells them otherwise: one for every 64 channels."""
DEEP = {**TOWER, "vision_cfg": TOWER["vision_cfg"] | {"layers": 10}}
SIZES: dict[str, Any] = {**ARGUMENTS["maft"], "heads": 8}
OF_FILE = {name: value for name, value in SIZES.items() if name not in ("side", "first_block", "heads")}
"""What an official file of this size tells."""


def official(system: torch.nn.Module, text: torch.nn.Module, tuned: bool = True) -> dict[str, Tensor]:
    """The state dicts under the official names, with what else the files hold."""
    rules = layout.MAFT_RULES if tuned else layout.FREESEG_RULES
    rules = [rule for rule in rules if "static_query" not in rule.pattern]
    state = system.state_dict()
    source = {source_name(name, rules): tensor for name, tensor in state.items()}
    tower = {name.removeprefix("embedder.tower."): x for name, x in state.items() if name.startswith("embedder.")}
    if tuned:
        source |= {layout.VISUAL + name: torch.zeros_like(x) for name, x in tower.items()}
        source |= {"T." + name: torch.zeros_like(x) for name, x in tower.items()}
    source |= {layout.CLIP + name: tensor for name, tensor in text.state_dict().items()}
    source |= {"criterion.empty_weight": torch.ones(172), layout.CLIP + "logit_scale": torch.tensor(4.0)}
    return source | {f"clip_adapter.pixel_{kind}": torch.ones(1, 3, 1, 1) for kind in ("mean", "std")}


def test_a_small_system_runs_on_a_batch(run: Any) -> None:
    torch.manual_seed(0)
    masks, scores = run(maft(TOWER, device="cpu", **SIZES))
    assert masks.shape == (2, 6, 64, 96)  # of the canvas
    assert scores.class_probs.shape == (2, 6, 3)
    torch.testing.assert_close(scores.class_probs.sum(-1), torch.ones(2, 6))
    assert not scores.void_prob.any()


@pytest.mark.parametrize("tuned", [True, False], ids=["maft", "freeseg"])
def test_from_an_official_file_to_the_same_numbers(tuned: bool, run: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {name: value for name, value in SIZES.items() if name not in ("side", "first_block")}
    system = (maft if tuned else freeseg)(DEEP, device="cpu", **arguments)
    text = text_encoder(DEEP, device="cpu")
    randomise(system)
    randomise(text, 1)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.mul_(0.2)  # all weights are positive now: deep down they would add up without end
    source = official(system, text, tuned)
    torch.save({"model": source, "iteration": 3}, tmp_path / "toy.pt")

    report = convert(tmp_path / "toy.pt", tmp_path / "out")
    model = load_folder(tmp_path / "out")

    assert report.layout == ("maft" if tuned else "freeseg")
    assert len(report.ignored) + report.system_tensors + report.text_tensors == len(source) and report.fresh == {}
    assert (model.canvas.short_edge, model.canvas.long_edge) == (640, 2560)
    assert "cow" in model.training_phrases and len(model.templates) == 14
    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks) and torch.equal(scores.class_probs, same_scores.class_probs)
    assert torch.equal(text.encode(["a cat"]), model.text_encoder().encode(["a cat"]))


def test_a_file_of_maft_holds_the_freeseg_it_started_from(tmp_path: Path) -> None:
    system = maft(DEEP, device="cpu", **OF_FILE)
    source = official(system, text_encoder(DEEP, device="cpu"))
    torch.save(source, tmp_path / "toy.pt")
    convert(tmp_path / "toy.pt", tmp_path / "out", "freeseg")
    model = load_folder(tmp_path / "out")
    assert isinstance(model.system.fuse, RegionOnly) and model.system.fuse.only_valid
    assert model.system.embedder.mask_frame == "picture"
    assert not any(tensor.any() for tensor in model.system.embedder.state_dict().values())  # the untuned one is zero


def test_an_older_name_of_the_queries() -> None:
    source = official(maft(DEEP, **OF_FILE), text_encoder(DEEP))
    older = {name.replace("query_feat", "static_query"): tensor for name, tensor in source.items()}
    account, *_ = convert_state(older, {"tower": DEEP, **OF_FILE}, "maft")
    assert account.used["sem_seg_head.predictor.static_query.weight"] == "generator.head.decoder.query_feat.weight"


def test_sizes_that_do_not_fit_are_told() -> None:
    source = official(maft(DEEP, **OF_FILE), text_encoder(DEEP))
    with pytest.raises(ConversionError, match="as wide as the queries"):
        layout.describe(source | {layout.PIXEL_DECODER + "mask_features.weight": torch.zeros(16, 32, 1, 1)})
    with pytest.raises(ConversionError, match="not fit"):
        convert_state(source | {"IPCLIP.more": torch.zeros(1)}, {"tower": DEEP, **OF_FILE}, "maft")


@pytest.mark.parametrize(("name", "tuned"), [("maft-base", True), ("maft-large", True), ("freeseg-base", False)])
def test_published_models_are_recognised_by_their_shapes(name: str, tuned: bool) -> None:
    entry = ZOO[name]
    tower = entry.arguments["tower"]
    source = official((maft if tuned else freeseg)(tower), text_encoder(tower), tuned)
    assert recognise(Path("file"), source) == entry.builder
    told = layout.describe(source)
    assert (told["tower"], told["backbone"], told["decoder_layers"]) == (tower, "resnet101c", 10)
    assert published_entry(entry.builder, {"tower": tower}) is entry
    values = sum(tensor.numel() for tensor in source.values())
    assert entry.source.gigabytes == pytest.approx(4 * values / 1e9, abs=0.06)


def test_what_decides() -> None:
    published, weighed = maft(TOWER, **SIZES), maft(TOWER, clip_weight=0.7, **SIZES)
    assert isinstance(published.fuse, RegionOnly) and not published.fuse.only_valid
    assert isinstance(weighed.fuse, PowerProduct)
    assert (weighed.fuse.weight, weighed.fuse.seen_weight) == (0.7, pytest.approx(0.3))
    assert (published.embedder.seen_by, weighed.embedder.seen_by) == ("patch", "pixel")
    assert "scorer.logit_scale" not in published.state_dict()
    assert not any(parameter.requires_grad for parameter in published.embedder.parameters())
    large = maft("ViT-L-14-quickgelu")
    assert large.embedder.first_block == 8 and len(large.embedder.tower.blocks) == 24
    assert large.embedder.grid_hw == (34, 34)
    assert isinstance(maft_given(TOWER, first_block=1).fuse, RegionOnly)


def test_before_and_behind_other_parts(tmp_path: Path) -> None:
    """Its masks need its own words, whoever names them; its tower grows masks that nobody else has judged."""
    maft_folder = toy_model(tmp_path / "maft", "maft", TRANSFORMER, seed=1)
    other = toy_model(tmp_path / "fcclip", "fcclip", seed=2)
    clustered = toy_model(tmp_path / "clustered", "clustered", seed=3)
    own = compose(maft_folder, maft_folder)
    assert isinstance(own.system.embedder, MaskBiasedAttention) and not own.system.fuse.only_valid
    drawn = compose(maft_folder, clustered)
    assert isinstance(drawn.system.generator, OwnBackbone) and drawn.query is not None
    assert drawn.query.fingerprint == load_folder(maft_folder).fingerprint
    assert drawn.system.fuse.only_valid and isinstance(drawn.system.embedder, GrownUntilSeen)
    assert isinstance(compose(clustered, maft_folder).system.embedder, GrownUntilSeen)
    assert isinstance(compose(other, maft_folder).system.embedder, MaskBiasedAttention)


def test_given_masks_of_any_number_in_one_pass(tmp_path: Path) -> None:
    folder = toy_model(tmp_path / "maft", "maft", TRANSFORMER)
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    masks = np.zeros((40, 48, 64), bool)
    for number in range(40):
        masks[number, number : number + 8, number : number + 12] = True
    segmenter = Segmenter(load_folder(folder), "cpu")
    result = segmenter(photo, "sky, grass", "instance", masks=masks)
    assert len(result.segments) == 40
    few = segmenter(photo, "sky, grass", "instance", masks=masks[3:5])
    scores = {segment.mask_id: segment.score for segment in result.segments}
    assert sorted(segment.score for segment in few.segments) == pytest.approx(sorted((scores[4], scores[5])), abs=1e-4)

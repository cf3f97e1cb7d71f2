"""Mask-Adapter in the zoo: official checkpoints convert, files of the two stages join, models load."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexiseg.images import Canvas
from lexiseg.regions.mask_adapter import MaskAdapterPool
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.system import System
from lexiseg.weights import fcclip as fcclip_layout
from lexiseg.weights import mask_adapter as layout
from lexiseg.weights.rules import ConversionError
from lexiseg.zoo.catalogue import ZOO
from lexiseg.zoo.coco_words import COCO_PHRASES, COCO_STUFF_PHRASES
from lexiseg.zoo.convert import LAYOUTS, convert, convert_state, published_entry, sizes
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.mask_adapter import mask_adapter_fcclip, mask_adapter_maftplus
from lexiseg.zoo.model_folder import BUILDERS, load_folder
from tests.zoo.conftest import GENERATOR, TOWERS, official_checkpoint, randomise

TOWER = TOWERS["convnext mlp"]
ADAPTER = {"adapter_width": 24, "adapter_mask_width": 8, "adapter_maps": 5}
SIZES = {**GENERATOR, **ADAPTER}
NAMES = ["mask-adapter-fcclip-large", "mask-adapter-maftplus-base", "mask-adapter-maftplus-large"]


def checkpoint(builder: str, arguments: dict[str, Any], device: str = "cpu") -> tuple[System, dict[str, Tensor]]:
    """A model with random weights, and what its official file would be."""
    system = BUILDERS[builder].system(**arguments, device=device)
    text = text_encoder(arguments["tower"], device=device)
    if device != "meta":
        randomise(system, 2)
        randomise(text, 3)
    return system, official_checkpoint(system.state_dict(), text.state_dict())


def layout_of(source: dict[str, Tensor]) -> str:
    return next(name for name, kind in LAYOUTS.items() if kind.recognises(source) and kind.told(source))


@pytest.mark.parametrize(
    ("builder", "named", "thresholds", "phrases"),
    [
        ("mask_adapter_fcclip", "auto", (0.0, 0.8), COCO_PHRASES),
        # The joint width of a toy is that of no published model, so the file does not tell which it is.
        ("mask_adapter_maftplus", "mask-adapter-maftplus-base", (0.0, 0.7), COCO_STUFF_PHRASES),
        ("mask_adapter_maftplus", "mask-adapter-maftplus-large", (0.0, 0.7), COCO_STUFF_PHRASES),
    ],
)
def test_round_trip(
    builder: str, named: str, thresholds: tuple[float, float], phrases: tuple[str, ...], run: Any, tmp_path: Path
) -> None:
    arguments = {"tower": TOWER, **SIZES, **(dict(LAYOUTS[named].arguments) if named in LAYOUTS else {})}
    system, source = checkpoint(builder, arguments)
    torch.save({"model": source}, tmp_path / "toy.pth")
    report = convert(tmp_path / "toy.pth", tmp_path / "out", named, tower=TOWER)
    model = load_folder(tmp_path / "out")

    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks)
    assert torch.equal(scores.class_probs, same_scores.class_probs)
    assert list(report.ignored) == ["criterion.empty_weight"] and report.fresh == {}
    assert (model.outputs.object_mask_threshold, model.outputs.overlap_threshold) == thresholds
    assert model.training_phrases == phrases
    assert model.canvas == Canvas(896, 896)


def test_a_toy_on_maftplus_does_not_tell_which_it_is(tmp_path: Path) -> None:
    _, source = checkpoint("mask_adapter_maftplus", {"tower": TOWER, **SIZES})
    torch.save(source, tmp_path / "toy.pth")
    with pytest.raises(ConversionError, match="mask-adapter-maftplus-base or mask-adapter-maftplus-large"):
        convert(tmp_path / "toy.pth", tmp_path / "out", tower=TOWER)


def account_for(source: dict[str, Tensor], name: str) -> None:
    """The file is told to be this model of the zoo, and every tensor has its place."""
    entry, found, kind = ZOO[name], fcclip_layout.describe(source), layout_of(source)
    arguments = {
        "tower": found.tower,
        **LAYOUTS[kind].arguments,
        **sizes(found, LAYOUTS[kind].builder),
        **LAYOUTS[kind].embedder_sizes(source),
    }
    assert published_entry(LAYOUTS[kind].builder, arguments) is entry
    account, system, text = convert_state(source, arguments, kind)
    assert set(account.used) | set(account.ignored) == set(source) and account.fresh == {}
    assert len(account.used) == len(system) + len(text)


@pytest.mark.parametrize("name", NAMES)
def test_every_published_model_is_told_and_accounted_for(name: str) -> None:
    _, source = checkpoint(ZOO[name].builder, dict(ZOO[name].arguments), device="meta")
    account_for(source, name)


@pytest.mark.parametrize(
    ("manifest", "name", "count"),
    [("fcclip_large", NAMES[0], 888), ("maftplus_base", NAMES[1], 846), ("maftplus_large", NAMES[2], 896)],
)
def test_the_given_manifests(manifest: str, name: str, count: int, shared: Path) -> None:
    """Names and shapes of the official files, every one accounted for."""
    listed = json.loads((shared / "parity" / "mask-adapter" / f"manifest-{manifest}.json").read_text())["tensors"]
    assert len(listed) == count
    account_for({key: torch.empty(entry["shape"], device="meta") for key, entry in listed.items()}, name)


def test_settings_of_the_published_models() -> None:
    settings = {}
    for name in NAMES:
        system = BUILDERS[ZOO[name].builder].system(**ZOO[name].arguments)
        embedder, fuse = system.embedder, system.fuse
        assert isinstance(embedder, MaskAdapterPool) and isinstance(fuse, GeometricEnsemble)
        settings[name] = (fuse.alpha, fuse.beta, embedder.mask_threshold, embedder.dense_order)
        assert sum(x.numel() for x in embedder.adapter.parameters()) == pytest.approx(14.86e6, rel=0.005)
    assert settings == dict(
        zip(
            NAMES,
            [(0.7, 0.9, 0.5, "position"), (0.7, 1.0, 0.45, "memory"), (0.8, 1.0, 0.4, "memory")],
            strict=True,
        )
    )


def two_stages() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The file of the first stage, that of the model it was made for, and both joined."""
    _, whole = checkpoint("mask_adapter_fcclip", {"tower": TOWER, **SIZES})
    base = {name: tensor for name, tensor in whole.items() if not name.startswith("mask_adapter.")}
    first = {name: tensor for name, tensor in whole.items() if not name.startswith(("sem_seg_head.", "criterion."))}
    first["void_embedding.weight"] = torch.full_like(whole["void_embedding.weight"], 9.0)
    return first, base, whole


def test_the_files_of_both_stages_join(run: Any, tmp_path: Path) -> None:
    first, base, whole = two_stages()
    joined = layout.join_stages(first, base)
    assert set(joined) == set(whole) - {"criterion.empty_weight"}
    assert all(torch.equal(joined[name], whole[name]) for name in joined)  # void is the base model's

    torch.save({"model": first}, tmp_path / "first.pth")
    torch.save(base, tmp_path / "base.pth")  # MAFT+ saves a flat dictionary
    convert(tmp_path / "first.pth", tmp_path / "out", base=tmp_path / "base.pth", tower=TOWER)
    model = load_folder(tmp_path / "out")
    system, _ = checkpoint("mask_adapter_fcclip", {"tower": TOWER, **SIZES})
    assert torch.equal(run(system)[1].class_probs, run(model.system)[1].class_probs)
    assert model.card["joined_with"] == "base.pth" and "published" not in model.card


def test_the_first_stage_alone_is_no_model(tmp_path: Path) -> None:
    first, base, whole = two_stages()
    torch.save({"model": first}, tmp_path / "first.pth")
    with pytest.raises(ConversionError, match=r"without a mask generator; .*--base FILE"):
        convert(tmp_path / "first.pth", tmp_path / "out", tower=TOWER)
    with pytest.raises(ConversionError, match="not an adapter after its first stage"):
        layout.join_stages(whole, base)
    with pytest.raises(ConversionError, match="no FC-CLIP or MAFT"):
        layout.join_stages(first, first)


def test_an_adapter_made_for_another_model_is_refused() -> None:
    first, base, _ = two_stages()
    moved = "backbone.clip_model.visual.head.mlp.fc2.weight"
    with pytest.raises(ConversionError, match=f"1 tensors differ .*{moved}"):
        layout.join_stages(first, {**base, moved: base[moved] + 1e-3})
    with pytest.raises(ConversionError, match="1 are missing in the second file"):
        layout.join_stages({**first, "cdt.cross_atten.norm.weight": torch.ones(16)}, base)


def test_attention_pools_have_no_map_to_show() -> None:
    with pytest.raises(ValueError, match="CLIP ResNet"):
        mask_adapter_fcclip(TOWERS["resnet"])
    with pytest.raises(ValueError, match="CLIP ResNet"):
        mask_adapter_maftplus(TOWERS["resnet"])

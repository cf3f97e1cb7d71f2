"""Official checkpoints become model folders that compute the same."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from lexiseg.scoring.image_conditioned import ImageConditioned
from lexiseg.system import System
from lexiseg.weights import fcclip as layout
from lexiseg.weights.files import sha256_of
from lexiseg.weights.rules import ConversionError, shapes_of
from lexiseg.zoo.catalogue import ZOO
from lexiseg.zoo.coco_words import COCO_PHRASES, COCO_STUFF_PHRASES
from lexiseg.zoo.convert import LAYOUTS, convert, convert_state, published_entry, read_training_phrases, sizes
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.loading import converted_folder, load
from lexiseg.zoo.maftplus import maftplus
from lexiseg.zoo.model_folder import load_folder
from tests.zoo.conftest import GENERATOR, TOWERS, official_checkpoint, randomise


def toy(tower: dict[str, Any]) -> tuple[System, torch.nn.Module]:
    system, text = fcclip(tower, device="cpu", **GENERATOR), text_encoder(tower, device="cpu")
    randomise(system, 0)
    randomise(text, 1)
    return system, text


def test_round_trip(tower: dict[str, Any], run: Any, tmp_path: Path) -> None:
    system, text = toy(tower)
    torch.save(
        {"model": official_checkpoint(system.state_dict(), text.state_dict()), "iteration": 9}, tmp_path / "toy.pth"
    )

    report = convert(tmp_path / "toy.pth", tmp_path / "out", tower=tower)
    model = load_folder(tmp_path / "out")

    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks)
    assert torch.equal(scores.class_probs, same_scores.class_probs)
    prompts = ["a photo of a cat.", "There is a very long sidewalk in the scene"]
    assert torch.equal(text.encode(prompts), model.text_encoder().encode(prompts))
    assert report.system_tensors == len(system.state_dict()) and report.text_tensors == len(text.state_dict())
    assert list(report.ignored) == ["criterion.empty_weight"] and report.fresh == {}
    assert f"{report.system_tensors} for the model, {report.text_tensors} for the text tower" in report.summary()
    assert model.card["source_sha256"] == sha256_of(tmp_path / "toy.pth")
    assert model.training_phrases == COCO_PHRASES


def test_sizes_are_read_off_the_shapes() -> None:
    tower = TOWERS["resnet"]
    source = official_checkpoint(fcclip(tower, **GENERATOR).state_dict(), text_encoder(tower).state_dict())
    assert sizes(layout.describe(source)) == GENERATOR


def published(name: str) -> dict[str, Tensor]:
    """The layout of a published model on the meta device; the CLIP part is open_clip's own, not ours."""
    heads = official_checkpoint(fcclip(name).state_dict(), text_encoder(name).state_dict())
    with torch.device("meta"):
        clip = open_clip.model.CLIP(**open_clip.get_model_config(name))
    part = "backbone.clip_model."
    return {
        **{part + key: tensor for key, tensor in clip.state_dict().items()},
        **{key: tensor for key, tensor in heads.items() if not key.startswith(part)},
    }


@pytest.mark.parametrize("name", sorted(layout.TOWERS.values()))
def test_every_published_tower_is_told_and_accounted_for(name: str) -> None:
    source = published(name)
    found = layout.describe(source)
    assert found.tower == name and sizes(found) == {}
    account, system, text = convert_state(source, {"tower": name})
    assert set(account.used) | set(account.ignored) == set(source)
    assert set(account.ignored) == {"criterion.empty_weight"}
    assert account.fresh == {}
    assert len(system) + len(text) == len(source) - 1


def test_batch_norm_counters_may_be_absent() -> None:
    source = published("RN50")
    short = {name: tensor for name, tensor in source.items() if not name.endswith("num_batches_tracked")}
    account, system, _ = convert_state(short, {"tower": "RN50"})
    assert len(account.fresh) == len(source) - len(short) == 55
    assert all(int(system[name]) == 0 for name in account.fresh)


@pytest.fixture(scope="module")
def large() -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """The official ConvNeXt-L layout, and what it has to fill."""
    name = "convnext_large_d_320"
    targets = (shapes_of(fcclip(name).state_dict()), shapes_of(text_encoder(name).state_dict()))
    return published(name), *targets


@pytest.mark.parametrize(
    "name",
    [
        "backbone.clip_model.visual.trunk.stages.2.blocks.26.gamma",
        "backbone.clip_model.visual.head.mlp.fc2.weight",
        "backbone.clip_model.transformer.resblocks.15.ln_2.bias",
        "backbone.clip_model.logit_scale",
        "sem_seg_head.pixel_decoder.transformer.level_embed",
        "sem_seg_head.predictor._mask_pooling_proj.1.weight",
        "void_embedding.weight",
    ],
)
def test_a_changed_tensor_is_refused_with_its_name(name: str, large: Any) -> None:
    source, *targets = large
    others = {key: tensor for key, tensor in source.items() if key != name}
    with pytest.raises(ConversionError, match="1 in the model, but not in the file") as missing:
        layout.convert_official(others, *targets)
    assert name in str(missing.value)
    with pytest.raises(ConversionError, match="1 in the file, but not in the model") as renamed:
        layout.convert_official({**others, name + "_old": source[name]}, *targets)
    assert name in str(renamed.value) and name + "_old" in str(renamed.value)
    with pytest.raises(ConversionError, match="1 of another shape") as reshaped:
        layout.convert_official({**source, name: source[name].new_empty(7, 7)}, *targets)
    assert f"{name}: [7, 7] in the file" in str(reshaped.value)


def test_a_published_model_gets_its_name_and_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEXISEG_MODELS", str(tmp_path))
    assert converted_folder("fcclip-rn50") == tmp_path / "fcclip-rn50"
    for entry in ZOO.values():
        if entry.state == "convert":
            with pytest.raises(ValueError, match=r"Fetch .* then run: lexiseg convert FILE"):
                load(entry.name)


def maftplus_checkpoint(arguments: dict[str, Any], classes: int, device: str = "cpu") -> dict[str, Tensor]:
    """A MAFT+ checkpoint with random weights: a second CLIP beside the first."""
    system, text = maftplus(device=device, **arguments), text_encoder(arguments["tower"], device=device)
    if device != "meta":
        randomise(system, 2)
        randomise(text, 3)
    source = official_checkpoint(system.state_dict(), text.state_dict())
    teacher = {
        name.replace("backbone.", "backbone_t."): x for name, x in source.items() if name.startswith("backbone.")
    }
    return {**teacher, **source, "criterion.empty_weight": torch.ones(classes + 1)}


@pytest.mark.parametrize(("classes", "norm_order"), [(171, "after_sum"), (133, "before_sum")])
def test_maftplus_round_trip(classes: int, norm_order: str, run: Any, tmp_path: Path) -> None:
    sizes_of = {**GENERATOR, "transfer_heads": 8}
    tower = TOWERS["convnext mlp"]
    source = maftplus_checkpoint({"tower": tower, **sizes_of}, classes)
    torch.save({"model": source}, tmp_path / "toy.pth")
    report = convert(tmp_path / "toy.pth", tmp_path / "out", tower=tower)
    model = load_folder(tmp_path / "out")

    system = maftplus(tower, norm_order=norm_order, device="cpu", **sizes_of)  # type: ignore[arg-type]
    randomise(system, 2)
    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks)
    assert torch.equal(scores.class_probs, same_scores.class_probs)
    assert (model.outputs.object_mask_threshold, model.outputs.overlap_threshold) == (0.2, 0.7)
    assert model.training_phrases == (COCO_PHRASES if classes == 133 else COCO_STUFF_PHRASES)
    count = sum(name.startswith("backbone_t.") for name in source)
    assert len(report.ignored) == count + 1
    assert f"not needed: {count} tensors, from backbone_t." in report.summary()


def test_maftplus_without_its_teacher_and_without_its_sign(tmp_path: Path) -> None:
    tower = TOWERS["convnext linear"]
    source = maftplus_checkpoint({"tower": tower, **GENERATOR}, 50)
    source = {name: tensor for name, tensor in source.items() if not name.startswith("backbone_t.")}
    torch.save(source, tmp_path / "toy.pth")
    with pytest.raises(ConversionError, match="maftplus-semantic or maftplus-panoptic"):
        convert(tmp_path / "toy.pth", tmp_path / "out", tower=tower)
    report = convert(tmp_path / "toy.pth", tmp_path / "out", "maftplus-panoptic", tower=tower)
    assert list(report.ignored) == ["criterion.empty_weight"]
    scorer = load_folder(tmp_path / "out").system.scorer
    assert isinstance(scorer, ImageConditioned) and scorer.transfer.norm_order == "before_sum"


@pytest.mark.parametrize("name", ["maftplus-base", "maftplus-large", "maftplus-large-panoptic"])
def test_every_published_maftplus_is_told_and_accounted_for(name: str) -> None:
    entry = ZOO[name]
    classes = 133 if name.endswith("panoptic") else 171
    source = maftplus_checkpoint(dict(entry.arguments), classes, device="meta")
    found = layout.describe(source)
    (kind,) = (
        key for key, kind in LAYOUTS.items() if kind.recognises(source) and kind.told(source) and key != "fcclip"
    )
    arguments = {"tower": found.tower, **LAYOUTS[kind].arguments, **sizes(found, "maftplus")}
    assert published_entry("maftplus", arguments) is entry
    account, _, _ = convert_state(source, arguments, kind)
    assert set(account.used) | set(account.ignored) == set(source) and account.fresh == {}


@pytest.mark.parametrize(
    ("manifest", "name"),
    [
        ("semantic_base", "maftplus-base"),
        ("semantic_large", "maftplus-large"),
        ("panoptic_large", "maftplus-large-panoptic"),
    ],
)
def test_maftplus_manifests_convert(manifest: str, name: str, shared: Path) -> None:
    """Names and shapes of the official files, every one accounted for."""
    listed = json.loads((shared / "parity" / "maft-plus" / f"manifest-{manifest}.json").read_text())["tensors"]
    source = {key: torch.empty(entry["shape"], device="meta") for key, entry in listed.items()}
    found = layout.describe(source)
    kind = "maftplus-panoptic" if LAYOUTS["maftplus-panoptic"].told(source) else "maftplus-semantic"
    arguments = {"tower": found.tower, **LAYOUTS[kind].arguments, **sizes(found, "maftplus")}
    assert published_entry("maftplus", arguments) is ZOO[name]
    account, _, _ = convert_state(source, arguments, kind)
    assert len(account.used) + len(account.ignored) == len(source)
    assert set(account.ignored) == {key for key in source if key.startswith(("backbone_t.", "criterion."))}


def test_attention_pools_have_no_map_to_show() -> None:
    with pytest.raises(ValueError, match="CLIP ResNet"):
        maftplus(TOWERS["resnet"])


def test_files_that_are_not_fcclip(tmp_path: Path) -> None:
    torch.save({"model": {"layer.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ConversionError, match=r"other\.pth: not an FC-CLIP or MAFT\+ checkpoint.*layer\.weight"):
        convert(tmp_path / "other.pth", tmp_path / "out")
    with pytest.raises(ConversionError, match="no layout is called 'maftplus'"):
        convert(tmp_path / "other.pth", tmp_path / "out", layout="maftplus")

    tower = TOWERS["resnet"]
    source = official_checkpoint(*(module.state_dict() for module in toy(tower)))
    torch.save(source, tmp_path / "toy.pth")
    with pytest.raises(ConversionError, match="none of the published towers"):
        convert(tmp_path / "toy.pth", tmp_path / "out")
    with pytest.raises(ConversionError, match="say where it goes"):
        convert(tmp_path / "toy.pth", tower=tower)
    del source["sem_seg_head.predictor.query_feat.weight"]
    torch.save(source, tmp_path / "toy.pth")
    with pytest.raises(ConversionError, match=r"query_feat\.weight is missing"):
        convert(tmp_path / "toy.pth", tmp_path / "out", tower=tower)
    assert not (tmp_path / "out").exists()


def test_official_class_lists(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0:person,child, girl\n12:sky\nrail:way,lawn,  meadow\n")
    assert read_training_phrases(tmp_path / "list.txt") == [
        "person", "child", "girl", "sky", "rail:way", "lawn", " meadow",
    ]  # fmt: skip
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name in ("absent", "bytes"):
        with pytest.raises(ConversionError, match=name):
            read_training_phrases(tmp_path / name)


def test_the_given_manifests(shared: Path) -> None:
    """Names and shapes of two official checkpoints as they were published."""
    import json

    for path, count in (
        (shared / "parity/fc-clip/manifest-fcclip_convnext_large_eval_ade20k.json", 846),
        (shared / "parity/fc-clip/manifest-fcclip_convnext_large_eval_ade20k_r50.json", 792),
    ):
        tensors = json.loads(path.read_text())["tensors"]
        source = {
            name: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
            for name, entry in tensors.items()
        }
        assert len(source) == count
        found = layout.describe(source)
        account, system, text = convert_state(source, {"tower": found.tower})
        assert sizes(found) == {} and account.fresh == {}
        assert len(account.used) == len(system) + len(text) == count - 1
        assert list(account.ignored) == ["criterion.empty_weight"]

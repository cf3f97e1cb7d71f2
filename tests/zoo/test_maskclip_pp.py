"""MaskCLIP++ in the zoo: official files are put together, models load, and read words twice."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lexiseg.images import Canvas
from lexiseg.scoring.fusion import GeometricEnsemble, RegionWithVoid
from lexiseg.scoring.template_mix import TemplateMean
from lexiseg.segmenter import Segmenter
from lexiseg.system import System
from lexiseg.types import Images, Scores, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.maskclip_pp import VISUAL
from lexiseg.weights.rules import ConversionError
from lexiseg.zoo.assembly import SYSTEMS, assemble
from lexiseg.zoo.catalogue import ZOO, Entry, OfficialFile
from lexiseg.zoo.coco_words import COCO_CLASSES, COCO_PHRASES, COCO_STUFF_PHRASES
from lexiseg.zoo.convert import convert, published_entry
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.maskclip_pp import maskclip_pp, maskclip_pp_given, maskclip_pp_mask2former
from lexiseg.zoo.model_folder import load_folder
from tests.eva_towers import EVA_TOWERS
from tests.zoo.conftest import GENERATOR, TOWERS, official_checkpoint, randomise

TOY_TOWERS = {
    "convnext": TOWERS["convnext mlp"],
    "resnet": TOWERS["resnet"],
    "eva01": EVA_TOWERS["eva01"],
    "eva02": EVA_TOWERS["eva02"],
}
GENERATOR_TOWER = TOWERS["convnext linear"]
TINY_SWIN = {"width": 16, "depths": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "window": 4}

TIMM_TO_EVA02 = {
    "attn.q_proj.bias": "attn.q_bias",
    "attn.v_proj.bias": "attn.v_bias",
    "attn.norm.": "attn.inner_attn_ln.",
    "mlp.fc1_g.": "mlp.w1.",
    "mlp.fc1_x.": "mlp.w2.",
    "mlp.norm.": "mlp.ffn_ln.",
    "mlp.fc2.": "mlp.w3.",
}
OFFICIAL = {
    "embedder.projection.norm.": VISUAL + "trunk.head.norm.",
    "embedder.projection.": VISUAL,
    "embedder.pool.mask_logit_scale": "visual_encoder.mask_logit_scale",
    "embedder.pool.": VISUAL + "attnpool.",
    "embedder.mask_logit_scale": "visual_encoder.mask_logit_scale",
    "embedder.trunk.trunk.st": VISUAL + "trunk.st",
    "embedder.trunk.trunk.": VISUAL,
    "scorer.mix_in.": "psm.corr_proj_in.0.",
    "scorer.mix_out.": "psm.corr_proj_out.0.",
    "scorer.picture_proj.": "psm.img_proj.",
    "scorer.attention.": "psm.img2text.",
    "scorer.norm.": "psm.ln_1.",
}


def official_classifier(
    state: Mapping[str, Tensor], second_eva: bool, words: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """State dicts of a system and, where it was tuned, of the words' tower -> the official file, by its names."""
    source = {}
    for name, tensor in state.items():
        if name.startswith("generator.") or name == "scorer.logit_scale":
            continue
        ours = next(prefix for prefix in OFFICIAL if name.startswith(prefix))
        official = OFFICIAL[ours] + name.removeprefix(ours)
        if second_eva:
            for timm, eva in TIMM_TO_EVA02.items():
                official = official.replace(timm, eva) if ".blocks." in official else official
        source[official] = tensor
    if words is not None:
        source |= {"text_encoder.proxy." + name: tensor for name, tensor in words.items()}
        source["text_encoder.logit_scale"] = state["scorer.logit_scale"]
    return source


def official_clip(
    family: str, classifier: Mapping[str, Tensor], words: Mapping[str, Tensor], scale: Tensor | None
) -> Any:
    """The CLIP a classifier began with, as open_clip or EVA-CLIP publish it."""
    text = "text." if family.startswith("eva") else ""
    visual = {name.replace(VISUAL, "visual."): x for name, x in classifier.items() if name.startswith(VISUAL)}
    scale = torch.zeros(()) if scale is None else scale
    return {**visual, **{text + name: tensor for name, tensor in words.items()}, "logit_scale": scale}


def toy_files(family: str) -> tuple[System, torch.nn.Module, torch.nn.Module, dict[str, dict[str, Tensor]]]:
    """A random model, its words' towers (of regions, of the generator), and its three official files."""
    tower = TOY_TOWERS[family]
    system = maskclip_pp(
        tower, generator_tower=GENERATOR_TOWER, short_edge=56, mask_blocks=2, device="cpu", **GENERATOR
    )
    text, query = text_encoder(tower, device="cpu"), text_encoder(GENERATOR_TOWER, device="cpu")
    generator = fcclip(GENERATOR_TOWER, device="cpu", **GENERATOR)
    for seed, module in enumerate((system, text, query, generator)):
        randomise(module, seed)
    for part, other in (("backbone.", generator.encoder), ("head.", generator.generator)):
        own = {name.removeprefix(part): x for name, x in system.generator.state_dict().items() if name.startswith(part)}
        other.load_state_dict(own)
    classifier = official_classifier(system.state_dict(), family == "eva02")
    scale = system.state_dict().get("scorer.logit_scale")
    files = {
        "classifier": classifier,
        "generator": official_checkpoint(generator.state_dict(), query.state_dict()),
        "clip": official_clip(family, classifier, text.state_dict(), scale),
    }
    return system.eval(), text.eval(), query.eval(), files


def run(system: System, templates: int = 14) -> tuple[Tensor, Scores]:
    """The masks and scores of a system on one fixed input."""
    chance = torch.Generator().manual_seed(1)
    images = Images(torch.rand(2, 3, 64, 96, generator=chance) * 255, ((64, 96), (50, 96)), ((64, 96), (50, 96)))
    rows = torch.nn.functional.normalize(torch.randn(4, templates, 16, generator=chance), dim=-1)
    text = TextBank(rows[:, :1], rows, torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, True]))
    with torch.no_grad():
        proposals, scores = system.eval()(images, text)
    return proposals.mask_logits, scores


def saved(files: Mapping[str, Mapping[str, Tensor]], folder: Path) -> dict[str, Path]:
    paths = {part: folder / f"{part}.pth" for part in files}
    for part, path in paths.items():
        torch.save({"model": dict(files[part]), "iteration": 3}, path)
    return paths


@pytest.mark.parametrize("family", TOY_TOWERS)
def test_three_files_become_one_model(family: str, tmp_path: Path) -> None:
    system, text, query, files = toy_files(family)
    paths = saved(files, tmp_path)
    report = convert(
        paths["classifier"],
        tmp_path / "out",
        generator=paths["generator"],
        clips=[paths["clip"]],
        tower=TOY_TOWERS[family],
        generator_tower=GENERATOR_TOWER,
        short_edge=56,
    )
    model = load_folder(tmp_path / "out")
    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks)
    assert torch.equal(scores.class_probs, same_scores.class_probs)
    assert torch.isfinite(scores.class_probs).all() and scores.class_probs.std() > 0

    bank = model.text_bank(Vocabulary.parse("sky, tree | bush"))
    prompts = ["a photo of a sky.", "This is a photo of a sky"]
    assert (bank.query.shape, bank.region.shape) == ((3, 1, 16), (3, 14, 16))
    torch.testing.assert_close(bank.region[0, :2], torch.nn.functional.normalize(text.encode(prompts), dim=-1))
    assert model.query is not None and torch.equal(model.query.text_encoder().encode(prompts), query.encode(prompts))
    assert model.query.fingerprint != model.fingerprint
    assert model.canvas == Canvas(800, 2560, 32, 800) and model.outputs.sigmoid_at == "grid"
    assert model.training_phrases == COCO_PHRASES and isinstance(model.system.fuse, RegionWithVoid)
    assert sorted(model.card["put_together_with"]) == ["clip.pth", "generator.pth"]
    total = sum(len(tensors) for tensors in files.values())
    assert f"{total} tensors in the file" in report.summary()
    assert report.name is None and report.fresh == {}


def test_a_classifier_alone_names_given_masks(tmp_path: Path) -> None:
    _, _, _, files = toy_files("eva02")
    paths = saved(files, tmp_path)
    told = {"tower": TOY_TOWERS["eva02"], "short_edge": 56, "clips": [paths["clip"]]}
    with pytest.raises(ConversionError, match="--generator FILE"):
        convert(paths["classifier"], **told)
    convert(paths["classifier"], tmp_path / "out", **told)
    segmenter = Segmenter(load_folder(tmp_path / "out"), "cpu")
    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    masks = np.zeros((2, 40, 60), bool)
    masks[0, :, :30] = masks[1, 10:20, 40:50] = True
    result = segmenter(photo, "sky, tree | bush", "instance", masks=masks)
    assert sorted(segment.area for segment in result.segments) == [100, 1200]
    with pytest.raises(ValueError, match="draws no masks of its own"):
        segmenter(photo, "sky, tree")


def test_a_whole_model_answers(tmp_path: Path) -> None:
    """All three kinds of result, on a canvas that is resized twice."""
    _, _, _, files = toy_files("resnet")
    paths = saved(files, tmp_path)
    sizes = {"tower": TOY_TOWERS["resnet"], "generator_tower": GENERATOR_TOWER, "short_edge": 64}
    convert(paths["classifier"], tmp_path / "out", generator=paths["generator"], clips=[paths["clip"]], **sizes)
    settings = json.loads((tmp_path / "out" / "lexiseg.json").read_text())
    settings["canvas"] = {"short_edge": 40, "long_edge": 200, "multiple": 32, "second_short_edge": 64}
    (tmp_path / "out" / "lexiseg.json").write_text(json.dumps(settings))
    segmenter = Segmenter(load_folder(tmp_path / "out"), "cpu")
    photo = np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)
    assert segmenter(photo, "sky, tree | bush").label_map.shape == (30, 50)
    for task in ("panoptic", "instance"):
        segmenter(photo, "sky, tree | bush", task, min_score=0.0)  # type: ignore[arg-type]


def test_the_words_of_a_frozen_clip_are_those_of_its_generator(tmp_path: Path) -> None:
    """Behind FC-CLIP on the same CLIP no other file is needed, and one words' tower is stored."""
    _, _, query, files = toy_files("convnext")
    tower = TOY_TOWERS["convnext"]
    generator = fcclip(tower, device="cpu", **GENERATOR)
    randomise(generator, 7)
    files["generator"] = official_checkpoint(generator.state_dict(), query.state_dict())
    paths = saved(files, tmp_path)
    convert(
        paths["classifier"], tmp_path / "out", generator=paths["generator"],
        tower=tower, generator_tower=tower, short_edge=56,
    )  # fmt: skip
    assert not (tmp_path / "out" / "query.safetensors").exists()
    model = load_folder(tmp_path / "out")
    bank = model.text_bank(Vocabulary.parse("sky"))
    mean = torch.nn.functional.normalize(bank.region.mean(1), dim=-1)
    torch.testing.assert_close(bank.query[:, 0], mean)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    _, _, _, files = toy_files("eva01")
    paths = saved(files, tmp_path)
    told = {"tower": TOY_TOWERS["eva01"], "generator_tower": GENERATOR_TOWER, "short_edge": 56}
    out = tmp_path / "out"
    with pytest.raises(ConversionError, match="give the CLIP it began with"):
        convert(paths["classifier"], out, generator=paths["generator"], **told)
    with pytest.raises(ConversionError, match="no checkpoint of FC-CLIP, MAFT. or Mask2Former"):
        convert(paths["classifier"], out, generator=paths["clip"], clips=[paths["clip"]], **told)
    with pytest.raises(ConversionError, match="no published classifier"):
        convert(paths["classifier"], out, generator=paths["generator"])
    with pytest.raises(ConversionError, match="is in no file"):
        convert(paths["classifier"], out, generator=paths["generator"], tower=TOY_TOWERS["eva01"])
    with pytest.raises(ConversionError, match="not a MaskCLIP"):
        convert(paths["generator"], out, "maskclip-pp")
    with pytest.raises(ConversionError, match="not a classifier of masks"):
        convert(paths["generator"], out, generator=paths["generator"])
    assert not out.exists()


def test_a_changed_tensor_is_refused_with_its_name() -> None:
    _, _, _, files = toy_files("eva02")
    told = {"tower": TOY_TOWERS["eva02"], "generator_tower": GENERATOR_TOWER, "short_edge": 56}
    name = VISUAL + "blocks.3.mlp.w2.weight"
    kept = {key: x for key, x in files["classifier"].items() if key != name}
    for changed, says in ((kept, name), ({**kept, name: torch.zeros(7)}, r"\[7\] in the file")):
        with pytest.raises(ConversionError, match=says):
            assemble(changed, files["generator"], [files["clip"]], **told)
    other = {**files["classifier"], "psm.corr_proj_in.0.weight": torch.zeros(768, 5)}
    with pytest.raises(ConversionError, match="weighs 5 templates"):
        assemble(other, files["generator"], [files["clip"]], **told)
    with pytest.raises(ConversionError, match="1 in the file, but not in the model"):
        assemble({**files["classifier"], "psm.more": torch.zeros(1)}, files["generator"], [files["clip"]], **told)


def test_similarity_can_be_chosen() -> None:
    tower = {"tower": TOY_TOWERS["convnext"], "short_edge": 56}
    assert isinstance(maskclip_pp_given(**tower, similarity="template-mean").scorer, TemplateMean)
    for family in ("eva02", "resnet"):
        with pytest.raises(ValueError, match="pseudo-text"):
            maskclip_pp_given(TOY_TOWERS[family], short_edge=56, similarity="pseudo-text")


def test_behind_classes_of_its_own() -> None:
    system = maskclip_pp_mask2former(
        TOY_TOWERS["convnext"], swin=TINY_SWIN, short_edge=56, num_classes=5, alpha=0.6, device="cpu", **GENERATOR
    )
    randomise(system)
    chance = torch.Generator().manual_seed(1)
    images = Images(torch.rand(1, 3, 64, 96, generator=chance) * 255, ((64, 96),), ((64, 96),))
    rows = torch.nn.functional.normalize(torch.randn(4, 14, 16, generator=chance), dim=-1)
    seen = torch.tensor([True, False, True])
    own = torch.tensor([0, 3, 2, 2, 3])
    with torch.no_grad():
        proposals, scores = system.eval()(images, TextBank(rows, rows, torch.tensor([0, 1, 1, 2]), seen, own))
        _, others = system(images, TextBank(rows, rows, torch.tensor([0, 1, 1, 2]), seen, own.flip(0)))
    assert proposals.class_logits is not None and proposals.class_logits.shape == (1, 6, 4)
    torch.testing.assert_close(scores.void_prob, others.void_prob)
    assert not torch.allclose(scores.class_probs, others.class_probs)
    assert isinstance(system.fuse, GeometricEnsemble) and (system.fuse.alpha, system.fuse.floor) == (0.6, 1e-8)


def test_mask2former_from_its_file(tmp_path: Path) -> None:
    """Its 133 classes find their words; with another list only void is used."""
    _, _, _, files = toy_files("convnext")
    told = {"tower": TOY_TOWERS["convnext"], "short_edge": 56}
    for count in (133, 5):
        arguments = {"swin": TINY_SWIN, "num_classes": count, **GENERATOR}
        system = maskclip_pp_mask2former(TOY_TOWERS["convnext"], short_edge=56, device="cpu", **arguments)
        randomise(system, 0)
        files["generator"] = official_mask2former(system.state_dict())
        paths = saved(files, tmp_path)
        convert(paths["classifier"], tmp_path / "out", generator=paths["generator"], clips=[paths["clip"]], **told)
        model = load_folder(tmp_path / "out")
        assert torch.equal(run(system)[0], run(model.system)[0])
        bank = model.text_bank(Vocabulary.parse("bike, person, lamp"))
        assert bank.query is bank.region
        if count == 133:
            assert bank.own_class is not None and bank.own_class.shape == (133,)
            assert bank.own_class[:3].tolist() == [1, 0, 3]  # person, bicycle, car
        else:
            assert bank.own_class is None
        assert model.canvas == Canvas(800, 2560, 32, 800) and model.outputs.object_mask_threshold == 0.8


def official_mask2former(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The generator of a system under its official names."""
    parts = {
        "generator.generator.backbone.": "backbone.",
        "generator.generator.head.pixel_decoder.": "sem_seg_head.pixel_decoder.",
        "generator.generator.head.decoder.": "sem_seg_head.predictor.",
    }
    return {
        official + name.removeprefix(ours): tensor
        for name, tensor in state.items()
        for ours, official in parts.items()
        if name.startswith(ours)
    }


def published() -> list[str]:
    return [name for name, entry in ZOO.items() if entry.builder in SYSTEMS]


def official_files(entry: Entry) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]]]:
    """Classifier, generator and other files of a published model, by names and shapes."""
    arguments: dict[str, Any] = dict(entry.arguments)
    state = SYSTEMS[entry.builder](**arguments).state_dict()
    words = text_encoder(arguments["tower"]).state_dict()
    family = {"c": "convnext", "R": "resnet"}.get(arguments["tower"][0], arguments["tower"][:5].lower())
    tuned = arguments.get("num_templates") == 1
    classifier = official_classifier(state, family == "eva02", words if tuned else None)
    scale = state.get("scorer.logit_scale")
    clips = [] if tuned else [official_clip(family, classifier, words, scale)]
    if entry.builder == "maskclip_pp_mask2former":
        return classifier, official_mask2former(state), clips
    tower = arguments["generator_tower"]
    queries = arguments.get("num_queries", 250)
    whole = fcclip(tower, num_queries=queries).state_dict()
    generator = official_checkpoint(whole, text_encoder(tower).state_dict())
    if queries == 100:
        classes = 133 if entry.name.endswith("panoptic") else 171
        generator["criterion.empty_weight"] = torch.ones(classes + 1, device="meta")
        generator["cdt.cross_atten.norm.weight"] = torch.ones(768, device="meta")
    return classifier, generator, clips


@pytest.mark.parametrize("name", published())
def test_every_published_model_is_told_and_accounted_for(name: str) -> None:
    entry = ZOO[name]
    assert isinstance(entry.source, OfficialFile)
    classifier, generator, clips = official_files(entry)
    found = assemble(classifier, generator, clips)
    assert published_entry(found.builder, found.arguments, found.panoptic) is entry
    for part, files in (("classifier", classifier), ("generator", generator)):
        account = found.accounts[part]
        assert set(account.used) | set(account.ignored) == set(files) and account.fresh == {}
    assert (found.accounts.keys() == {"classifier", "generator"}) == (not clips)
    on_stuff = "alpha" in entry.arguments
    assert found.on_stuff == on_stuff == ("COCO-Stuff" in entry.trained_on)
    assert found.seen_stuff == (name.endswith("maftplus"))
    assert found.canvas.second_short_edge == (None if name.endswith("swin-tiny") else 800)
    assert (found.canvas.short_edge, found.canvas.long_edge) == (
        ((1024 if "base" in name else 512), 2048) if on_stuff else (800, 2560)
    )
    thresholds = {"swin": (0.8, 0.8), "maftplus-panoptic": (0.2, 0.7)}
    expected = next((value for part, value in thresholds.items() if part in name), (0.0, 0.8))
    assert (found.outputs.object_mask_threshold, found.outputs.overlap_threshold) == expected
    assert ("--clip" in entry.source.beside) == (bool(clips) and entry.arguments["tower"] not in name_of_fcclip(entry))


def name_of_fcclip(entry: Entry) -> list[str]:
    """Towers whose words are in the generator's file: it is FC-CLIP's, on the same frozen CLIP."""
    on_fcclip = entry.builder == "maskclip_pp" and "num_queries" not in entry.arguments
    return [entry.arguments["generator_tower"]] if on_fcclip else []


def test_words_of_both_vocabularies() -> None:
    assert len(COCO_CLASSES) == 133 and COCO_CLASSES[0].startswith("person,")
    assert set(COCO_PHRASES) < set(COCO_STUFF_PHRASES)


@pytest.mark.parametrize(
    ("manifest", "clips", "name"),
    [
        (
            "convnext-b_fcclip-b",
            ["open_clip:convnext_base_w_320/laion_aesthetic-s13B-b82K-augreg"],
            "maskclip-pp-convnext-base",
        ),
        ("eva-l-wtext_maft-l", [], "maskclip-pp-eva-large-words-maftplus"),
    ],
)
def test_the_given_manifests(manifest: str, clips: list[str], name: str, shared: Path) -> None:
    """Names and shapes of published files, companions and all."""
    document = json.loads((shared / "parity/maskclip-pp" / f"manifest-{manifest}.json").read_text())
    files = {
        part: {key: torch.empty(entry["shape"], device="meta") for key, entry in listed["tensors"].items()}
        for part, listed in ((None, document), *document["companions"].items())
    }
    found = assemble(files[None], files["generator"], [files[clip] for clip in clips])
    assert published_entry(found.builder, found.arguments, found.panoptic) is ZOO[name]
    assert set(found.accounts["classifier"].used) == set(files[None])  # nothing of it is ignored
    generator = found.accounts["generator"]
    assert set(files["generator"]) <= set(generator.used) | set(generator.ignored)
    assert all(reason for reason in generator.ignored.values())

"""Generators of one model before classifiers of another: what they compute, how they are stored, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lexiseg.images import Canvas
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.grown import GrownUntilSeen
from lexiseg.regions.mask_adapter import MaskAdapterPool
from lexiseg.scoring.fusion import GeometricEnsemble, RegionOnly, RegionWithVoid
from lexiseg.segmenter import Segmenter
from lexiseg.types import Images, Proposals, Scores
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.hub import DownloadError, UnreachableError
from lexiseg.zoo.catalogue import ZOO, Composed, HubPart
from lexiseg.zoo.composition import CompositionError, same_module
from lexiseg.zoo.loading import UnknownModelError, compose, compose_folder, load
from lexiseg.zoo.model_folder import Model, ModelFolderError, OutputSettings
from lexiseg.zoo.table import rows
from tests.proposals.tiny_transformers import tiny_eomt, tiny_mask2former, tiny_sam
from tests.weights.hub_server import Hub, hub_server  # noqa: F401 - a fixture
from tests.zoo.conftest import TOWERS
from tests.zoo.toy_folders import toy_model, toy_open_clip

NARROW = {**TOWERS["convnext linear"], "embed_dim": 8}
"""A CLIP whose joint space has another width."""

FEW_POINTS = {"points_per_side": 3, "min_quality": -1e9, "min_stability": -1.0}
"""A random SAM finds none of its masks good."""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of every kind; "fcclip", "adapter" and "clip" stand on the same CLIP, "other" and "maftplus" do not."""
    root = tmp_path_factory.mktemp("parts")
    made = {
        "fcclip": toy_model(root / "fcclip", "fcclip"),
        "adapter": toy_model(root / "adapter", "mask_adapter_fcclip", seed=4),
        "other": toy_model(root / "other", "fcclip", NARROW, seed=1),
        "resnet": toy_model(root / "resnet", "fcclip", "resnet"),
        "maftplus": toy_model(root / "maftplus", "maftplus", seed=2),
        "clustered": toy_model(root / "clustered", "clustered", NARROW, seed=3),
        "clip": toy_open_clip(root / "clip"),
    }
    # One CLIP for three of them.
    shared = ("encoder.", "embedder.projection.", "scorer.logit_scale")
    clip = load_file(made["fcclip"] / "model.safetensors")
    state = load_file(made["adapter"] / "model.safetensors")
    state |= {name: value for name, value in clip.items() if name.startswith(shared)}
    save_file(state, made["adapter"] / "model.safetensors")
    shutil.copy(made["fcclip"] / "text.safetensors", made["adapter"])
    edit(made["adapter"], lambda settings: settings.pop("files"))
    for name, make in (("mask2former", tiny_mask2former), ("eomt", tiny_eomt), ("sam", tiny_sam)):
        made[name] = root / name
        made[name].mkdir()
        make(made[name])
    return made


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "lexiseg.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def photos() -> Images:
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3)) * 255
    return Images(pixels, ((64, 96),), ((64, 96),))


@torch.no_grad()
def run(model: Model, images: Images | None = None) -> tuple[Proposals, Scores]:
    return model.system(images or photos(), model.text_bank(Vocabulary.parse("sky, tree | bush, zebra")))


def test_two_models_on_one_clip_look_at_the_photo_once(parts: dict[str, Path]) -> None:
    model, generator, classifier = (
        compose(parts["fcclip"], parts["adapter"]),
        load(parts["fcclip"]),
        load(parts["adapter"]),
    )
    assert type(model.system.generator) is type(generator.system.generator) and model.query is None
    proposals, scores = run(model)
    torch.testing.assert_close(proposals.mask_logits, run(generator)[0].mask_logits)
    torch.testing.assert_close(proposals.class_logits, run(generator)[0].class_logits)
    # Its own generator's masks, read by the adapter's model under its own fusion.
    same = compose(parts["adapter"], parts["adapter"])
    torch.testing.assert_close(run(same)[1].class_probs, run(classifier)[1].class_probs)
    assert (scores.class_probs - run(classifier)[1].class_probs).abs().max() > 1e-3


def test_two_clips_each_with_its_own_words(parts: dict[str, Path]) -> None:
    model, generator, classifier = compose(parts["other"], parts["fcclip"]), load(parts["other"]), load(parts["fcclip"])
    assert isinstance(model.system.generator, OwnBackbone) and model.query is not None
    bank = model.text_bank(Vocabulary.parse("sky, tree"))
    assert (bank.query.shape, bank.region.shape) == ((2, 1, 8), (2, 1, 16))
    proposals, scores = run(model)
    theirs, _ = run(generator)
    torch.testing.assert_close(proposals.mask_logits, theirs.mask_logits)
    torch.testing.assert_close(proposals.class_logits, theirs.class_logits)
    # By hand: the classifier's slots on those masks, and its fusion.
    text, system, images = (
        classifier.text_bank(Vocabulary.parse("sky, tree | bush, zebra")),
        classifier.system,
        photos(),
    )
    with torch.no_grad():
        regions = system.embedder(images, system.encoder(images), theirs.mask_logits)
        expected = system.fuse(theirs, system.scorer(regions, text), regions.valid, text)
    torch.testing.assert_close(scores.class_probs, expected.class_probs)


def test_who_knows_the_classes_decides_the_fusion(parts: dict[str, Path]) -> None:
    def fuse(proposals: str, regions: str, **choices: Any) -> Any:
        return compose(proposals if proposals == "given" else parts[proposals], parts[regions], **choices).system.fuse

    def exponents(*pair: str, **choices: Any) -> tuple[float, float, bool]:
        found = fuse(*pair, **choices)
        assert isinstance(found, GeometricEnsemble)
        return found.alpha, found.beta, found.only_valid

    assert exponents("other", "adapter") == (0.7, 0.9, False)  # the classifier's
    assert exponents("other", "adapter", alpha=0.1) == (0.1, 0.9, False)
    assert exponents("fcclip", "clip") == (0.4, 0.8, False)  # a CLIP alone has none: the generator's
    assert exponents("fcclip", "resnet") == (0.4, 0.8, True)
    assert exponents("maftplus", "clip", beta=0.5) == (0.4, 0.5, False)
    assert isinstance(fuse("fcclip", "maftplus"), RegionWithVoid)
    assert isinstance(fuse("maftplus", "clip"), RegionWithVoid)
    assert exponents("mask2former", "adapter") == (1.0, 1.0, False)  # of words it knows nothing, of void it does
    assert exponents("eomt", "adapter", alpha=0.6) == (0.6, 1.0, False)
    for proposals in ("given", "clustered", "sam"):
        assert isinstance(fuse(proposals, "adapter"), RegionOnly)
    assert isinstance(fuse("mask2former", "clip", settings={"own_classes": False}), RegionOnly)


def test_seen_are_the_words_the_generator_was_trained_with(parts: dict[str, Path]) -> None:
    assert compose(parts["other"], parts["maftplus"]).training_phrases == ("sky", "tree")
    assert compose(parts["mask2former"], parts["clip"]).training_phrases == ("wall", "tree", "cat")
    assert compose(parts["sam"], parts["fcclip"]).training_phrases == ()


def test_a_closed_list_of_classes_tells_those_of_the_words_that_are_in_it(parts: dict[str, Path]) -> None:
    model = compose(parts["mask2former"], parts["clip"], alpha=0.0)
    proposals, scores = run(model)  # sky, tree, zebra; its own are wall, tree, cat
    assert proposals.class_logits is not None and proposals.class_logits.shape[-1] == 4
    void = proposals.class_logits.softmax(-1)[..., -1]
    torch.testing.assert_close(scores.void_prob, void, atol=1e-6, rtol=1e-4)
    without = run(compose(parts["mask2former"], parts["clip"]))
    torch.testing.assert_close(without[1].void_prob, scores.void_prob)
    assert (without[1].class_probs[..., 1] - scores.class_probs[..., 1]).abs().max() > 1e-3


def test_masks_that_nobody_else_judges_are_grown(parts: dict[str, Path]) -> None:
    for proposals, grown in (("sam", True), ("clustered", True), ("mask2former", True), ("other", False)):
        embedder = compose(parts[proposals], parts["fcclip"]).system.embedder
        assert isinstance(embedder, GrownUntilSeen) == grown
    # Those of an adapter are seen in any case, and without the layer around it a model may skip decided proposals.
    Segmenter.compose(parts["mask2former"], parts["adapter"], "cpu", skip_decided=True)


def test_the_canvas_and_the_outputs(parts: dict[str, Path], tmp_path: Path) -> None:
    assert compose(parts["other"], parts["fcclip"]).canvas == Canvas(64, 96)
    assert compose(parts["other"], parts["fcclip"], canvas=Canvas(128, 256)).canvas == Canvas(128, 256)
    wide = Path(shutil.copytree(parts["other"], tmp_path / "wide"))
    edit(wide, lambda settings: settings["canvas"].update(multiple=48))
    assert compose(wide, parts["fcclip"]).canvas == Canvas(64, 96, 96)
    usual = OutputSettings()
    assert compose(parts["other"], parts["fcclip"]).outputs == compose(parts["eomt"], parts["clip"]).outputs == usual
    overlapping = compose(parts["sam"], parts["fcclip"]).outputs
    assert (overlapping.overlap_threshold, overlapping.least_cover) == (0.5, 0.05)
    chosen = OutputSettings(top_instances=7)
    assert compose(parts["sam"], parts["fcclip"], outputs=chosen).outputs == chosen


def test_the_same_module_is_told_by_its_weights_and_its_settings(parts: dict[str, Path]) -> None:
    first, second = (load(parts["fcclip"]).system.encoder for _ in range(2))
    assert same_module(first, first) and same_module(first, second)
    second.mean = (0.0, 0.0, 0.0)
    assert not same_module(first, second)
    third = load(parts["fcclip"]).system.encoder
    with torch.no_grad():
        next(third.parameters()).add_(1e-3)
    assert not same_module(first, third)
    assert not same_module(first, load(parts["maftplus"]).system.encoder)
    assert not same_module(first, load(parts["resnet"]).system.encoder)


PAIRS = {
    "given masks": ("given", "fcclip", {}),
    "one clip": ("fcclip", "adapter", {"alpha": 0.3}),
    "two clips": ("other", "maftplus", {}),
    "clusters": ("clustered", "fcclip", {}),
    "a clip alone": ("fcclip", "clip", {}),
    "mask2former": ("mask2former", "adapter", {"settings": {"short_edge": 48}}),
    "sam": ("sam", "clip", {"settings": FEW_POINTS}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_round_trip(kind: str, parts: dict[str, Path], tmp_path: Path) -> None:
    proposals, regions, choices = PAIRS[kind]
    pair = (proposals if proposals == "given" else parts[proposals], parts[regions])
    folder = compose_folder(tmp_path / "pair", *pair, **choices)
    inside = {path.name for path in folder.iterdir()}
    assert inside == {"lexiseg.json", "regions"} | (set() if proposals == "given" else {"proposals"})
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}
    direct, model = compose(*pair, **choices), load(folder)
    assert (model.name, direct.name) == ("pair", f"{proposals}+{regions}")
    images = photos()
    if proposals == "given":
        assert isinstance(model.system.generator, GivenMasks)
        images = Images(images.pixels, images.sizes_hw, images.original_hw, torch.rand(1, 3, 64, 96) > 0.5)
    for one, other in zip(run(direct, images), run(model, images), strict=True):
        for field in vars(one):
            if getattr(one, field) is not None:
                torch.testing.assert_close(getattr(one, field), getattr(other, field))
    assert (model.canvas, model.outputs, model.training_phrases) == (
        direct.canvas,
        direct.outputs,
        direct.training_phrases,
    )
    assert model.card == json.loads(json.dumps(direct.card)) and set(model.card) == {"proposals", "regions"}
    assert compose_folder(folder, *pair, **choices) == folder  # once more, into the same place
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_a_composition_takes_the_place_of_another(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = compose_folder(tmp_path / "pair", parts["sam"], parts["fcclip"])
    compose_folder(folder, parts["other"], parts["maftplus"])
    assert {path.name for path in (folder / "proposals").iterdir()} == {path.name for path in parts["other"].iterdir()}
    compose_folder(folder, "given", parts["fcclip"])
    assert not (folder / "proposals").exists() and isinstance(load(folder).system.generator, GivenMasks)


def test_an_embedded_part_brings_the_text_tower_that_lies_beside_it(
    parts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = tmp_path / "embedded"
    shutil.copytree(parts["fcclip"], embedded / "street-tiny")
    (embedded / "towers").mkdir()
    (embedded / "street-tiny" / "text.safetensors").rename(embedded / "towers" / "text.safetensors")

    def beside(settings: dict[str, Any]) -> None:
        settings["text"] = "../towers/text.safetensors"
        settings["files"]["../towers/text.safetensors"] = settings["files"].pop("text.safetensors")

    edit(embedded / "street-tiny", beside)
    monkeypatch.setattr("lexiseg.zoo.loading.EMBEDDED", embedded)
    folder = compose_folder(tmp_path / "pair", "given", "street-tiny")
    shutil.rmtree(embedded)
    assert load(folder).text_encoder().encode(["sky"]).shape == (1, 16)


def test_pairs_that_cannot_work_are_refused_with_the_reason(parts: dict[str, Path], tmp_path: Path) -> None:
    composed = compose_folder(tmp_path / "pair", "given", parts["fcclip"])
    cases: list[tuple[Any, Any, dict[str, Any], str]] = [
        (composed, parts["fcclip"], {}, "pair is itself composed; name the parts of it that you want"),
        (parts["fcclip"], composed, {}, "pair is itself composed"),
        (parts["fcclip"], "given", {}, "given draws masks and reads no regions; name a model that does, or a CLIP"),
        (parts["fcclip"], parts["sam"], {}, "sam draws masks and reads no regions"),
        (parts["clip"], parts["fcclip"], {}, "clip is a CLIP, which draws no masks; take it for the regions"),
        (tmp_path, parts["fcclip"], {}, r"lexiseg\.json: missing"),
        (parts["fcclip"], parts["clip"], {"alpha": 1.5}, r"alpha and beta are weights in 0\.\.1, not 1\.5"),
        ("given", parts["fcclip"], {"alpha": 0.5}, "alpha and beta weigh two verdicts .* knows no classes"),
        (parts["sam"], parts["fcclip"], {"beta": 0.5}, "knows no classes"),
        (parts["clustered"], parts["fcclip"], {"beta": 0.5}, "knows no classes"),
        ("given", parts["fcclip"], {"settings": {"points_per_side": 3}}, "given has no settings to choose"),
        (parts["other"], parts["fcclip"], {"settings": {"points_per_side": 3}}, "other has no settings to choose"),
        (parts["sam"], parts["fcclip"], {"settings": {"short_edge": 3}}, "sam: .*no setting short_edge"),
        (parts["sam"], parts["fcclip"], {"settings": {"points_per_side": 0}}, "points_per_side is 0"),
        (
            parts["eomt"],
            parts["fcclip"],
            {"settings": {"own_classes": 3}},
            r"eomt: settings\.own_classes: Input should be a valid boolean",
        ),
        ("no-such", parts["fcclip"], {}, "no model or folder is called 'no-such'"),
    ]
    for proposals, regions, choices, words in cases:
        with pytest.raises(ValueError, match=words):
            compose_folder(tmp_path / "none", proposals, regions, **choices)
    assert not (tmp_path / "none").exists()
    with pytest.raises(
        ValueError, match="skip_decided is for models with a Mask-Adapter or masked crops whose generator tells void"
    ):
        Segmenter.compose(parts["sam"], parts["adapter"], "cpu", skip_decided=True)
    with pytest.raises(CompositionError, match="this is the part itself"):
        compose_folder(composed, "given", composed / "regions")
    assert load(composed).name == "pair"


def test_a_part_alone_is_no_model(parts: dict[str, Path]) -> None:
    with pytest.raises(UnknownModelError, match=r"no model by itself.*: lexiseg compose --proposals .*sam \.\.\."):
        load(parts["sam"])
    with pytest.raises(UnknownModelError, match=r"lexiseg compose --regions .*clip \.\.\."):
        load(parts["clip"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(format=2), "format: Input should be 1"),
        (lambda s: s.pop("canvas"), "canvas: Field required"),
        (lambda s: s.update(builder="fcclip"), "builder: Extra inputs are not permitted"),
        (lambda s: s.update(composed=[]), "composed: Input should be"),
        (lambda s: s["composed"].pop("regions"), r"composed\.regions: Field required"),
        (lambda s: s["composed"]["proposals"].update(kind="diffusers"), r"composed\.proposals: .*diffusers"),
        (
            lambda s: s["composed"]["regions"].update(kind="given"),
            r"composed\.regions\.kind: Input should be 'lexiseg'",
        ),
        (
            lambda s: s["composed"]["regions"].update(folder="../fcclip"),
            r"composed\.regions\.folder: String should match",
        ),
        (lambda s: s["composed"]["regions"].update(folder="/etc"), r"composed\.regions\.folder: String should match"),
        (lambda s: s["composed"]["regions"].update(folder="a/b"), r"composed\.regions\.folder: String should match"),
        (lambda s: s["composed"]["regions"].update(folder="nowhere"), r"nowhere.lexiseg\.json: missing"),
        (lambda s: s["composed"].update(alpha=2), r"composed\.alpha: Input should be less than"),
        (lambda s: s["composed"].update(alpha=0.5), "knows no classes"),
        (lambda s: s["composed"]["proposals"]["settings"].update(points=3), "has no setting points"),
        (lambda s: s["composed"]["proposals"]["settings"].update(points_per_side="3"), r"settings\.points_per_side"),
        (lambda s: s["composed"]["proposals"]["settings"].update(points_per_side=10**6), "points_per_side is 1000000"),
        (lambda s: s["composed"]["proposals"].update(settings={f"a{i}": 1 for i in range(60)}), "at most 50"),
        (lambda s: s["outputs"].update(least_cover=3), r"outputs\.least_cover"),
    ],
)
def test_bad_settings_name_the_field(change: Any, words: str, parts: dict[str, Path], tmp_path: Path) -> None:
    folder = compose_folder(tmp_path / "pair", parts["sam"], parts["fcclip"], settings=FEW_POINTS)
    edit(folder, change)
    with pytest.raises(ModelFolderError, match=words) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_no_part_is_composed_itself(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = compose_folder(tmp_path / "pair", "given", parts["fcclip"])
    shutil.rmtree(folder / "regions")
    compose_folder(folder / "regions", "given", parts["fcclip"])
    with pytest.raises(ModelFolderError, match="pair/regions is itself composed"):
        load(folder)


def test_damaged_parts_are_told(parts: dict[str, Path], tmp_path: Path) -> None:
    folder = compose_folder(tmp_path / "pair", parts["mask2former"], parts["fcclip"])
    (folder / "proposals" / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="proposals: has no model.safetensors"):
        load(folder)
    (folder / "regions" / "model.safetensors").write_bytes(b"x")
    shutil.copy(parts["mask2former"] / "model.safetensors", folder / "proposals")
    with pytest.raises(ModelFolderError, match=r"regions.model\.safetensors: 1 bytes .* damaged or exchanged"):
        load(folder)


# ---------------------------------------------------------------------------------------------------------- the hub


def served(*folders: Path) -> dict[str, bytes]:
    """The files of several repositories: their names differ, so one server can stand for all."""
    files = [path for folder in folders for path in folder.iterdir()]
    assert len({path.name for path in files}) == len(files)
    return {path.name: path.read_bytes() for path in files}


def fetched() -> set[str]:
    return {path.removeprefix("/") for method, path, _ in Hub.requests if method == "GET"}


@pytest.mark.parametrize(
    ("name", "generator"),
    [
        ("ready-mask2former-convnext-large", "mask2former"),
        ("ready-eomt-convnext-large", "eomt"),
        ("ready-sam-convnext-large", "sam"),
    ],
)
def test_ready_models_come_from_the_hub_alone(
    name: str,
    generator: str,
    parts: dict[str, Path],
    hub_server: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Hub.files = {**served(parts[generator], parts["clip"]), "pytorch_model.bin": b"a pickle", "README.md": b"words"}
    state = {row.name: row.state for row in rows()}
    assert state[name].startswith("needs a network when first used: ")
    model = load(name)
    assert model.name == name and model.card["title"] == ZOO[name].title and model.card["weights_licence"]
    source = ZOO[name].source
    assert isinstance(source, Composed) and isinstance(source.regions, HubPart)
    masks, clip = f"{source.proposals.repository}/resolve/main/", f"{source.regions.repository}/resolve/main/"
    assert fetched() == {
        *(masks + file for file in ("config.json", "model.safetensors", "preprocessor_config.json")),
        *(clip + file for file in ("open_clip_config.json", "open_clip_model.safetensors")),
    }
    same = compose(parts[generator], parts["clip"])
    torch.testing.assert_close(run(model)[0].mask_logits, run(same)[0].mask_logits)
    assert {row.name: row.state for row in rows()}[name] == "ready"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for offline in (True, None):  # the second finds nobody there
        assert run(load(name, offline=offline))[1].class_probs.shape == run(model)[1].class_probs.shape
    with pytest.raises(CompositionError, match=f"{name} is itself composed"):
        compose(name, parts["fcclip"])


def test_an_adapter_behind_sam_waits_for_the_adapter(
    parts: dict[str, Path],
    hub_server: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("LEXISEG_MODELS", str(tmp_path))
    Hub.files = served(parts["sam"])
    with pytest.raises(UnknownModelError, match="mask-adapter-fcclip-large: not here yet"):
        load("mask-adapter-sam")
    with pytest.raises(UnreachableError, match="not in the cache, and HF_HUB_OFFLINE forbids"):
        load("ready-sam2-convnext-large", offline=True)
    shutil.copytree(parts["adapter"], tmp_path / "mask-adapter-fcclip-large")
    model = load("mask-adapter-sam")
    assert isinstance(model.system.fuse, RegionOnly) and isinstance(model.system.embedder, MaskAdapterPool)


def test_parts_from_any_repository(parts: dict[str, Path], hub_server: str, tmp_path: Path) -> None:  # noqa: F811
    Hub.files = served(parts["mask2former"], parts["clip"])
    folder = compose_folder(tmp_path / "pair", "someone/masks", "someone/clip")
    Hub.files = {}
    assert load(folder, offline=True).card["proposals"] == {"title": "someone/masks"}
    Hub.files = served(parts["fcclip"])
    assert type(compose("someone/model", parts["fcclip"], offline=False).system.generator) is not OwnBackbone
    Hub.files = {"config.json": (parts["sam"] / "config.json").read_bytes(), "pytorch_model.bin": b"a pickle"}
    with pytest.raises(CompositionError, match="someone/pickled: the repository has no model.safetensors; pickles are"):
        compose("someone/pickled", parts["fcclip"])
    Hub.files = {"README.md": b"words"}
    for proposals, regions in (("someone/else", parts["fcclip"]), (parts["fcclip"], "someone/else")):
        with pytest.raises(DownloadError, match="someone/else/.*config.json: the repository has no such file"):
            compose(proposals, regions)


def test_a_composed_model_may_be_a_repository(parts: dict[str, Path], hub_server: str, tmp_path: Path) -> None:  # noqa: F811
    folder = compose_folder(tmp_path / "pair", parts["sam"], parts["fcclip"], settings=FEW_POINTS)
    Hub.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    model = load("someone/pair")
    assert model.name == "someone/pair"
    torch.testing.assert_close(run(model)[1].class_probs, run(load(folder))[1].class_probs)
    assert model.text_encoder().encode(["sky"]).shape == (1, 16)

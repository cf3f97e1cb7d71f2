"""Model folders: what is written is read again, and what is not a model is told in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lexiseg.clip.text import TextEncoder
from lexiseg.images import Canvas
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.system import System
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.loading import UnknownModelError, load
from lexiseg.zoo.model_folder import ModelFolderError, OutputSettings, load_folder, save_model_folder
from tests.weights.hub_server import Hub, hub_server  # noqa: F401 - a fixture
from tests.zoo.conftest import GENERATOR, TOWERS, randomise

TOWER = TOWERS["resnet"]


SETTINGS = {"builder": "fcclip", "arguments": {"tower": TOWER, **GENERATOR}, "templates": "photo1"}


def build() -> tuple[System, TextEncoder, dict[str, Any]]:
    system, text = fcclip(TOWER, device="cpu", **GENERATOR), text_encoder(TOWER, device="cpu")
    randomise(system, 0)
    randomise(text, 1)
    return system, text, dict(SETTINGS)


@pytest.fixture
def parts() -> tuple[System, TextEncoder, dict[str, Any]]:
    return build()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    system, text, settings = build()
    return save_model_folder(tmp_path_factory.mktemp("saved") / "toy", system, text, **settings)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that the test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "toy"))


def test_round_trip(parts: Any, tmp_path: Path, run: Any) -> None:
    system, text, settings = parts
    save_model_folder(
        tmp_path / "toy",
        system,
        text,
        **settings,
        canvas=Canvas(640, 960, 64),
        outputs=OutputSettings(top_instances=7),
        training_phrases=["sky", "street"],
        card={"title": "Toy", "measured": {"camvid": {"miou": 50.5}}},
    )
    model = load(tmp_path / "toy")
    assert (model.name, model.canvas, model.templates) == ("toy", Canvas(640, 960, 64), ("a photo of a {}.",))
    assert model.outputs == OutputSettings(
        object_mask_threshold=0.0, overlap_threshold=0.8, top_instances=7
    ) and model.training_phrases == ("sky", "street")
    assert model.card == {"title": "Toy", "measured": {"camvid": {"miou": 50.5}}}
    assert not model.system.training
    masks, scores = run(system)
    same_masks, same_scores = run(model.system)
    assert torch.equal(masks, same_masks) and torch.equal(scores.class_probs, same_scores.class_probs)
    assert torch.equal(model.text_encoder().encode(["a cat"]), text.encode(["a cat"]))
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {
        "lexiseg.json", "model.safetensors", "text.safetensors",
    }  # fmt: skip


def test_half_precision_is_for_the_disk(parts: Any, folder: Path, tmp_path: Path) -> None:
    system, text, settings = parts
    half = save_model_folder(tmp_path / "half", system, text, **settings, dtype=torch.float16)
    for name in ("model.safetensors", "text.safetensors"):
        assert (half / name).stat().st_size < 0.6 * (folder / name).stat().st_size
    stored = load_file(half / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    loaded = load(half).system.state_dict()
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(loaded[name], tensor.to(loaded[name].dtype)) for name, tensor in stored.items())
    assert {tensor.dtype for tensor in load(half).text_encoder().state_dict().values()} == {torch.float32}


def test_what_half_precision_cannot_hold_is_refused(parts: Any, tmp_path: Path) -> None:
    system, text, settings = parts
    with torch.no_grad():
        system.generator.decoder.query_feat.weight[0, 0] = 1e6
    with pytest.raises(ModelFolderError, match=r"generator\.decoder\.query_feat\.weight: not finite in torch\.float16"):
        save_model_folder(tmp_path / "half", system, text, **settings, dtype=torch.float16)
    assert not (tmp_path / "half" / "lexiseg.json").exists()


def test_text_tower_is_loaded_at_the_first_call_and_once(folder: Path) -> None:
    hidden = (folder / "text.safetensors").rename(folder / "hidden")
    model = load(folder)
    with pytest.raises(ModelFolderError, match=r"text\.safetensors: no such file"):
        model.text_encoder()
    hidden.rename(folder / "text.safetensors")
    assert model.text_encoder() is model.text_encoder()


def test_fingerprint_stands_for_the_text_tower_alone(parts: Any, folder: Path, tmp_path: Path) -> None:
    system, text, settings = parts
    mark = load(folder).fingerprint
    assert len(mark) == 64

    randomise(system, 5)
    assert load(save_model_folder(tmp_path / "a", system, text, **settings)).fingerprint == mark

    other_heads = {**TOWER, "text_cfg": {**TOWER["text_cfg"], "heads": 4}}
    arguments = {**settings["arguments"], "tower": other_heads}
    changed = save_model_folder(tmp_path / "b", system, text, **{**settings, "arguments": arguments})
    assert load(changed).fingerprint != mark

    randomise(text, 5)
    assert load(save_model_folder(tmp_path / "c", system, text, **settings)).fingerprint != mark


def test_the_fingerprint_needs_no_recorded_hash(folder: Path) -> None:
    mark = load(folder).fingerprint
    edit(folder, lambda settings: settings.pop("files"))
    assert load(folder).fingerprint == mark


def test_a_text_tower_may_be_shared_by_embedded_models(parts: Any, folder: Path) -> None:
    system, _, settings = parts
    beside = save_model_folder(folder.parent / "beside", system, "../toy/text.safetensors", **settings)
    model = load_folder(beside, siblings=True)
    assert model.fingerprint == load(folder).fingerprint
    assert model.text_encoder().encode(["a"]).shape == (1, 16)
    with pytest.raises(ModelFolderError, match="text: '../toy/text.safetensors' is not the name of a safetensors file"):
        load(beside)
    with pytest.raises(ModelFolderError, match="does not exist"):
        save_model_folder(folder.parent / "beside", system, "../absent/text.safetensors", **settings)


def test_the_ensemble_follows_from_the_family() -> None:
    for tower, expected in (("resnet", True), ("convnext mlp", False)):
        fuse = fcclip(TOWERS[tower], **GENERATOR).fuse
        assert isinstance(fuse, GeometricEnsemble)
        assert (fuse.alpha, fuse.beta, fuse.only_valid) == (0.4, 0.8, expected)


@pytest.mark.parametrize("name", TOWERS)
def test_clustered(name: str, run: Any, tmp_path: Path) -> None:
    system = clustered(TOWERS[name], clusters=4, smallest_share=0.0, device="cpu")
    text = text_encoder(TOWERS[name], device="cpu")
    arguments = {"tower": TOWERS[name], "clusters": 4, "smallest_share": 0.0}
    save_model_folder(tmp_path / "c", system, text, builder="clustered", arguments=arguments, templates=["a {}"])
    masks, scores = run(load(tmp_path / "c").system)
    same_masks, same_scores = run(system)
    assert torch.equal(masks, same_masks) and torch.equal(scores.class_probs, same_scores.class_probs)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "lexiseg.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(format=2), "format: Input should be 1"),
        (lambda s: s.pop("format"), "format: Field required"),
        (lambda s: s.pop("templates"), "templates: Field required"),
        (
            lambda s: s.update(builder="unheard-of"),
            "builder: 'unheard-of' is unknown to this version, which knows fcclip",
        ),
        (lambda s: s.update(colour="red"), "colour: Extra inputs are not permitted"),
        (lambda s: s.update(templates="fc"), "templates: no template set is called 'fc'"),
        (lambda s: s.update(templates=["a photo"]), "templates: template 'a photo'.* needs exactly one"),
        (lambda s: s["canvas"].update(short_edge="800"), r"canvas\.short_edge: Input should be a valid integer"),
        (lambda s: s["canvas"].update(short_edge=10**6), r"canvas\.short_edge: Input should be less than"),
        (lambda s: s["canvas"].update(long_edge=100), "canvas: long_edge is below short_edge"),
        (lambda s: s["outputs"].update(overlap_threshold=2), r"outputs\.overlap_threshold: Input should be less than"),
        (lambda s: s.update(training_phrases=[1]), r"training_phrases\.0: Input should be a valid string"),
        (lambda s: s["arguments"].update(widht=3), "arguments: builder 'fcclip' .*widht"),
        (lambda s: s["arguments"].update(alpha="high"), r"arguments\.alpha: Input should be a valid number"),
        (lambda s: s["arguments"].update(width="wide"), r"arguments\.width: Input should be a valid integer"),
        (lambda s: s["arguments"].update(width=33), "arguments: builder 'fcclip' .* cannot be called so"),
        (lambda s: s["arguments"].update(width=10**9), r"arguments\.width: 1000000000 is beyond any model's size"),
        (lambda s: s["arguments"].update(decoder_layers=10**5), "beyond any model's size"),
        (lambda s: s["arguments"].update(device="cuda"), "arguments: 'device' is chosen by the user"),
        (lambda s: s["arguments"].update(tower="hf-hub:someone/model"), r"arguments\.tower: .* is not the name"),
        (lambda s: s["arguments"].update(tower="/etc/passwd"), r"arguments\.tower: .* is not the name"),
        (lambda s: s["arguments"].update(tower="RN51"), "open_clip has no model 'RN51'"),
        (lambda s: s["arguments"].update(tower="ViT-B-32"), "transformer"),
        (lambda s: s["arguments"].update(tower={"a": deep(9)}), "nested too deeply"),
        (
            lambda s: s["arguments"]["tower"]["text_cfg"].update(hf_model_name="someone/model"),
            r"arguments\.tower\.text_cfg\.hf_model_name: .* is not the name",
        ),
        (lambda s: s["arguments"]["tower"]["text_cfg"].update(heads=3), r"arguments\.tower: no text tower"),
        (lambda s: s["arguments"].pop("tower"), "arguments: builder 'fcclip'|arguments.tower: Missing"),
        (lambda s: s.update(text="../../etc/text.safetensors"), "text: .* is not the name of a safetensors file"),
        (lambda s: s.update(text="/etc/passwd"), "text: .* is not the name of a safetensors file"),
        (lambda s: s["files"]["model.safetensors"].update(sha256="0"), "sha256: String should match"),
        (lambda s: s["files"]["model.safetensors"].update(sha256="0" * 64), r"model\.safetensors: .* exchanged"),
        (lambda s: s["files"]["text.safetensors"].update(bytes=5), r"text\.safetensors: .* exchanged"),
    ],
)
def test_bad_settings_name_the_field(change: Any, words: str, folder: Path) -> None:
    edit(folder, change)
    with pytest.raises(ModelFolderError, match=words) as caught:
        load(folder).text_encoder()
    assert str(folder) in str(caught.value)


def test_bad_settings_files(folder: Path, tmp_path: Path) -> None:
    for content, words in (
        (b"", "lexiseg.json: .*"),
        (b"{", "lexiseg.json: Invalid JSON"),
        (b"[1]", "lexiseg.json: Input should be an object"),
        (b"\xff\xfe", "lexiseg.json: Invalid JSON"),
        (b" " * (5 * 2**20), "larger than 4 MiB"),
    ):
        (folder / "lexiseg.json").write_bytes(content)
        with pytest.raises(ModelFolderError, match=words):
            load(folder)
    (folder / "lexiseg.json").unlink()
    with pytest.raises(ModelFolderError, match=r"lexiseg\.json: missing; a model folder has"):
        load(folder)
    with pytest.raises(ModelFolderError, match="no such folder"):
        load_folder(tmp_path / "absent")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_bad_weights_name_the_tensor(folder: Path) -> None:
    path, key = folder / "model.safetensors", "generator.decoder.query_feat.weight"
    edit(folder, lambda settings: settings.pop("files"))
    good = path.read_bytes()
    for change, words in (
        (lambda t: t.pop(key), f"1 in the model, but not in the file:\n    {key}"),
        (lambda t: t.update({"old.name": t.pop(key)}), "1 in the file, but not in the model:\n    old.name"),
        (lambda t: t.update({key: torch.zeros(1, 2)}), r"of another shape:\n    .*query_feat\.weight: \[1, 2\]"),
    ):
        rewrite(path, change)
        with pytest.raises(ModelFolderError, match=words):
            load(folder)
        path.write_bytes(good)
    path.write_bytes(good[:-10])
    with pytest.raises(ModelFolderError, match="damaged or incomplete"):
        load(folder)
    with pytest.raises(ModelFolderError, match="above the limit"):
        load_folder(folder, max_bytes=100)
    path.unlink()
    with pytest.raises(ModelFolderError, match=r"model\.safetensors: no such file"):
        load(folder)


def test_what_would_not_load_is_not_saved(parts: Any, folder: Path) -> None:
    system, text, settings = parts
    before = (folder / "lexiseg.json").read_bytes()
    state = system.state_dict()
    state.pop("scorer.logit_scale")
    with pytest.raises(ModelFolderError, match=r"model\.safetensors: .*\n.*\n    scorer\.logit_scale"):
        save_model_folder(folder, state, text, **settings)
    with pytest.raises(ModelFolderError, match="builder: 'other' is unknown"):
        save_model_folder(folder, system, text, **{**settings, "builder": "other"})
    assert (folder / "lexiseg.json").read_bytes() == before
    load(folder)


def test_unknown_names_get_a_hint(folder: Path) -> None:
    with pytest.raises(UnknownModelError, match="did you mean 'street-tiny'"):
        load("street-tyni")
    with pytest.raises(ModelFolderError, match="a model is a folder"):
        load(folder / "model.safetensors")


def test_from_a_hub_repository(folder: Path, hub_server: str, run: Any) -> None:  # noqa: F811
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = load("someone/toy")
    assert model.name == "someone/toy"
    assert torch.equal(run(model.system)[0], run(load(folder).system)[0])
    fetched = {path.split("/")[-1] for method, path, _ in Hub.requests if method == "GET"}
    assert fetched == {"lexiseg.json", "model.safetensors"}  # the text tower only when it is needed
    assert model.fingerprint == load(folder).fingerprint
    assert model.text_encoder().encode(["a"]).shape == (1, 16)
    assert load("someone/toy", offline=True).text_encoder().encode(["a"]).shape == (1, 16)


def test_a_hub_repository_may_not_reach_outside(folder: Path, hub_server: str) -> None:  # noqa: F811
    edit(folder, lambda settings: settings.update(text="../toy/text.safetensors"))
    Hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ModelFolderError, match="is not the name of a safetensors file"):
        load("someone/toy")

"""Classifiers at the start of their tuning: from every kind of folder, leaving CLIP's own verdicts as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import save_file

from lexiseg.images import Canvas, Photo
from lexiseg.proposals.given_masks import GivenMasks, with_given_masks
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.regions.masked_attention import SoftAttentionPool
from lexiseg.regions.soft_mask_pool import SoftMaskPool
from lexiseg.scoring.fusion import RegionOnly
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.scoring.template_mix import TemplateMean, TemplateMix
from lexiseg.system import System
from lexiseg.text_bank import encode_vocabulary
from lexiseg.types import Images, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.loading import compose_folder, load
from lexiseg.zoo.maskclip_pp import maskclip_pp_given
from lexiseg.zoo.model_folder import ModelFolderError, save_model_folder
from lexiseg.zoo.untuned import Untuned, untuned
from tests.eva_towers import EVA_TOWERS
from tests.zoo.conftest import TOWERS

CANVAS = Canvas(64, 96)


def clip_folder(folder: Path, tower: dict[str, Any], templates: Any = "fcclip14") -> Path:
    torch.manual_seed(0)
    system = clustered(tower, device="cpu")
    return save_model_folder(
        folder,
        system,
        text_encoder(tower, device="cpu"),
        builder="clustered",
        arguments={"tower": tower},
        templates=templates,
        canvas=CANVAS,
    )


def tuned_folder(folder: Path, tower: dict[str, Any], **arguments: Any) -> Path:
    torch.manual_seed(0)
    arguments = {"tower": tower, "short_edge": 64, **arguments}
    system = maskclip_pp_given(**arguments, device="cpu")
    return save_model_folder(
        folder,
        system,
        text_encoder(tower, device="cpu"),
        builder="maskclip_pp_given",
        arguments=arguments,
        templates="fcclip14",
        mix_templates=False,
        canvas=CANVAS,
    )


def pictures() -> Images:
    picture = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:], masks[2, :, 10:50] = True, True, True
    return with_given_masks(CANVAS([Photo(picture.numpy(), "")]), [masks])


def bank(model: Untuned) -> TextBank:
    vocabulary = Vocabulary.parse("road | street, sky, tree, dog")
    rows = encode_vocabulary(vocabulary, model.templates, model.text_encoder, mix_templates=False)
    return TextBank(rows, rows, torch.tensor(vocabulary.class_of), torch.ones(4, dtype=torch.bool))


@torch.no_grad()
def logits(model: Untuned) -> torch.Tensor:
    images = pictures()
    regions = model.embedder.eval()(images, None, GivenMasks()(images).mask_logits)
    return model.scorer.eval()(regions, bank(model))


@pytest.mark.parametrize("name", TOWERS)
def test_from_a_clip(name: str, tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip", TOWERS[name])
    usual = untuned(folder)
    expected = SoftAttentionPool if name == "resnet" else SoftMaskPool
    assert isinstance(usual.embedder, expected) and usual.is_fresh
    assert isinstance(usual.scorer, TemplateMix if name == "resnet" else PseudoText)
    plain = untuned(folder, "template-mean")
    assert isinstance(plain.scorer, TemplateMean)
    own = load(folder).system.state_dict()
    for other, tensor in plain.embedder.state_dict().items():
        if not other.endswith("mask_logit_scale"):
            source = f"encoder.{other.removeprefix('trunk.')}" if other.startswith("trunk.") else f"embedder.{other}"
            assert torch.equal(tensor, own[source])
    torch.testing.assert_close(logits(untuned(folder, "template-mix")), logits(plain), atol=1e-4, rtol=1e-4)


def test_pseudo_text_begins_near_cosines(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip", TOWERS["convnext linear"])
    model = untuned(folder)
    rows = model.scorer.rows(bank(model).region, torch.randn(1, 16, 2, 3))
    words = bank(model).region.mean(1)
    centred = words - words.mean(-1, keepdim=True)
    factor = float(load(folder).system.scorer.logit_scale.exp())
    assert torch.cosine_similarity(rows[0], centred, dim=-1).min() > 0.9999
    torch.testing.assert_close(rows.norm(dim=-1), torch.full_like(rows[..., 0], factor), atol=0, rtol=1e-2)


def test_a_classifier_stays_as_it_is_or_begins_anew(tmp_path: Path) -> None:
    folder = tuned_folder(tmp_path / "tuned", TOWERS["resnet"], mix_width=12)
    kept, given = untuned(folder), load(folder).system
    assert not kept.is_fresh and kept.arguments["mix_width"] == 12
    assert all(torch.equal(x, given.state_dict()[f"scorer.{name}"]) for name, x in kept.scorer.state_dict().items())
    anew = untuned(folder, "template-mean")
    assert anew.is_fresh and "mix_width" not in anew.arguments and anew.arguments["similarity"] == "template-mean"
    assert all(torch.equal(x, kept.embedder.state_dict()[name]) for name, x in anew.embedder.state_dict().items())


def test_picture_is_shown_to_those_who_read_it(tmp_path: Path) -> None:
    folder = tuned_folder(tmp_path / "tuned", TOWERS["convnext mlp"])
    assert untuned(folder).embedder.shows_picture
    assert not untuned(folder, "template-mix").embedder.shows_picture
    assert untuned(folder, short_edge=96).embedder.view.size == 96


@pytest.mark.parametrize("name", EVA_TOWERS)
def test_eva_clips_in_open_clips_layout(name: str, tmp_path: Path) -> None:
    """Their file is what open_clip itself writes; the class token's embedding is the same."""
    tower = EVA_TOWERS[name]
    torch.manual_seed(0)
    clip = CustomTextCLIP(tower["embed_dim"], tower["vision_cfg"], tower["text_cfg"]).eval()
    folder = tmp_path / "clip"
    folder.mkdir()
    config = {"model_cfg": {**tower, "custom_text": True}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {
        key: value.contiguous()
        for key, value in clip.state_dict().items()
        if "rope" not in key and "attn_mask" not in key
    }
    save_file(state, folder / "open_clip_model.safetensors")
    model = untuned(folder)
    assert isinstance(model.embedder, MaskTokens) and isinstance(model.scorer, TemplateMix) and model.is_fresh
    assert model.embedder.mask_logit_scale.eq(-5).all() and model.arguments["short_edge"] == 56
    images = Images(torch.rand(1, 3, 56, 56) * 255, ((56, 56),), ((56, 56),))
    with torch.no_grad():
        expected = clip.visual(model.embedder.trunk.normalise(images))
        torch.testing.assert_close(model.embedder.trunk(images), expected, atol=1e-5, rtol=1e-4)
    assert logits(model).isfinite().all()
    composed = compose_folder(tmp_path / "composed", "given", folder)
    assert isinstance(load(composed).system.generator, GivenMasks)
    saved = save_model_folder(
        tmp_path / "out",
        System(None, GivenMasks(), model.embedder, model.scorer, RegionOnly()),
        model.text_encoder(),
        builder="maskclip_pp_given",
        arguments=model.arguments,
        templates=list(model.templates),
    )
    torch.testing.assert_close(logits(untuned(saved)), logits(model))


def test_what_cannot_be_tuned(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip", TOWERS["convnext mlp"])
    composed = compose_folder(tmp_path / "composed", "given", folder)
    with pytest.raises(ModelFolderError, match="composed model; give the folder of the part"):
        untuned(composed)
    path = folder / "lexiseg.json"
    path.write_text(path.read_text().replace('"clustered"', '"ovseg_given"'))
    with pytest.raises(ModelFolderError, match="'ovseg_given'; needed is a MaskCLIP"):
        untuned(folder)

"""What learns of a MaskCLIP++ classifier, how fast, from which words and from which masks."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lexiseg.clip.text import TextEncoder
from lexiseg.layers.positions import rotary_waves, rotate
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.text_bank import unit_rows
from lexiseg.train.mask_tuning import (
    TrainingWords,
    Tuned,
    _late,
    encoded,
    look_with_slips,
    loss_of_masks,
    parameter_groups,
    seeing_crops,
    tuned_parts,
)
from lexiseg.train.matcher import SegmentTargets
from lexiseg.types import Images
from lexiseg.vocabulary import Vocabulary, VocabularyClass, make_prompts
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.maskclip_pp import mask_classifier
from tests.eva_towers import EVA_TOWERS
from tests.zoo.conftest import TOWERS

WORDS = Vocabulary(
    (VocabularyClass(("road", "street")), VocabularyClass(("sky",)), VocabularyClass(("dog", "hound", "pup")))
)
TEMPLATES = ("a photo of a {}.", "a {}")


def parts(name: str, text: bool = False, **options: Any) -> Tuned:
    torch.manual_seed(0)
    tower = EVA_TOWERS[name] if name in EVA_TOWERS else TOWERS[name]
    embedder, scorer = mask_classifier(tower, 64, num_templates=2, mix_width=8, device="cpu")
    if isinstance(embedder, MaskTokens):
        for parameter in embedder.parameters():  # a fresh toy hardly tells one place from another
            if parameter.ndim > 1 and parameter is not embedder.mask_logit_scale:
                nn.init.normal_(parameter, std=0.3)
    return tuned_parts(embedder, scorer, text_encoder(tower, device="cpu") if text else None, **options)


def words(tuned: Tuned) -> TrainingWords:
    tower = text_encoder(TOWERS["resnet"], device="cpu")
    rows = unit_rows(tower.encode(make_prompts(WORDS.phrases, TEMPLATES)), 2, mix_templates=False)
    return TrainingWords(WORDS, TEMPLATES, None if tuned.text is not None else rows)


def batch(counts: tuple[int, ...] = (3, 1), side: int = 64) -> tuple[Images, list[SegmentTargets]]:
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(len(counts), 3, side, side, generator=generator) * 255
    targets = []
    for count in counts:
        masks = torch.zeros(count, side, side, dtype=torch.bool)
        for number in range(count):
            masks[number, :, 20 * number : 20 * number + 24] = True
        targets.append(SegmentTargets(torch.arange(count) % 3, masks))
    return Images(pixels, ((side, side),) * len(counts), ((side, side),) * len(counts)), targets


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


# -------------------------------------------------------------------------------------------------------- what learns


@pytest.mark.parametrize("name", TOWERS)
def test_convolutional_towers_learn_as_a_whole(name: str) -> None:
    tuned = parts(name)
    assert trained(tuned.embedder) == {key for key, _ in tuned.embedder.named_parameters()}
    assert "logit_scale" not in trained(tuned.scorer) and trained(tuned.scorer)
    assert tuned.embedder.trunk.training and tuned.scorer.training


@pytest.mark.parametrize("name", EVA_TOWERS)
def test_of_transformers_attention_learns(name: str) -> None:
    embedder = parts(name).embedder
    maps = ("q_proj", "v_proj") if name == "eva02" else ("qkv",)
    assert trained(embedder) == {
        "mask_logit_scale",
        "trunk.trunk.pos_embed",
        *(f"trunk.trunk.blocks.{block}.attn.{part}.weight" for block in range(4) for part in maps),
    }
    assert not embedder.trunk.training


def test_of_the_words_tower_whole_blocks_learn_or_attention_alone() -> None:
    kinds = {layers: trained(parts("eva02", text=True, text_layers=layers).text) for layers in ("blocks", "attention")}
    assert {name.split("resblocks.0.")[-1] for name in kinds["attention"] if "resblocks.1" not in name} == {
        "positional_embedding",
        "attn.in_proj_weight",
    }
    own = {name for name in kinds["blocks"] if "resblocks.0" in name}
    assert {name.split(".")[3] for name in own} == {"attn", "ln_1", "ln_2", "mlp"}
    frozen = {"in_proj_bias", "out_proj.weight", "out_proj.bias"}
    assert not any(name.endswith(tuple(frozen)) for name in kinds["blocks"])
    assert not {"token_embedding.weight", "text_projection", "ln_final.weight"} & kinds["blocks"]


@pytest.mark.parametrize("mode", ["fixed", "batch"])
def test_statistics_of_batch_norms(mode: Any) -> None:
    tuned = parts("resnet", batch_norm=mode)
    layer = next(layer for layer in tuned.embedder.modules() if isinstance(layer, nn.BatchNorm2d))
    before = layer.running_mean.clone()
    images, targets = batch()
    with seeing_crops(tuned):
        loss_of_masks(tuned, images, targets, words(tuned).draw(random.Random(0), tuned))
    assert torch.equal(layer.running_mean, before) == (mode == "fixed")


def test_only_such_classifiers() -> None:
    with pytest.raises(TypeError, match="classifiers of MaskCLIP"):
        tuned_parts(nn.Identity(), nn.Identity())


def groups_by_name(tuned: Tuned, **rates: float) -> dict[str, tuple[float, float, float]]:
    names = {id(p): name for name, p in tuned.modules.named_parameters()}
    found = {}
    for group in parameter_groups(tuned, **{"learning_rate": 1.0, "tower_scale": 0.1, "text_scale": 0.2, **rates}):
        (parameter,) = group["params"]
        found[names[id(parameter)]] = (group["lr"], group["lr_scale"], group["weight_decay"])
    return found


def test_groups() -> None:
    """The published ones are compared name by name by tools/parity.py."""
    tuned = parts("resnet", text=True)
    groups = groups_by_name(tuned)
    assert set(groups) == trained(tuned.modules)
    assert groups["embedder.pool.mask_logit_scale"] == (1.0, 1.0, 0.05)
    assert groups["embedder.trunk.trunk.conv1.weight"] == (0.1, 0.1, 0.05)
    assert groups["embedder.trunk.trunk.bn1.bias"] == (0.1, 0.1, 0.0)
    assert groups["embedder.pool.positional_embedding"] == (0.1, 0.1, 0.0)
    assert groups["embedder.pool.q_proj.bias"] == (0.1, 0.1, 0.05)
    assert groups["scorer.mix_out.bias"] == (1.0, 1.0, 0.05)
    assert groups["text.positional_embedding"] == (0.2, 0.2, 0.0)
    assert groups["text.transformer.resblocks.1.ln_2.weight"] == (0.2, 0.2, 0.0)
    assert groups["text.transformer.resblocks.1.mlp.c_fc.bias"] == (0.2, 0.2, 0.05)


# --------------------------------------------------------------------------------------------------------- from what


def test_one_name_of_each_class_drawn_evenly() -> None:
    tuned = parts("resnet")
    own, rng = words(tuned), random.Random(0)
    drawn: Counter[int] = Counter()
    for _ in range(300):
        bank = own.draw(rng, tuned)
        assert bank.region.shape == (3, 2, 16) and bank.class_of.tolist() == [0, 1, 2]
        assert torch.equal(bank.region[1], own.rows[2])
        drawn[next(index for index in (3, 4, 5) if torch.equal(bank.region[2], own.rows[index]))] += 1
    assert set(drawn) == {3, 4, 5} and min(drawn.values()) > 70


def test_tuned_words_are_encoded_anew_with_gradient() -> None:
    tuned = parts("resnet", text=True)
    bank = words(tuned).draw(random.Random(0), tuned)
    bank.region.sum().backward()
    assert all(p.grad is not None for p in tuned.text.parameters() if p.requires_grad)
    prompts = ["a photo of a dog.", "sky"]
    torch.testing.assert_close(encoded(tuned.text, prompts), tuned.text.encode(prompts))
    assert isinstance(tuned.text, TextEncoder) and tuned.text.token_embedding.weight.grad is None


@pytest.mark.parametrize("name", [*TOWERS, *EVA_TOWERS])
def test_gradient_reaches_what_learns_and_nothing_else(name: str) -> None:
    tuned = parts(name)
    images, targets = batch(side=64 if name in TOWERS else 56)
    with seeing_crops(tuned):
        loss, right = loss_of_masks(tuned, images, targets, words(tuned).draw(random.Random(0), tuned))
    assert loss > 0 and 0 <= right <= 1
    loss.backward()
    with_gradient = {key for key, p in tuned.modules.named_parameters() if p.grad is not None}
    assert with_gradient == trained(tuned.modules)


def test_crops_are_seen_as_they_are_and_photos_as_before() -> None:
    tuned = parts("convnext mlp")
    images, _ = batch(side=96)
    assert tuned.embedder.view(images).canvas_hw == (64, 64)
    with seeing_crops(tuned):
        assert tuned.embedder.view(images).canvas_hw == (96, 96)
    assert tuned.embedder.view(images).canvas_hw == (64, 64)


@pytest.mark.parametrize("name", ["convnext mlp", "eva02"])
def test_empty_masks_count_with_pooling_and_nowhere_else(name: str) -> None:
    tuned = parts(name)
    tuned.modules.eval()
    images, targets = batch((2,), side=56)
    empty = SegmentTargets(
        torch.tensor([0, 1, 2]), torch.cat((targets[0].masks, torch.zeros(1, 56, 56, dtype=torch.bool)))
    )
    bank = words(tuned).draw(random.Random(0), tuned)
    losses = [float(loss_of_masks(tuned, images, [one], bank)[0].detach()) for one in (targets[0], empty)]
    assert (losses[0] == pytest.approx(losses[1], abs=1e-6)) == (name == "eva02")


def test_no_mask_at_all_is_a_loss_of_zero_with_a_graph() -> None:
    tuned = parts("resnet")
    images, _ = batch((0, 0))
    none = SegmentTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64, dtype=torch.bool))
    loss, right = loss_of_masks(tuned, images, [none, none], words(tuned).draw(random.Random(0), tuned))
    loss.backward()
    assert float(loss.detach()) == 0 == float(right)


def test_a_photo_counts_the_same_alone_and_beside_fuller_ones() -> None:
    tuned = parts("eva02")
    images, targets = batch((3, 1), side=56)
    bank = words(tuned).draw(random.Random(0), tuned)
    both = loss_of_masks(tuned, images, targets, bank)[0]
    alone = [
        loss_of_masks(
            tuned, Images(images.pixels[i : i + 1], images.sizes_hw[:1], images.original_hw[:1]), [target], bank
        )[0]
        for i, target in enumerate(targets)
    ]
    torch.testing.assert_close(both, torch.stack(alone).mean())


# ----------------------------------------------------------------------------------------------------------- the slips


def slipped(tuned: Tuned, counts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    images, targets = batch(counts, side=56)
    masks = torch.zeros(len(counts), max(counts), 56, 56, dtype=torch.bool)
    for row, target in zip(masks, targets, strict=True):
        row[: len(target.masks)] = target.masks
    logits = torch.where(masks, 120.0, -120.0)
    with torch.no_grad():
        plain = tuned.embedder(images, None, logits).embeds
        return plain, look_with_slips(tuned.embedder, images, logits, counts).embeds


@pytest.mark.parametrize("name", EVA_TOWERS)
def test_slips_spare_single_photos_and_the_first_of_equals(name: str) -> None:
    tuned = parts(name)
    plain, off = slipped(tuned, (3,))
    torch.testing.assert_close(plain, off)
    plain, off = slipped(tuned, (2, 2))
    torch.testing.assert_close(plain[0], off[0])  # its class token, and no empty tokens
    assert not torch.allclose(plain[1], off[1], atol=1e-3)


def test_fewer_masks_turn_patches_by_the_angles_of_others() -> None:
    """Only where there are angles: with EVA-01 the first photo of a batch is as it is alone."""
    for name, spared in (("eva01", True), ("eva02", False)):
        plain, off = slipped(parts(name), (1, 3))
        assert torch.allclose(plain[0, :1], off[0, :1], atol=1e-5) == spared


def test_late_angles_are_those_of_earlier_patches() -> None:
    cosine, sine = rotary_waves((2, 3), 8)
    late = (_late(cosine, (1, 3), 1.0), _late(sine, (1, 3), 0.0))
    x = torch.randn(2, 1, 6, 8)
    turned = rotate(x, late)
    torch.testing.assert_close(turned[0, :, :2], x[0, :, :2])  # two places late: not turned
    torch.testing.assert_close(turned[0, :, 2:], rotate(x[0, :, 2:], (cosine[:4], sine[:4])))
    torch.testing.assert_close(turned[1], rotate(x[1], (cosine, sine)))

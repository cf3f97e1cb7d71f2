import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.proposals.fcclip import fcclip_generator
from lexiseg.system import System
from lexiseg.train.losses import Criterion
from lexiseg.train.recipes import fcclip as recipe
from lexiseg.types import Features, Images, TextBank

SMALL = {
    "width": 8,
    "mask_width": 8,
    "num_queries": 5,
    "encoder_layers": 1,
    "encoder_ffn_width": 8,
    "decoder_layers": 2,
    "decoder_ffn_width": 8,
    "heads": 2,
    "points": 2,
    "norm_groups": 2,
}


class ToyTrunk(nn.Module):
    """One convolution with a batch norm, which must stay as it is, and its averages at four strides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Images) -> Features:
        finest = self.norm(self.conv(images.pixels / 255))
        maps = tuple(functional.avg_pool2d(finest, n) for n in (1, 2, 4, 8))
        return Features(maps=maps, dense=maps[-1])


def toy_system() -> System:
    torch.manual_seed(0)
    generator = fcclip_generator((4, 4, 4, 4), joint_width=6, **SMALL)
    return System(ToyTrunk(), generator, nn.Identity(), nn.Identity(), nn.Identity())


def toy_text() -> TextBank:
    rows = functional.normalize(torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    return TextBank(rows, rows, torch.arange(3), torch.ones(3, dtype=torch.bool))


def toy_photo(height: int = 40, width: int = 60) -> PanopticPhoto:
    """Left half segment 1000 of class 0, right half segment 7 of class 2, a crowd below."""
    ids = np.full((height, width), 7, np.int32)
    ids[:, : width // 2] = 1000
    ids[-3:] = 50
    image = np.zeros((height, width, 3), np.uint8)
    image[ids == 1000] = 200
    return PanopticPhoto(image, ids, {1000: 0, 7: 2})


def test_groups_follow_the_rule_of_the_official_trainer() -> None:
    generator = toy_system().generator
    names = {id(p): name for name, p in generator.named_parameters()}
    decay = {}
    for group in recipe.parameter_groups(generator):
        assert group["lr"] == 1e-4
        (parameter,) = group["params"]
        decay[names[id(parameter)]] = group["weight_decay"]
    assert set(decay) == set(names.values())
    spared = {name for name, value in decay.items() if value == 0}
    assert {value for value in decay.values() if value != 0} == {0.05}
    for name in (
        "decoder.query_feat.weight",
        "decoder.query_embed.weight",
        "decoder.level_embed.weight",
        "void_embedding.weight",
        "pixel_decoder.input_proj.2.1.bias",
        "decoder.mask_pooling_proj.0.weight",
        "decoder.decoder_norm.bias",
        "pixel_decoder.adapter_1.norm.weight",
    ):
        assert name in spared
    for name in (
        "pixel_decoder.transformer.level_embed",  # a bare parameter, unlike the decoder's table
        "decoder.logit_scale",
        "decoder.mask_embed.layers.0.bias",
        "decoder.mask_pooling_proj.1.weight",
        "pixel_decoder.adapter_1.weight",
    ):
        assert name not in spared
    assert {name for name in decay if "norm" in name} <= spared


def test_schedule() -> None:
    factors = [recipe.step_schedule(step, recipe.TOTAL_STEPS) for step in (0, 327_777, 327_778, 355_091, 355_092)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    assert recipe.step_schedule(888, 1000) == 1
    assert recipe.step_schedule(889, 1000) == pytest.approx(0.1)


class Fixed(random.Random):
    """Gives the numbers it was made with: flip, scale, place."""

    def __init__(self, flip: float, scale: float, place: float) -> None:
        super().__init__()
        self.numbers, self.scale = iter((flip, place)), scale

    def random(self) -> float:
        return next(self.numbers)

    def uniform(self, a: float, b: float) -> float:
        return self.scale


def test_small_photo_is_padded_with_grey_that_is_no_segment() -> None:
    image, ids = recipe.augment(Fixed(flip=0.9, scale=0.5, place=0.3), toy_photo(40, 60), crop=60)
    assert image.shape == (60, 60, 3)
    assert (image[20:] == 128).all()
    assert (image[:, 30:] == 128).all()
    assert (ids[20:] == 0).all()
    assert ids[0, 0] == 1000
    assert ids[0, 29] == 7


def test_flip() -> None:
    _, ids = recipe.augment(Fixed(flip=0.1, scale=1.0, place=0.0), toy_photo(), crop=60)
    assert ids[0, 0] == 7
    assert ids[0, 59] == 1000


def test_large_photo_is_cropped_at_one_place_for_both_axes() -> None:
    photo = toy_photo(60, 60)
    places = np.arange(3600, dtype=np.int32).reshape(60, 60)
    _, ids = recipe.augment(Fixed(flip=0.9, scale=2.0, place=0.5), PanopticPhoto(photo.image, places, {}), crop=60)
    assert ids.shape == (60, 60)
    assert ids[0, 0] == places[15, 15]  # an offset of round(0.5 * 60) in the photo of twice the size
    assert ids[59, 59] == places[44, 44]


def test_targets_keep_segments_the_crop_has_lost() -> None:
    targets = recipe.targets_of(np.array([[7, 0], [7, 50]], np.int32), {1000: 0, 7: 2})
    assert targets.labels.tolist() == [0, 2]
    assert targets.masks.tolist() == [[[False, False], [False, False]], [[True, False], [True, False]]]


def test_every_photo_once_per_epoch() -> None:
    drawn = [n for step in range(5) for n in recipe.photo_numbers(0, step, count=10, batch=4)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_two_steps_change_the_generator_alone(tmp_path: Path) -> None:
    system = toy_system()
    before = {name: x.clone() for name, x in system.state_dict().items()}
    options = {"batch": 2, "crop": 64, "criterion": Criterion(num_points=32), "log_every": 1}
    photos = [toy_photo(), toy_photo(70, 50), toy_photo(30, 90)]
    assert recipe.train(system, toy_text(), photos, tmp_path, total_steps=2, **options)
    after = system.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("generator.") for name in changed)
    assert {"generator.void_embedding.weight", "generator.pixel_decoder.transformer.level_embed"} <= changed
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    options = {"batch": 2, "crop": 64, "criterion": Criterion(num_points=32)}
    photos = [toy_photo(), toy_photo(70, 50), toy_photo(30, 90)]
    whole, parts = toy_system(), toy_system()
    recipe.train(whole, toy_text(), photos, tmp_path / "whole", total_steps=3, **options)
    done = recipe.train(parts, toy_text(), photos, tmp_path / "parts", total_steps=3, deadline=0.0, **options)
    assert not done  # one step, then the deadline
    recipe.train(parts, toy_text(), photos, tmp_path / "parts", total_steps=3, **options)
    for name, x in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], x)


def test_systems_it_cannot_train(tmp_path: Path) -> None:
    system = System(None, nn.Identity(), nn.Identity(), nn.Identity(), nn.Identity())
    with pytest.raises(TypeError, match="FC-CLIP generator"):
        recipe.train(system, toy_text(), [toy_photo()], tmp_path)

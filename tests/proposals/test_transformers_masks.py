"""What every generator of transformers keeps to, and what each family's masks are."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lexiseg.geometry import round_up
from lexiseg.layers.normalise import IMAGENET_MEAN, IMAGENET_STD
from lexiseg.proposals.closed_set import ClosedSet
from lexiseg.proposals.point_grid import stability_scores
from lexiseg.proposals.transformers_generator import TransformersGenerator
from lexiseg.proposals.transformers_masks import KINDS, load_transformers_generator
from lexiseg.proposals.transformers_points import PointGridGenerator, PointSettings
from lexiseg.proposals.transformers_universal import UniversalGenerator
from lexiseg.types import Images, TextBank
from tests.proposals.tiny_transformers import EVERY_MASK, TINY

Load = Callable[..., TransformersGenerator]

UNIVERSAL = ("mask2former", "eomt", "eomt_dinov3")
POINTS = ("sam", "sam2", "sam2_video", "sam3_tracker", "sam3_video")


@pytest.fixture(scope="module")
def load(transformers_folder: Callable[[str], Path]) -> Load:
    def loaded(model_type: str, **settings: Any) -> TransformersGenerator:
        if model_type in POINTS:
            settings = {**EVERY_MASK, **settings}
        return load_transformers_generator(transformers_folder(model_type), **settings)

    return loaded


def canvas(sizes_hw: list[tuple[int, int]], canvas_hw: tuple[int, int], seed: int = 0) -> Images:
    pixels = torch.zeros(len(sizes_hw), 3, *canvas_hw)
    for index, (row, (height, width)) in enumerate(zip(pixels, sizes_hw, strict=True)):
        noise = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed + index)) * 255
        row[:, :height, :width] = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].round()
    return Images(pixels, tuple(sizes_hw), tuple(sizes_hw))


def test_every_kind_is_tested() -> None:
    assert set(UNIVERSAL) | set(POINTS) == set(KINDS) == set(TINY)


@pytest.mark.parametrize("model_type", KINDS)
def test_masks_on_the_canvas(load: Load, model_type: str) -> None:
    """At stride 4, different from each other, empty beyond the picture."""
    proposals = load(model_type)(canvas([(64, 70)], (96, 128)))
    assert proposals.class_logits is None
    masks = proposals.mask_logits
    assert masks.dtype == torch.float32
    assert masks.shape[::2] == (1, 24)
    assert masks.shape[1] >= 6
    assert masks.shape[3] == 32
    assert masks.isfinite().all()
    inside = masks[0, :, :16, :17].flatten(1)
    assert len(inside.unique(dim=0)) == masks.shape[1]
    assert (inside > 0).any()
    assert (masks[..., 17:, :] == -10).all()
    assert (masks[..., 19:] == -10).all()


@pytest.mark.parametrize("model_type", KINDS)
def test_pictures_of_a_batch_do_not_mix(load: Load, model_type: str) -> None:
    generator = load(model_type)
    together = canvas([(64, 96), (80, 70)], (96, 128))
    both = generator(together).mask_logits
    for index, size_hw in enumerate(together.sizes_hw):
        height, width = round_up(size_hw, 32)
        pixels = together.pixels[index : index + 1, :, :height, :width]
        alone = generator(Images(pixels, (size_hw,), (size_hw,))).mask_logits
        count = alone.shape[1]
        assert (both[index, count:] == -10).all()
        torch.testing.assert_close(both[index, :count, : height // 4, : width // 4], alone[0])


@pytest.mark.parametrize("model_type", KINDS)
def test_frozen(load: Load, model_type: str) -> None:
    generator = load(model_type)
    assert not any(parameter.requires_grad for parameter in generator.parameters())
    generator.train()
    assert not any(module.training for module in generator.modules())
    assert not generator(canvas([(64, 64)], (64, 64))).mask_logits.requires_grad


@pytest.mark.parametrize("model_type", KINDS)
def test_moves_to_a_thin_picture(load: Load, model_type: str) -> None:
    masks = load(model_type)(canvas([(1, 90)], (32, 96))).mask_logits
    assert masks.shape[2:] == (8, 24)
    assert masks.isfinite().all()


@pytest.mark.parametrize("model_type", KINDS)
def test_in_half_precision(load: Load, model_type: str) -> None:
    """Masks are float32 whatever the model's own precision is."""
    masks = load(model_type).to(torch.bfloat16)(canvas([(64, 64)], (64, 64))).mask_logits
    assert masks.dtype == torch.float32
    assert masks.isfinite().all()
    assert masks.shape[1] >= 6


@pytest.mark.parametrize("model_type", UNIVERSAL)
def test_masks_are_those_of_the_model_itself(load: Load, model_type: str) -> None:
    """Exactly, for a picture of the size the model sees, at its own stride or at a multiple of it."""
    generator = load(model_type)
    images = canvas([(64, 64)], (96, 128))
    pixels = (images.pixels[..., :64, :64] - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[
        :, None, None
    ]
    with torch.no_grad():
        out = generator.model(pixel_values=pixels)
    expected = out.masks_queries_logits
    if expected.shape[-1] == 32:  # patches of 8, enlarged four times: stride 2
        expected = torch.nn.functional.avg_pool2d(expected, 2)
    masks = generator(images).mask_logits[..., :16, :16]
    if model_type == "mask2former":
        assert torch.equal(masks, expected)
    else:
        torch.testing.assert_close(masks, expected)


@pytest.mark.parametrize("model_type", UNIVERSAL)
def test_own_classes(load: Load, model_type: str) -> None:
    generator = load(model_type)
    assert isinstance(generator, UniversalGenerator)
    names = ("wall", "tree", "cat") if model_type == "mask2former" else ("wall", "cat")
    assert generator.class_names == names
    images = canvas([(64, 64), (64, 40)], (64, 64))
    proposals = generator.closed_set(images)
    assert torch.equal(proposals.mask_logits, generator(images).mask_logits)
    assert proposals.class_logits is not None
    assert proposals.class_logits.shape == (*proposals.mask_logits.shape[:2], len(names) + 1)
    assert not torch.equal(proposals.class_logits[0], proposals.class_logits[1])


def test_own_classes_become_those_of_a_vocabulary(load: Load) -> None:
    """A class of the vocabulary that the model knows has its logit; the probability of void stays."""
    generator = load("eomt", own_classes=True)
    assert isinstance(generator, UniversalGenerator)
    rows = torch.zeros(3, 1, 4)
    text = TextBank(rows, rows, torch.arange(3), torch.zeros(3, dtype=torch.bool), own_class=torch.tensor([3, 1]))
    images = canvas([(64, 64)], (64, 64))
    own = generator(images).class_logits
    moved = ClosedSet(generator)(images, None, text).class_logits
    assert own is not None and moved is not None
    assert torch.equal(moved[..., 1], own[..., 1])
    assert not moved[..., [0, 2]].any()


def test_size_of_mask2former(load: Load) -> None:
    """From the folder, unless it is told; the paper's where the folder would stretch pictures to a fixed size."""
    sizes = [load("mask2former", **edges).look.sizes((60, 90)) for edges in ({}, {"short_edge": 80, "long_edge": 100})]
    assert sizes == [((64, 96), (64, 96)), ((67, 100), (96, 128))]


def test_size_of_mask2former_in_folders_with_a_fixed_size(
    transformers_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((transformers_folder("mask2former") / name).read_bytes())
    for content, expected in (
        ('{"size": {"height": 384, "width": 384}}', (800, 1200)),
        ('{"size": 512, "max_size": 640}', (427, 640)),
        ("{}", (800, 1200)),
    ):
        (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
        assert load_transformers_generator(tmp_path).look.sizes((60, 90))[0] == expected


@pytest.mark.parametrize("model_type", POINTS)
@pytest.mark.parametrize("points_per_batch", [1, 4])
def test_points_may_be_asked_in_any_portions(load: Load, model_type: str, points_per_batch: int) -> None:
    images = canvas([(64, 96)], (64, 96))
    strict = {"min_stability": 0.5, "box_overlap": 0.95, "mask_overlap": 0.8}
    at_once = load(model_type, **strict)(images).mask_logits
    in_portions = load(model_type, **strict, points_per_batch=points_per_batch)(images).mask_logits
    torch.testing.assert_close(in_portions, at_once, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("model_type", POINTS)
def test_nothing_good_enough(load: Load, model_type: str) -> None:
    """One row, empty."""
    proposals = load(model_type, min_quality=1e6)(canvas([(64, 96), (64, 64)], (64, 96)))
    assert proposals.mask_logits.shape == (2, 1, 16, 24)
    assert (proposals.mask_logits == -10).all()


@pytest.mark.parametrize("model_type", POINTS)
def test_best_first_and_above_the_thresholds(load: Load, model_type: str) -> None:
    """Against the model asked for every point by hand, in the pixels of its square."""
    images = canvas([(72, 96)], (72, 96))
    generator = load(model_type)
    assert isinstance(generator, PointGridGenerator)
    (view,) = generator.look(images)
    side = view.pixels.shape[-1]
    scale = side / 96  # a whole number of pixels for 72, too
    asked = [(x * 96 * scale, y * 72 * scale) for y in (1 / 6, 0.5, 5 / 6) for x in (1 / 6, 0.5, 5 / 6)]
    with torch.no_grad():
        out = generator.model(
            pixel_values=view.pixels,
            input_points=torch.tensor(asked)[None, :, None],
            input_labels=torch.ones(1, 9, 1, dtype=torch.long),
        )
    quality = out.iou_scores.flatten()
    logits = view.to_canvas(out.pred_masks[0].flatten(0, 1))
    area = (logits > 0).flatten(1).sum(1)

    def check(kept: torch.Tensor, **settings: Any) -> None:
        found = load(model_type, **settings)(images).mask_logits[0]
        distance = (found[:, None] - logits).abs().flatten(2).amax(2)  # [found, asked]
        assert float(distance.amin(1).max()) < 1e-2
        which = distance.argmin(1)
        assert sorted(which.tolist()) == (kept & (area > 0)).nonzero().flatten().tolist()
        assert 0 < len(which) < len(logits) or not settings
        assert (quality[which].diff() < 1e-4).all(), "best first"

    check(quality > -1000)
    middle = _between(quality)
    check(quality > middle, min_quality=middle)
    stability = stability_scores(logits, 1.0)
    steady = _between(stability)
    check(stability > steady, min_stability=steady)
    large = _between(area.float())
    check(area > large, min_area=large * 16)


def _between(values: torch.Tensor) -> float:
    """The middle of the widest gap between values: rounding moves none of them across it."""
    ordered = values.sort().values
    place = int(ordered.diff().argmax())
    return float(ordered[place : place + 2].mean())


def test_usual_settings(load: Load, transformers_folder: Callable[[str], Path]) -> None:
    """SAM's and SAM 2's own automatic mask generators."""
    sam, sam2, sam3 = (load_transformers_generator(transformers_folder(kind)) for kind in ("sam", "sam2", "sam3_video"))
    assert isinstance(sam, PointGridGenerator) and isinstance(sam2, PointGridGenerator)
    assert isinstance(sam3, PointGridGenerator)
    assert sam.settings == PointSettings()
    assert (sam.settings.points_per_side, sam.settings.min_quality, sam.settings.min_stability) == (32, 0.88, 0.95)
    assert (sam.settings.stability_offset, sam.settings.box_overlap, sam.settings.points_per_batch) == (1.0, 0.7, 64)
    assert sam2.settings == sam3.settings == dataclasses.replace(PointSettings(), min_quality=0.8)


def test_stretched_instead_of_padded(load: Load) -> None:
    """As SAM 2's own preprocessing does: the whole square shows the picture, and points are spread over all of it."""
    images = canvas([(64, 96)], (64, 96))
    (view,) = load("sam2", stretch=True).look(images)
    assert view.shown_hw == (128, 128)
    padded, stretched = (load("sam2", stretch=stretch)(images).mask_logits for stretch in (False, True))
    assert padded.shape[2:] == stretched.shape[2:] == (16, 24)
    assert not torch.equal(padded[0, 0], stretched[0, 0])


def test_the_video_folder_holds_the_same_model(load: Load) -> None:
    names = {kind: set(load(kind).state_dict()) for kind in ("sam2", "sam2_video", "sam3_tracker", "sam3_video")}
    assert names["sam2"] == names["sam2_video"]
    assert names["sam3_tracker"] == names["sam3_video"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points_per_side", 0, "must be in 1..256"),
        ("points_per_side", 257, "must be in 1..256"),
        ("points_per_side", 3.5, "give a whole number"),
        ("points_per_batch", True, "give a whole number"),
        ("min_quality", "0.9", "give a number"),
        ("min_quality", float("nan"), "must be in"),
        ("min_stability", 1.5, "must be in -inf..1"),
        ("stability_offset", 11, "must be in 0..10.0"),
        ("box_overlap", -0.1, "must be in 0..1"),
        ("mask_overlap", 2, "must be in 0..1"),
        ("min_area", -1, "must be in 0..inf"),
        ("stretch", "no", "give true or false"),
    ],
)
def test_settings_that_are_none(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*{message}"):
        PointSettings(**{name: value})

"""Leaving out what cannot matter changes no output, and leaves something out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.projection import Projection
from lexiseg.images import Canvas
from lexiseg.postprocess import Frame
from lexiseg.regions.crops import MaskedCrops
from lexiseg.regions.mask_adapter import MaskAdapter, MaskAdapterPool
from lexiseg.results import TASKS, Task
from lexiseg.scoring.cosine import Cosine
from lexiseg.scoring.fusion import GeometricEnsemble, PowerProduct, RegionOnly, RegionWithVoid
from lexiseg.segmenter import Segmenter
from lexiseg.selection import STEP, Selector, bounds_of, can_select, for_instances, for_panoptic, for_semantic
from lexiseg.system import System
from lexiseg.types import Features, Images, Proposals, TextBank
from lexiseg.zoo.model_folder import Model, OutputSettings

QUERIES, CLASSES, WIDTH = 60, 5, 6
FRAME = Frame((64, 96), (60, 96), (45, 70))


class Encoder(nn.Module):
    def forward(self, images: Images) -> Features:
        chance = torch.Generator().manual_seed(int(images.pixels[0, 0, 0, 0]))
        return Features(maps=(), dense=torch.randn(1, 8, 2, 3, generator=chance))


class Generator(nn.Module):
    """Blobs, most of them nearly void, as a trained generator gives them."""

    def __init__(self, void: float) -> None:
        super().__init__()
        self.void = void

    def forward(self, images: Images, features: Features, text: TextBank) -> Proposals:
        chance = torch.Generator().manual_seed(int(images.pixels[0, 0, 0, 0]) + 100)
        masks = functional.interpolate(torch.randn(1, QUERIES, 3, 4, generator=chance) * 8, (16, 24), mode="bilinear")
        logits = torch.randn(1, QUERIES, text.num_classes + 1, generator=chance)
        logits[0, :, -1] = torch.randn(QUERIES, generator=chance) * 4 + self.void
        return Proposals(masks, logits)


class Tower(nn.Module):
    """What it makes of a crop depends on its mask."""

    embed_dim, image_size = WIDTH, 4

    def keep(self, masks: Tensor) -> Tensor:
        return masks

    def forward(self, pixels: Tensor, keep: Tensor) -> Tensor:
        weight = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(2))
        return keep.flatten(1).float() @ weight


def with_crops(void: float = 0.0, weight: float = 0.4) -> System:
    """Without an encoder. The less CLIP weighs, the more the generator has decided before."""
    return System(None, Generator(void), MaskedCrops(Tower()), Cosine(), PowerProduct(weight)).eval()


def system(void: float = 5.0) -> System:
    torch.manual_seed(0)
    adapter = MaskAdapter(WIDTH, width=12, mask_width=8, num_maps=3)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    embedder = MaskAdapterPool(adapter, Projection(8, WIDTH, norm_eps=1e-6))
    return System(Encoder(), Generator(void), embedder, Cosine(), GeometricEnsemble(0.7, 0.9)).eval()


def picture(number: int) -> Images:
    return Images(torch.full((1, 3, 64, 96), float(number)), ((60, 96),), ((45, 70),))


def text(classes: int = CLASSES) -> TextBank:
    rows = functional.normalize(torch.randn(classes, 1, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    return TextBank(rows, rows, torch.arange(classes), torch.arange(classes) % 2 == 0)


IS_THING = torch.tensor([True, False, True, True, False])


@torch.no_grad()
def whole(model: System, number: int) -> tuple[Tensor, Tensor, Tensor]:
    proposals, scores = model(picture(number), text())
    return proposals.mask_logits[0], scores.class_probs[0], scores.void_prob[0]


def select(model: System, number: int) -> Selector:
    return Selector(model, picture(number), text())


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("model", [system(), with_crops()], ids=["adapter", "crops"])
@torch.no_grad()
def test_the_outputs_are_those_of_all_proposals(model: System, number: int) -> None:
    masks, classes, void = whole(model, number)

    few = for_panoptic(select(model, number))
    found = postprocess.panoptic(few.mask_logits, few.class_probs, few.void_prob, IS_THING, FRAME, 0.0, 0.3)
    expected = postprocess.panoptic(masks, classes, void, IS_THING, FRAME, 0.0, 0.3)
    assert (found.ids != expected.ids).sum() <= 1 and expected.ids.any()  # rounding may decide where two tie
    assert [s.class_index for s in found.segments] == [s.class_index for s in expected.segments]
    assert len(few.computed) < few.count

    few = for_instances(select(model, number), top=10)
    one, other = (
        postprocess.instances(*scored, FRAME, IS_THING, top=10)
        for scored in ((few.mask_logits, few.class_probs), (masks, classes))
    )
    assert torch.equal(one.masks, other.masks)
    assert [s.score for s in one.segments] == pytest.approx([s.score for s in other.segments], abs=1e-6)
    assert len(few.computed) < few.count

    for at_canvas in (True, False):
        few = for_semantic(select(model, number), FRAME, at_canvas)
        labels = postprocess.semantic(few.mask_logits, few.class_probs, FRAME, at_canvas).labels
        assert torch.equal(labels, postprocess.semantic(masks, classes, FRAME, at_canvas).labels)


@pytest.mark.parametrize(
    ("model", "share"), [(system(9.0), 0.6), (with_crops(9.0, weight=0.1), 0.9)], ids=["adapter", "crops"]
)
@torch.no_grad()
def test_semantic_leaves_out_what_is_certain(model: System, share: float) -> None:
    """Where a few proposals carry everything, few are computed."""
    counts = [len(for_semantic(select(model, number), FRAME).computed) for number in range(6)]
    assert min(counts) < share * QUERIES


def test_bounds_hold_whatever_a_classifier_says() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.01, 0.09, 0.9]])
    assert bounds_of(RegionWithVoid(), probs).tolist() == pytest.approx([0.8, 0.1])
    assert bounds_of(PowerProduct(0.5), probs).tolist() == pytest.approx([0.5**0.5, 0.3])
    unseen = PowerProduct(0.5)(
        Proposals(torch.zeros(1, 2, 1, 1), probs.log()[None]), torch.zeros(1, 2, 2), torch.zeros(1, 2).bool(), text(2)
    )
    assert unseen.class_probs[0].amax(-1).tolist() == pytest.approx([0.5**0.5, 0.3])


@torch.no_grad()
def test_computed_proposals_are_as_they_would_be() -> None:
    model = system()
    _, classes, void = whole(model, 3)
    few = for_panoptic(select(model, 3))
    torch.testing.assert_close(few.class_probs, classes[few.computed])
    torch.testing.assert_close(few.void_prob, void[few.computed])
    left_out = torch.ones(QUERIES, dtype=torch.bool)
    left_out[few.computed] = False
    assert (void[left_out] > 0.5).all()
    assert len(for_panoptic(select(model, 3), object_mask_threshold=0.8).computed) < len(few.computed)


@torch.no_grad()
def test_more_wanted_than_there_is() -> None:
    assert len(for_instances(select(system(), 0), top=10_000).computed) == QUERIES


@torch.no_grad()
def test_one_class_is_certain_at_once() -> None:
    few = for_semantic(Selector(system(), picture(0), text(1)), FRAME)
    assert len(few.computed) == STEP


@torch.no_grad()
def test_nothing_but_void() -> None:
    few = for_panoptic(select(system(60.0), 0))
    found = postprocess.panoptic(few.mask_logits, few.class_probs, few.void_prob, IS_THING, FRAME)
    assert len(few.computed) == 0 and not found.ids.any() and found.segments == ()


def test_systems_whose_proposals_cannot_be_selected() -> None:
    model = system()
    assert can_select(model)
    model.fuse = RegionOnly()
    assert not can_select(model)
    with pytest.raises(ValueError, match="tells void"):
        select(model, 0)


class Words:
    """Every word has a direction of its own."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        seeds = [sum(map(ord, prompt)) for prompt in prompts]
        return torch.stack([torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def toy_model() -> Model:
    return Model(
        name="toy",
        system=system(),
        text_encoder=lambda: Words(),  # type: ignore[arg-type,return-value]
        fingerprint="test selection",
        templates=("{}",),
        canvas=Canvas(64, 96),
        outputs=OutputSettings(overlap_threshold=0.3),
        training_phrases=("sky",),
        card={},
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_front_door_says_the_same(task: Task, china_photo: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the option and without, on a real photo."""
    caplog.set_level("INFO")
    plain, thrifty = (Segmenter(toy_model(), "cpu", skip_decided=skip) for skip in (False, True))
    one, other = (
        segmenter(china_photo, "sky, tree, building, grass", task, min_score=0) for segmenter in (plain, thrifty)
    )
    assert np.array_equal(one.label_map, other.label_map)
    assert [segment.label for segment in one.segments] == [segment.label for segment in other.segments] != []
    assert f"of {QUERIES} proposals computed" in caplog.text


def test_the_front_door_refuses_other_models() -> None:
    model = toy_model()
    model.system.fuse = RegionOnly()
    with pytest.raises(ValueError, match="skip_decided is for models with a Mask-Adapter or masked crops"):
        Segmenter(model, "cpu", skip_decided=True)

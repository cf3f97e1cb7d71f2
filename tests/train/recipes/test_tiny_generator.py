"""Training the small mask generator, and putting an embedded model together, on photos of a few colours."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lexiseg.data.packages import LabelledPhoto, LabelledPhotos
from lexiseg.proposals.clusters import ClusterProposals
from lexiseg.train.lexicon import load_lexicon
from lexiseg.train.loop import CHECKPOINT
from lexiseg.train.losses import Criterion
from lexiseg.train.recipes import embedded, tiny_generator
from lexiseg.train.recipes.tiny_clip import CONFIG
from lexiseg.train.recipes.tiny_generator import GeneratorStage
from lexiseg.train.recipes.tiny_tower import Tower
from lexiseg.train.segment_targets import NOTHING, SegmentedPhotos, segments_of, targets_of
from lexiseg.types import Proposals
from lexiseg.zoo.model_folder import load_folder
from tests.train.recipes.stripes import package


@pytest.fixture
def street(tmp_path: Path) -> LabelledPhotos:
    return package(tmp_path, "camvid", ["sky", "building", "road", "pedestrian", "tree"])


@pytest.fixture
def tower_run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    run = tmp_path / "tower"
    run.mkdir()
    torch.save({"averaged": Tower().state_dict(), "step": 1}, run / CHECKPOINT)
    return run


def some_names() -> dict[str, torch.Tensor]:
    names = [*load_lexicon().training_names(), *load_lexicon().held_out_names()]
    vectors = torch.randn(len(names), CONFIG["embed_dim"], generator=torch.Generator().manual_seed(0))
    return dict(zip(names, functional.normalize(vectors, dim=-1), strict=True))


def test_things_fall_into_parts_and_stuff_stays_whole() -> None:
    labels = np.full((20, 30), 255, np.uint8)
    labels[2:6, 2:6] = labels[2:6, 20:23] = 7  # two things
    labels[10:12] = labels[15:18] = 3  # one stuff in two bands
    things = np.arange(256) == 7
    ids, classes = segments_of(LabelledPhoto("x", labels, labels, np.zeros_like(labels)), things, ())
    assert classes == (3, 7, 7)
    assert [int((ids == number).sum()) for number in (0, 1, 2, 3)] == [600 - 150 - 16 - 12, 150, 16, 12]
    regions = np.where(labels == 7, np.where(np.arange(30) < 10, 1, 2), 0).astype(np.uint8)
    ids, classes = segments_of(LabelledPhoto("x", labels, labels, regions), things, [2])
    assert classes == (3, 7)
    assert not ids[2:6, 20:23].any()  # a crowd is nobody in particular


def test_small_segments_become_unknown() -> None:
    ids = np.zeros((8, 8), np.uint8)
    ids[:4], ids[4, 0], ids[6:] = 1, 2, NOTHING
    targets = targets_of(ids, [5, 9], smallest=4)
    assert targets.labels.tolist() == [5]
    assert targets.masks.sum().item() == 32
    assert targets.known is not None
    assert targets.known.sum().item() == 32 + 16


def test_unknown_pixels_do_not_count() -> None:
    ids = np.zeros((16, 16), np.uint8)
    ids[:, :6], ids[:, 6:12] = 1, NOTHING
    targets = targets_of(ids, [0], smallest=1)
    good = torch.where(torch.from_numpy(ids) == 1, 9.0, -9.0)
    wild = good.clone()
    wild[:, 13:] = 9.0  # only where nothing is known
    criterion = Criterion(num_points=400)

    def losses(masks: torch.Tensor) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        proposals = Proposals(mask_logits=masks[None, None].repeat(1, 2, 1, 1), class_logits=torch.zeros(1, 2, 2))
        return criterion([proposals], [targets])

    assert losses(wild)["loss_mask"] < 1  # of the border that is known
    wrong = good.clone()
    wrong[:, 6:12] = 9.0
    assert losses(wrong)["loss_mask"] > 2
    assert losses(wrong)["loss_dice"] > 2 * losses(wild)["loss_dice"]


def test_pasted_things_take_the_class_they_fit(street: LabelledPhotos) -> None:
    photos = SegmentedPhotos(street, "train", load_lexicon(), ["person", "dog", "tree"])
    assert photos.class_of("tree") == photos.concepts.index("tree")
    assert photos.class_of("person") == photos.concepts.index("pedestrian")
    assert photos.concepts[photos.class_of("dog") or 0] == "dog"
    assert {"window", "door"} <= set(photos.concepts)


def test_a_step_trains_the_generator_alone(tmp_path: Path, street: LabelledPhotos, tower_run: Path) -> None:
    lexicon = load_lexicon()
    coco = package(tmp_path, "coco_things", ["person", "car", "sky"], ignored=True)
    sources = [SegmentedPhotos(one, "train", lexicon, ["person"]) for one in (street, coco)]
    system = tiny_generator.build(tower_run)
    encoder, generator = tiny_generator.freeze_all_but_generator(system)
    cutouts = sources[1].cutouts({"person", "car"})
    assert len(cutouts) == 4  # two things in two photos
    for weights in ([1.0, 0.0], [0.0, 1.0]):
        names, phases = some_names(), ((1.0, 64, 2),)
        stage = GeneratorStage(encoder, generator, sources, weights, cutouts, lexicon, names, 10, phases)
        torch.manual_seed(0)
        loss, numbers = stage(0, random.Random(2))
        loss.backward()
        assert torch.isfinite(loss)
        assert set(numbers) == {"loss", "loss_ce", "loss_mask", "loss_dice"}
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in generator.parameters())


def test_an_assembled_model_loads_and_is_measured(tmp_path: Path, street: LabelledPhotos, tower_run: Path) -> None:
    from lexiseg.clip.open_clip import build_text_encoder

    system = tiny_generator.build(tower_run)
    for name, state in (("generator", system.generator), ("text", build_text_encoder(CONFIG, device="cpu"))):
        (tmp_path / name).mkdir()
        torch.save({"averaged": state.state_dict(), "step": 1}, tmp_path / name / CHECKPOINT)
    canvas = embedded.Canvas(short_edge=64, long_edge=96)
    folder = embedded.assemble(
        "street-tiny",
        tower_run,
        tmp_path / "generator",
        tmp_path / "text",
        tmp_path / "street-tiny",
        alpha=0.25,
        beta=0.75,
        canvas=canvas,
        measured={"camvid test": {"miou": 1.0}},
    )
    model = load_folder(folder)
    assert model.canvas == canvas
    assert model.card["measured"] == {"camvid test": {"miou": 1.0}}
    assert "sidewalk" in model.training_phrases
    assert "footpath" not in model.training_phrases
    assert torch.equal(
        model.system.get_parameter("scorer.logit_scale"), system.get_parameter("scorer.logit_scale").half().float()
    )
    beside = embedded.assemble(
        "street-tiny", tower_run, None, "../street-tiny/text.safetensors", tmp_path / "clustered", canvas=canvas
    )
    assert isinstance(load_folder(beside, siblings=True).system.generator, ClusterProposals)

    lexicon, names = load_lexicon(), some_names()
    banks = {"own": embedded.bank_of([lexicon.concept_of(name) for name in street.classes], names, seen=True)}
    table = embedded.measure_fusions(system, street, banks, canvas=canvas, clusters=True)
    assert set(table["own"]) == {"0.0", "0.25", "0.5", "0.75", "1.0", "clip", "clusters"}
    assert all(0 <= value <= 100 for value in table["own"].values())
    photos = SegmentedPhotos(street, "val", lexicon)
    assert 0 <= embedded.mask_recall(system, photos, banks["own"], canvas=canvas)["all"] <= 1


def test_words_without_photos_stand_for_their_kin_or_for_nothing(street: LabelledPhotos, tower_run: Path) -> None:
    lexicon, names = load_lexicon(), some_names()
    source = SegmentedPhotos(street, "train", lexicon)
    stage = GeneratorStage(
        *tiny_generator.freeze_all_but_generator(tiny_generator.build(tower_run)),
        [source],
        [1.0],
        [],
        lexicon,
        names,
        2,
    )
    owner = {phrase: key for key, concept in lexicon.concepts.items() for phrase in concept.names}
    swapped, added = set(), set()
    for seed in range(40):
        rows = stage.text(random.Random(seed), source).query[:, 0]
        phrases = [min(names, key=lambda phrase: float((names[phrase] - row).norm())) for row in rows]
        for concept, phrase in zip(source.concepts, phrases, strict=False):
            if owner[phrase] != concept:
                assert owner[phrase] in lexicon.kinds[concept]
                swapped.add(concept)
        added |= {owner[phrase] for phrase in phrases[len(source.concepts) :]}
    assert "building" in swapped  # a temple, say
    assert "lake" in added
    assert not added & {"temple", "child"}

"""The numbers and their written forms."""

import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg.data.packages import LabelledPhotos
from lexiseg.data.preparation import prepare
from lexiseg.evaluation import Candidate, Evaluation, Plan, candidate_of, evaluate, evaluate_model
from lexiseg.segmenter import Segmenter
from lexiseg.types import SemanticMap
from lexiseg.vocabulary import Vocabulary
from tests.colour_model import colour_model
from tests.data.publishers import voc
from tests.evaluation.conftest import CLASSES, by_grey_level, labelling


def run(data: Path, candidate: Candidate | None = None, **options: object) -> Evaluation:
    photos = LabelledPhotos(data)
    plan = Plan.of(photos, **options)  # type: ignore[arg-type]
    outcome = evaluate(candidate or labelling(by_grey_level), photos, plan, progress=False)
    assert outcome is not None
    return outcome


def test_scores(package: Path) -> None:
    result = run(package, labelling(by_grey_level, training_phrases=("sky", "street")))
    assert (result.split, result.photos, result.photos_in_split) == ("test", 5, 5)
    assert [c.iou for c in result.classes] == pytest.approx([41 / 47, 42 / 48, math.nan], nan_ok=True)
    assert [c.seen for c in result.classes] == [True, False, False]
    assert result.classes[2].predicted_share == pytest.approx(12 / 95)
    found = result.semantic
    assert found.miou["gt"] == pytest.approx((41 / 47 + 42 / 48) / 2)
    assert found.miou["gt_or_pred"] == pytest.approx((41 / 47 + 42 / 48) / 3)
    assert found.miou_interval["gt"] == pytest.approx((found.miou["gt"],) * 2), "all photos are alike"
    assert found.miou_seen["gt"] == pytest.approx(41 / 47)
    assert found.miou_unseen["gt"] == pytest.approx(42 / 48)
    assert found.pixel_accuracy == pytest.approx(83 / 95)
    assert found.confusions == ((2, 0, 30), (2, 1, 30))
    assert found.calibration == ((0.75, pytest.approx(83 / 95), 5 * 95),)
    assert result.seconds_per_photo > 0
    assert result.peak_memory_mb > 10
    assert result.peak_gpu_memory_mb is None
    assert {"lexiseg", "torch", "pillow"} <= set(result.versions)


def test_files(package: Path, tmp_path: Path) -> None:
    result = run(package)
    as_json, as_markdown = result.save(tmp_path / "out")
    assert as_json.name == "grey.tiny.test.json"
    read = json.loads(as_json.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert read["miou"] == {"gt": 87.367, "gt_or_pred": 58.245}
    assert read["hiou"] == {"gt": None, "gt_or_pred": None}
    assert read["classes"][2]["iou"] is None
    assert read["classes_without_truth"] == ["traffic sign"]
    text = as_markdown.read_text()
    assert "# grey on tiny, test" in text
    assert "| mIoU, rule `gt`: classes that occur in the labels | 87.4 (95 %: 87.4 to 87.4) |  |" in text
    assert "| traffic sign | traffic sign | - | - | 0.0 | 12.6 |" in text


def test_zip_is_the_same(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*.*")):
            archive.write(file, file.relative_to(package.parent))
    assert run(path).semantic.miou == run(package).semantic.miou


def test_published_numbers_stand_beside(package: Path) -> None:
    (package / "dataset.json").write_text((package / "dataset.json").read_text().replace('"tiny"', '"context-459"'))
    text = run(package, labelling(by_grey_level, "maftplus-base")).to_markdown()
    assert (
        "rule `gt_or_pred`: classes that occur in the labels or in a prediction | 58.2 (95 %: 58.2 to 58.2) | 16.2 |"
        in text
    )
    assert "rule `gt`: classes that occur in the labels | 87.4 (95 %: 87.4 to 87.4) |  |" in text
    told = run(package, labelling(by_grey_level, "maftplus-base")).to_dict()["published"]
    assert told == {"numbers": {"miou": 16.2}, "miou_rule": "gt_or_pred"}


def test_own_words(package: Path) -> None:
    asked: list[Vocabulary] = []

    def remember(image, words, tasks):
        asked.append(words)
        return labelling(by_grey_level).predict(image, words, tasks)

    result = run(package, Candidate("grey", remember), words="heavens, roadway | street, board")
    assert asked[0].names == ("heavens", "roadway", "board")
    assert [c.phrases for c in result.classes] == [("heavens",), ("roadway", "street"), ("board",)]
    assert [c.name for c in result.classes] == CLASSES


def test_more_words_than_classes(tmp_path: Path) -> None:
    """Any of the words that stand in for the background is the background."""
    voc(tmp_path / "source")
    prepare("voc-20b", tmp_path / "source", tmp_path / "voc")

    def wall_and_cars(image: np.ndarray) -> torch.Tensor:
        labels = torch.full(image.shape[:2], 55)
        labels[:, 15:30] = 0  # aeroplane
        labels[:, 45:] = 30
        return labels

    result = run(tmp_path / "voc", labelling(wall_and_cars))
    assert len(result.classes) == 21
    assert result.classes[20].phrases[:2] == ("bag", "bed")
    assert result.classes[0].iou == pytest.approx(1 / 3)  # one of the three photos has one there
    assert result.classes[20].iou > 0.5
    assert "Not as published: 3 photos where" in result.to_markdown()


def test_pixels_without_a_class(package: Path) -> None:
    def half(image: np.ndarray) -> torch.Tensor:
        labels = by_grey_level(image)
        labels[:, 6:] = -1
        return labels

    result = run(package, labelling(half))
    assert result.classes[1].iou == 0
    assert result.semantic.confusions[0] == (None, 1, 240)
    assert json.loads(json.dumps(result.to_dict()))["confusions"][0]["said"] is None


def test_limit_spreads_over_the_split(package: Path) -> None:
    result = run(package, limit=2)
    assert (result.photos, result.photos_in_split) == (2, 5)
    assert "2 photos of 5, evenly spread" in result.to_markdown()
    assert run(package, limit=50, split="train").photos == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "sky, road"}, "3 classes .* but 2 words were given"),
        ({"split": "val"}, "no split 'val'"),
        ({"limit": 0}, "a limit of 0 photos"),
        ({"measures": ["iou"]}, "no measure is called 'iou'"),
        ({"measures": ["pq"]}, "has no regions, so no pq"),
        ({"measures": ["miou", "masks"]}, "mask accuracy is measured by itself"),
        ({"measures": ["miou"], "given_masks": "classes"}, "nothing but mask accuracy"),
        ({"given_masks": "regions"}, "has no regions"),
    ],
)
def test_wrong_calls(package: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(package, **options)


def test_a_model_that_forgets_the_size_is_named_with_its_photo(package: Path) -> None:
    small = Candidate("small", lambda *_: {"semantic": SemanticMap(torch.zeros(4, 4, dtype=torch.long), ())})
    with pytest.raises(ValueError, match="tiny/p1: prediction .* differ in size"):
        run(package, small)


def test_all_measures_from_one_look(colours: Path) -> None:
    model = candidate_of(Segmenter(colour_model(), device="cpu"))
    result = run(colours, model, measures=["miou", "boundary", "pq", "ap"])
    told = result.to_dict()
    assert 50 < told["miou"]["gt"] < 95
    assert 0 < told["boundary_iou"] < told["miou"]["gt"]
    assert set(told["panoptic"]) == {"all", "things", "stuff"}
    assert told["panoptic"]["stuff"]["classes"] == 1
    assert told["instances"]["AP"] is not None
    assert result.classes[2].seen is False
    assert math.isnan(result.classes[2].ap)  # stuff
    assert result.pq_interval[0] < result.panoptic.all.pq < result.pq_interval[1]
    text = result.to_markdown()
    for word in ("| PQ |", "| AP (masks) |", "Boundary IoU", "PQ / SQ / RQ, things"):
        assert word in text
    assert run(colours, model).panoptic == result.panoptic  # the data offers miou, pq and ap by itself
    alone = run(colours, model, measures=["pq"])
    assert alone.semantic is None
    assert alone.panoptic == result.panoptic


def test_instances_by_the_rules_of_cityscapes(colours: Path) -> None:
    description = json.loads((colours / "dataset.json").read_text())
    (colours / "dataset.json").write_text(json.dumps(description | {"instance_rules": "cityscapes"}))
    model = candidate_of(Segmenter(colour_model(), device="cpu"))
    result = run(colours, model, measures=["ap"])
    assert set(result.instances.numbers) == {"AP", "AP50"}
    assert 0 < result.instances.numbers["AP"] <= result.instances.numbers["AP50"] < 1
    assert math.isnan(result.classes[2].ap)  # stuff
    assert "| AP50 |" in result.to_markdown()
    (colours / "dataset.json").write_text(json.dumps(description | {"instance_rules": "own"}))
    with pytest.raises(ValueError, match="instance_rules 'own'; give coco or cityscapes"):
        LabelledPhotos(colours)


def test_mask_accuracy(colours: Path) -> None:
    model = candidate_of(Segmenter(colour_model(), device="cpu"))
    regions = run(colours, model, given_masks="regions")
    assert 0.5 < regions.masks.overall < 1
    truth = LabelledPhotos(colours)
    wrong = total = 0
    for id in truth.ids("val"):
        photo = truth.photo(id)
        for region, index, _ in truth.region_classes[id]:
            total += 1
            wrong += int(photo.image[photo.regions == region][0].argmax() != index)
    assert regions.masks.overall == pytest.approx(1 - wrong / total)
    assert regions.masks_interval[0] < regions.masks.mean < regions.masks_interval[1]
    assert regions.masks.seen == pytest.approx(regions.classes[0].mask_accuracy)
    assert regions.to_dict()["mask_accuracy"]["given"] == "regions"
    assert regions.stem == "colours.colours-12.val.masks"
    classes = run(colours, model, given_masks="classes")
    assert classes.masks.overall != regions.masks.overall
    with pytest.raises(ValueError, match="grey cannot be given masks"):
        run(colours, labelling(by_grey_level), given_masks="classes")


def test_a_model_by_its_segmenter(colours: Path) -> None:
    result = evaluate_model(Segmenter(colour_model(), device="cpu"), colours, progress=False, limit=3)
    assert (result.model, result.data, result.photos) == ("colours", "colours-12", 3)

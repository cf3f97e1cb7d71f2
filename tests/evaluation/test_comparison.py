import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import Plan, candidate_of, compare, evaluate
from lexiseg.evaluation.comparison import comparison, comparison_table, save_comparison
from lexiseg.segmenter import Segmenter
from tests.colour_model import colour_model
from tests.evaluation.conftest import labelling


def by_colour(image):
    return torch.from_numpy(image.argmax(-1))


def some_wrong(image):
    """Worse in the upper left corner of every photo."""
    labels = by_colour(image)
    labels[:20, :20] = (labels[:20, :20] + 2) % 3
    return labels


def run(data: Path, candidate, **options):
    photos = LabelledPhotos(data)
    return evaluate(candidate, photos, Plan.of(photos, **options), progress=False)


def test_differences(colours: Path, tmp_path: Path) -> None:
    good = run(colours, labelling(by_colour, "good"), measures=["miou"])
    worse = run(colours, labelling(some_wrong, "worse"), measures=["miou"])
    found = compare(worse, good)
    assert found.value == pytest.approx(worse.semantic.miou["gt"] - good.semantic.miou["gt"])
    assert found.interval[0] < found.value < found.interval[1] < 0
    assert found.counts
    # The two intervals overlap, that of the difference leaves out zero.
    assert worse.semantic.miou_interval["gt"][1] > good.semantic.miou_interval["gt"][0]
    same = compare(good, replace(good, model="twin"))
    assert (same.value, same.interval, same.counts) == (0, (0, 0), False)
    told = comparison([good, worse])
    assert told["differences"][0]["counts"] is True
    table = comparison_table([good, worse])
    assert "| worse | good | mIoU | -" in table
    as_json, as_markdown = save_comparison([good, worse], tmp_path)
    assert as_json.name == "comparison.colours-12.val.json"
    assert json.loads(as_json.read_text())["models"][1]["model"] == "worse"
    assert as_markdown.read_text() == table


def test_mask_accuracy_is_compared_too(colours: Path) -> None:
    model = candidate_of(Segmenter(colour_model(), device="cpu"))
    blind = replace(model, name="blind", classify_masks=lambda image, words, masks: torch.ones(len(masks), 3))
    found = compare(run(colours, blind, given_masks="regions"), run(colours, model, given_masks="regions"))
    assert found.measure == "mask accuracy"
    assert found.counts
    assert found.value < -0.3


def test_what_cannot_be_compared(colours: Path) -> None:
    good = run(colours, labelling(by_colour, "good"), measures=["miou"])
    few = run(colours, labelling(by_colour, "few"), measures=["miou"], limit=5)
    with pytest.raises(ValueError, match="not measured on the same photos"):
        compare(good, few)
    model = candidate_of(Segmenter(colour_model(), device="cpu"))
    with pytest.raises(ValueError, match="no measure in common"):
        compare(good, run(colours, model, given_masks="classes"))

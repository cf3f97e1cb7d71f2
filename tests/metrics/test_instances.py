"""AP picture by picture, against the golden numbers and against COCO's program on everything at once."""

import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lexiseg.metrics.instances import (
    NUMBERS,
    InstanceMatches,
    ScoredInstance,
    TrueInstance,
    encode_mask,
)


def rectangle(top: int, left: int, bottom: int, right: int) -> dict:
    mask = np.zeros((60, 80), bool)
    mask[top:bottom, left:right] = True
    return encode_mask(mask)


def test_by_hand() -> None:
    matches = InstanceMatches(3)
    truth = [TrueInstance(0, rectangle(0, 0, 10, 10), 100.0), TrueInstance(0, rectangle(20, 20, 30, 30), 100.0)]
    found = [
        ScoredInstance(0, 0.9, rectangle(0, 0, 10, 10)),
        ScoredInstance(0, 0.8, rectangle(40, 40, 50, 50)),
        ScoredInstance(0, 0.7, rectangle(20, 20, 30, 29)),  # IoU 0.9
        ScoredInstance(1, 0.6, rectangle(20, 20, 30, 30)),  # no such object in the truth
    ]
    matches.update(0, found, truth)
    result = matches.result()
    # Up to IoU 0.90: precision 1 to recall 0.5 (51 of 101 points), then 2/3; at 0.95 nothing beyond recall 0.5.
    high, low = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert result.per_class[0] == pytest.approx((9 * high + low) / 10)
    assert result.numbers["AP50"] == pytest.approx(high)
    assert math.isnan(result.per_class[1])
    assert math.isnan(result.per_class[2])
    assert math.isnan(result.numbers["APl"])
    assert result.numbers["AR1"] == pytest.approx(0.5)


def test_crowds_are_ignored() -> None:
    matches = InstanceMatches(1)
    truth = [
        TrueInstance(0, rectangle(0, 0, 40, 40), 1600.0, is_crowd=True),
        TrueInstance(0, rectangle(45, 45, 55, 55), 100.0),
    ]
    found = [ScoredInstance(0, 0.9, rectangle(1, 1, 9, 9)), ScoredInstance(0, 0.5, rectangle(45, 45, 55, 55))]
    matches.update(0, found, truth)
    assert matches.result().numbers["AP"] == pytest.approx(1)


def test_nothing_and_mistakes() -> None:
    matches = InstanceMatches(2)
    matches.update(0, [], [])
    assert math.isnan(matches.result().numbers["AP"])
    with pytest.raises(ValueError, match="class 2, which is none of the 2"):
        matches.update(1, [ScoredInstance(2, 0.5, rectangle(0, 0, 1, 1))], [])
    with pytest.raises(ValueError, match="same pictures"):
        matches.merge(matches)
    with pytest.raises(ValueError, match="other classes"):
        matches.merge(InstanceMatches(3))


def random_pictures(number: int):
    rng = np.random.default_rng(0)

    def boxes(count: int):
        for _ in range(count):
            top, left = rng.integers(0, 40, 2)
            height, width = rng.integers(4, 20, 2)
            yield top, left, height, width

    for _ in range(number):
        truth, found = [], []
        for top, left, height, width in boxes(rng.integers(0, 5)):
            index = int(rng.integers(3))
            rle = rectangle(top, left, top + height, left + width)
            truth.append(TrueInstance(index, rle, float(height * width), is_crowd=bool(rng.random() < 0.2)))
            if rng.random() < 0.8:
                moved = rectangle(top, left, top + height, left + width - int(rng.integers(0, 3)))
                # Few different scores: the order of equal ones matters.
                found.append(ScoredInstance(index, float(rng.integers(1, 4)) / 4, moved))
        for top, left, height, width in boxes(rng.integers(0, 3)):
            index = int(rng.integers(3))
            found.append(ScoredInstance(index, 0.5, rectangle(top, left, top + height, left + width)))
        yield found, truth


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_equal_to_the_program_on_everything_at_once(iou_type) -> None:
    pictures = list(random_pictures(25))
    parts = [InstanceMatches(3, iou_type) for _ in range(2)]
    for place in (*range(1, 25, 2), *range(0, 25, 2)):
        parts[place % 2].update(place, *pictures[place])
    parts[1].merge(parts[0])
    ours = parts[1].result()

    images = [{"id": number, "height": 60, "width": 80} for number in range(25)]
    categories = [{"id": index} for index in (1, 2, 3)]
    true, found = [], []
    for number, (detections, truth) in enumerate(pictures):
        for entry in truth:
            area = {"area": entry.area, "iscrowd": int(entry.is_crowd), "segmentation": dict(entry.rle)}
            true.append({"id": len(true) + 1, "image_id": number, "category_id": entry.class_index + 1, **area})
        for entry in detections:
            one = {"image_id": number, "category_id": entry.class_index + 1, "score": entry.score}
            found.append({**one, "segmentation": dict(entry.rle)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": true}
        coco.createIndex()
        if iou_type == "bbox":
            with_boxes(true, found)
        results = coco.loadRes(found)
        program = COCOeval(coco, results, iou_type)
        program.evaluate()
        program.accumulate()
        program.summarize()
    expected = [math.nan if value == -1 else value for value in program.stats]
    assert list(ours.numbers.values()) == pytest.approx(expected, abs=0, nan_ok=True)
    assert 0.1 < ours.numbers["AP"] < 0.9


def with_boxes(true: list[dict], found: list[dict]) -> None:
    from pycocotools import mask as rle_tools

    for entry in (*true, *found):
        entry["bbox"] = rle_tools.toBbox(entry["segmentation"]).tolist()


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_golden(shared: Path, iou_type) -> None:
    case = json.loads((shared / "parity" / "benchmarks" / "case-coco-ap.json").read_text())
    index = {id: number for number, id in enumerate(case["categories"])}
    matches = InstanceMatches(len(index), iou_type)
    for image in reversed(case["images"]):
        truth = [
            TrueInstance(index[a["category_id"]], a["segmentation"], a["area"], tuple(a["bbox"]), bool(a["iscrowd"]))
            for a in case["annotations"]
            if a["image_id"] == image["id"]
        ]
        found = [
            ScoredInstance(index[d["category_id"]], d["score"], d["segmentation"])
            for d in case["detections"]
            if d["image_id"] == image["id"]
        ]
        matches.update(image["id"], found, truth)
    result = matches.result()
    expected = [math.nan if value == -1 else value for value in case[f"stats_{iou_type}"]]
    assert tuple(result.numbers) == NUMBERS
    assert list(result.numbers.values()) == pytest.approx(expected, abs=0, nan_ok=True)
    for id, number in index.items():
        assert result.per_class[number] == pytest.approx(case[f"per_class_AP_{iou_type}"][str(id)], abs=1e-15)

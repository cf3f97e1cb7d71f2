"""Panoptic quality, against hand-worked numbers, the golden case, and the definition written out pixel by pixel."""

import json
import math
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from lexiseg.metrics.panoptic import (
    PanopticCounts,
    PanopticSegment,
    count_segments,
    iou_sums,
    panoptic_quality,
)

S = PanopticSegment


def test_by_hand() -> None:
    truth = np.array([[1, 1, 1, 1, 0, 0, 2, 2, 3, 3]])
    prediction = np.array([[7, 7, 7, 0, 7, 9, 9, 9, 8, 8]])
    true = [S(1, 0), S(2, 1), S(3, 1)]
    predicted = [S(7, 0), S(9, 1), S(8, 0)]
    counts = count_segments(prediction, predicted, truth, true, 3)
    # 7 finds 1: 3 common, union 4 + 4 - 3 - 1 (its pixel on void); 9 finds 2: 2 / (2 + 3 - 2 - 1); 8 is of another
    # class than 3, so one false positive and one false negative.
    assert counts[:3].tolist() == [[1, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert iou_sums(counts) == [0.75, 1.0, 0.0]
    quality = panoptic_quality(counts, [True, False, False])
    assert [q.pq for q in quality.per_class] == pytest.approx([0.75 / 1.5, 1 / 1.5, 0])
    assert (quality.things.classes, quality.stuff.classes, quality.all.classes) == (1, 1, 2)
    assert quality.all.sq == pytest.approx(0.875)
    assert quality.stuff.rq == pytest.approx(1 / 1.5)


def test_half_is_not_enough() -> None:
    truth, prediction = np.array([[1, 1, 1, 0]]), np.array([[5, 5, 0, 5]])
    counts = count_segments(prediction, [S(5, 0)], truth, [S(1, 0)], 1)
    assert counts[:3, 0].tolist() == [1, 0, 0]  # 2 of 3
    truth = np.array([[1, 1, 2, 2]])
    prediction = np.array([[5, 0, 0, 0]])
    counts = count_segments(prediction, [S(5, 0)], truth, [S(1, 0), S(2, 1)], 2)
    assert counts[:3, 0].tolist() == [0, 1, 1]  # exactly one half


def test_void_and_crowd_excuse() -> None:
    truth = np.array([[0, 0, 4, 4, 1, 1, 5, 5, 5, 5]])
    prediction = np.array([[7, 7, 7, 7, 7, 7, 8, 8, 8, 0]])
    true = [S(4, 0, is_crowd=True), S(1, 1), S(5, 1, is_crowd=True)]
    counts = count_segments(prediction, [S(7, 0), S(8, 0)], truth, true, 2)
    # 7: four of six pixels on void and the crowd of its class; 8 lies on a crowd of another class.
    assert counts[:3].tolist() == [[0, 0], [1, 0], [0, 1]]
    # Of two crowd regions of one class only the last one listed excuses.
    truth = np.array([[4, 4, 5, 5]])
    crowds = [S(4, 0, is_crowd=True), S(5, 0, is_crowd=True)]
    prediction = np.array([[7, 7, 7, 7]])
    assert count_segments(prediction, [S(7, 0)], truth, crowds, 1)[:3, 0].tolist() == [0, 1, 0]
    prediction = np.array([[0, 7, 7, 7]])
    assert count_segments(prediction, [S(7, 0)], truth, crowds, 1)[:3, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("prediction", "predicted", "truth", "true", "message"),
    [
        ([[1, 1]], [], [[0, 0]], [], "the prediction holds segment 1, which is not in its list"),
        ([[0, 0]], [S(1, 0)], [[0, 0]], [], "lists segment 1, which has no pixel"),
        ([[1, 1]], [S(1, 0), S(1, 0)], [[0, 0]], [], "twice"),
        ([[1, 1]], [S(1, 9)], [[0, 0]], [], "class 9 of 2"),
        ([[0, 0]], [], [[3, 3]], [], "the truth holds segment 3"),
        ([[0, 0]], [], [[0, 0, 0]], [], "differ in size"),
        ([[-1, 0]], [], [[0, 0]], [], "outside"),
    ],
)
def test_maps_and_lists_that_disagree(prediction, predicted, truth, true, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_segments(np.array(prediction), predicted, np.array(truth), true, 2)


def test_a_segment_without_pixels_was_not_found() -> None:
    counts = count_segments(np.array([[0]]), [], np.array([[0]]), [S(1, 0), S(2, 0, is_crowd=True)], 1)
    assert counts[:3, 0].tolist() == [0, 0, 1]


def random_map(rng: np.random.Generator, segments: int) -> np.ndarray:
    """Blocks of random segments, some void."""
    coarse = rng.integers(0, segments + 1, (6, 8))
    fine = coarse.repeat(5, 0).repeat(4, 1)
    noisy = rng.random(fine.shape) < 0.1
    fine[noisy] = rng.integers(0, segments + 1, noisy.sum())
    return fine


def by_definition(prediction, predicted, truth, true) -> dict[int, list[float]]:
    """The rules, with Python sets of pixels."""
    pixels = lambda ids, value: set(zip(*np.nonzero(ids == value), strict=True))  # noqa: E731
    void = pixels(truth, 0)
    result: dict[int, list[float]] = defaultdict(lambda: [0, 0, 0, 0.0])
    used, missed = set(), []
    for t in true:
        if t.is_crowd:
            continue
        mine = pixels(truth, t.id)
        hits = []
        for p in predicted:
            other = pixels(prediction, p.id)
            iou = len(mine & other) / len(mine | (other - void))
            if p.class_index == t.class_index and iou > 0.5:
                hits.append((p.id, iou))
        assert len(hits) <= 1
        for id, iou in hits:
            used.add(id)
            result[t.class_index][0] += 1
            result[t.class_index][3] += iou
        if not hits:
            missed.append(t)
    for t in missed:
        result[t.class_index][2] += 1
    for p in predicted:
        if p.id in used:
            continue
        other = pixels(prediction, p.id)
        crowds = [t for t in true if t.is_crowd and t.class_index == p.class_index]
        excused = len(other & void) + (len(other & pixels(truth, crowds[-1].id)) if crowds else 0)
        if excused / len(other) <= 0.5:
            result[p.class_index][1] += 1
    return result


def test_the_definition_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        truth = random_map(rng, 7)
        prediction = np.where(rng.random(truth.shape) < 0.75, truth, random_map(rng, 7))
        true = [S(int(id), int(id) % 3, bool(rng.random() < 0.3)) for id in np.unique(truth) if id]
        predicted = [
            S(int(id), int(id) % 3 if rng.random() < 0.8 else int(rng.integers(3)))
            for id in np.unique(prediction)
            if id
        ]
        counts = count_segments(prediction, predicted, truth, true, 3)
        expected = by_definition(prediction, predicted, truth, true)
        for index in range(3):
            assert counts[:3, index].tolist() == expected[index][:3]
            assert iou_sums(counts)[index] == pytest.approx(expected[index][3], abs=1e-12)


def pictures(rng: np.random.Generator, number: int):
    for _ in range(number):
        truth = random_map(rng, 9)
        prediction = np.where(rng.random(truth.shape) < 0.9, truth, 0)
        listed = [S(int(id), int(id) % 4) for id in np.unique(truth) if id]
        seen = set(np.unique(prediction).tolist())
        yield prediction, [segment for segment in listed if segment.id in seen], truth, listed


def test_the_order_of_the_pictures_changes_no_digit() -> None:
    all_pictures = list(pictures(np.random.default_rng(1), 40))
    is_thing = (True, True, False, False)
    one = PanopticCounts(is_thing)
    for picture in all_pictures:
        one.update(*picture)
    parts = [PanopticCounts(is_thing) for _ in range(3)]
    for number, picture in enumerate(reversed(all_pictures)):
        parts[number % 3].update(*picture)
    parts[0].merge(parts[2])
    parts[0].merge(parts[1])
    assert parts[0].quality() == one.quality()  # to the last digit
    assert one.counts[0].min() > 5
    with pytest.raises(ValueError, match="other classes"):
        one.merge(PanopticCounts((True,)))


def test_nothing_at_all() -> None:
    quality = PanopticCounts((True, False)).quality()
    assert math.isnan(quality.all.pq)
    assert quality.per_class[0].pq == 0


def test_large_picture() -> None:
    ids = (np.arange(12_000_000) // 120_000).reshape(3000, 4000).astype(np.int32)
    segments = [S(int(id), 0) for id in range(1, 100)]
    start = time.process_time()
    counts = count_segments(ids, segments, ids, segments, 1)
    assert time.process_time() - start < 0.8
    assert counts[0, 0] == 99


def test_golden(shared: Path) -> None:
    folder = shared / "parity" / "benchmarks"
    case = json.loads((folder / "case-panoptic.json").read_text())
    arrays = np.load(folder / "case-panoptic.npz")
    ids = [category["id"] for category in case["categories"]]
    total = PanopticCounts([category["isthing"] for category in case["categories"]])
    for number, image in enumerate(case["images"]):
        lists = [
            [S(s["id"], ids.index(s["category_id"]), bool(s.get("iscrowd"))) for s in image[key]]
            for key in ("pred_segments", "gt_segments")
        ]
        prediction, truth = (arrays[f"{key}{number}"].astype(np.int64) for key in ("pred", "gt"))
        total.update(prediction, lists[0], truth, lists[1])
    quality = total.quality()
    for name, group in (("All", quality.all), ("Things", quality.things), ("Stuff", quality.stuff)):
        expected = case["results"][name]
        # The stored sums were rounded after every picture, ours are exact: the sixteenth digit may differ.
        assert [group.pq, group.sq, group.rq] == pytest.approx([expected[key] for key in ("pq", "sq", "rq")], abs=4e-16)
        assert group.classes == expected["n"]
    for number, id in enumerate(ids):
        expected = case["results"]["counts"][str(id)]
        assert total.counts[:3, number].tolist() == [expected["tp"], expected["fp"], expected["fn"]]
        assert iou_sums(total.counts)[number] == pytest.approx(expected["iou_sum"], abs=2e-15)

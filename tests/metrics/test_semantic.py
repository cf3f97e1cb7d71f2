import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.semantic import (
    SemanticConfusion,
    class_accuracy,
    class_counts,
    class_iou,
    confusion_matrix,
    frequency_weighted_iou,
    harmonic_mean,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    resampled_mean_iou,
)

# Class 2 is predicted but never true, class 3 is neither.
TRUTH = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
PREDICTION = torch.tensor([[0, 0, 1, 1], [1, 2, 3, 0]])


def test_by_hand() -> None:
    counts = confusion_matrix(PREDICTION, TRUTH, 4)
    assert counts.tolist() == [[2, 0, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    iou = class_iou(counts)
    assert iou[:2].tolist() == pytest.approx([2 / 3, 2 / 4])
    assert iou[2:].isnan().all()
    assert class_accuracy(counts)[:2].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert mean_iou(counts, "gt") == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert mean_iou(counts, "gt_or_pred") == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert mean_iou(counts, "gt", torch.tensor([False, True, True, True])) == pytest.approx(1 / 2)
    assert mean_iou(counts, "gt_or_pred", torch.tensor([False, True, True, True])) == pytest.approx(1 / 4)
    assert mean_accuracy(counts) == pytest.approx(2 / 3)
    assert pixel_accuracy(counts) == pytest.approx(4 / 6)
    assert frequency_weighted_iou(counts) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_pixels_without_a_class_are_wrong_for_theirs_alone() -> None:
    counts = confusion_matrix(torch.tensor([0, -1, -1, 1]), torch.tensor([0, 0, 1, 1]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]]
    assert class_counts(counts).tolist() == [[1, 1, 0], [2, 2, 0], [1, 1, 0]]
    assert mean_iou(counts, "gt_or_pred") == pytest.approx(0.5)
    assert pixel_accuracy(counts) == pytest.approx(0.5)


def test_nothing_labelled() -> None:
    counts = confusion_matrix(PREDICTION, torch.full_like(TRUTH, 255), 4)
    assert counts.sum() == 0
    assert all(math.isnan(mean_iou(counts, rule)) for rule in ("gt", "gt_or_pred"))
    assert math.isnan(pixel_accuracy(counts))
    assert math.isnan(mean_accuracy(counts))


def test_harmonic_mean() -> None:
    assert harmonic_mean(0.2, 0.6) == pytest.approx(0.3)
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert math.isnan(harmonic_mean(0.5, math.nan))


def test_merged_halves_are_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 6, (4, 9, 11), generator=generator)
    prediction = torch.randint(0, 6, (4, 9, 11), generator=generator)
    whole, first, second = (SemanticConfusion(6, ignore=5) for _ in range(3))
    truth[truth == 5] = 4
    whole.update(prediction, truth)
    for picture in range(2):
        first.update(prediction[picture], truth[picture])
        second.update(prediction[picture + 2], truth[picture + 2])
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)
    with pytest.raises(ValueError, match="other classes"):
        first.merge(SemanticConfusion(7, ignore=5))


def test_sixteen_bit_labels() -> None:
    truth = torch.tensor([0, 846, 65535], dtype=torch.int32).to(torch.uint16)
    counts = confusion_matrix(torch.tensor([0, 846, 3]), truth, 847, ignore=65535)
    assert counts.sum() == 2
    assert counts[846, 846] == 1


def test_interval() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 5, (40, 200), generator=generator)
    wrong = torch.rand(40, 1, generator=generator) > torch.rand(40, 200, generator=generator)
    prediction = torch.where(wrong, torch.randint(0, 6, (40, 200), generator=generator), truth)
    counts = [confusion_matrix(*pair, 6) for pair in zip(prediction, truth, strict=True)]
    pictures = torch.stack([class_counts(matrix) for matrix in counts])
    for rule in ("gt", "gt_or_pred"):
        low, high = interval(resampled_mean_iou(pictures, rule, drawn_times(40)))
        mean = mean_iou(torch.stack(counts).sum(0), rule)
        assert low < mean < high < low + 0.25
        single = resampled_mean_iou(pictures[:1], rule, drawn_times(1))
        assert interval(single) == pytest.approx((mean_iou(counts[0], rule),) * 2)


def test_large_picture_with_many_classes() -> None:
    """Twelve megapixels and 847 classes: counted in blocks, equal to counting pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 847, (2, 30, 40), generator=generator)
    prediction, truth = coarse.repeat_interleave(100, 1).repeat_interleave(100, 2)
    truth = truth.numpy().astype(np.uint16)
    truth[:150] = 65535
    start = time.process_time()
    counts = confusion_matrix(prediction, torch.from_numpy(truth), 847, ignore=65535)
    assert time.process_time() - start < 0.8
    expected = torch.zeros(848, 847, dtype=torch.int64)
    for row in range(1, 30):
        for column in range(40):
            expected[coarse[0, row, column], coarse[1, row, column]] += 5000 if row == 1 else 10000
    assert torch.equal(counts, expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (torch.tensor([-2]), torch.tensor([0]), "the prediction holds label -2"),
        (torch.tensor([4]), torch.tensor([0]), "the prediction holds label 4, which is none of the 4 classes"),
        (torch.tensor([0]), torch.tensor([-1]), "the truth holds label -1"),
        (torch.zeros(2, 2), torch.zeros(2, 3), "differ in size"),
    ],
)
def test_wrong_maps_are_refused(prediction: torch.Tensor, truth: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(prediction, truth, 4)


def read_case(shared: Path, name: str) -> tuple[dict, torch.Tensor, torch.Tensor]:
    folder = shared / "parity" / "benchmarks"
    arrays = np.load(folder / f"case-{name}.npz")
    case = json.loads((folder / f"case-{name}.json").read_text())
    return case, torch.from_numpy(arrays["pred"].astype(np.int64)), torch.from_numpy(arrays["gt"].astype(np.int64))


@pytest.mark.parametrize("name", ["semseg", "semseg-16bit"])
def test_detectron2_numbers(shared: Path, name: str) -> None:
    case, prediction, truth = read_case(shared, name)
    matrix = SemanticConfusion(case.get("num_classes") or len(case["classes"]), case["ignore_label"])
    for picture in range(len(truth)):
        matrix.update(prediction[picture], truth[picture])
    counts = matrix.counts
    for rule, results in (("gt", case["results_current"]), ("gt_or_pred", case["results_detectron2_v0.6"])):
        assert 100 * mean_iou(counts, rule) == pytest.approx(results["mIoU"], abs=1e-9)
        assert 100 * frequency_weighted_iou(counts) == pytest.approx(results["fwIoU"], abs=1e-9)
        assert 100 * mean_accuracy(counts) == pytest.approx(results["mACC"], abs=1e-9)
        assert 100 * pixel_accuracy(counts) == pytest.approx(results["pACC"], abs=1e-9)
        for index, word in enumerate(case.get("classes", [])):
            for key, values in (("IoU", class_iou(counts)), ("ACC", class_accuracy(counts))):
                expected = results[f"{key}-{word}"]
                expected = math.nan if expected is None else expected
                assert 100 * values[index].item() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    if "classes" in case:
        assert counts[:-1].tolist() == [row[:-1] for row in case["confusion_pred_rows_gt_columns"][:-1]]


def test_seen_and_unseen(shared: Path) -> None:
    case, prediction, truth = read_case(shared, "hiou")
    counts = confusion_matrix(prediction, truth, len(case["classes"]), case["ignore_label"])
    unseen = torch.tensor([word in case["unseen"] for word in case["classes"]])
    expected = case["results_by_sets"]
    seen_iou, unseen_iou = mean_iou(counts, "gt_or_pred", ~unseen), mean_iou(counts, "gt_or_pred", unseen)
    assert 100 * seen_iou == pytest.approx(expected["mIoU-base"], abs=1e-9)
    assert 100 * unseen_iou == pytest.approx(expected["mIoU-unbase"], abs=1e-9)
    assert 100 * harmonic_mean(seen_iou, unseen_iou) == pytest.approx(expected["hIoU-base"], abs=1e-9)
    assert 100 * pixel_accuracy(counts, ~unseen) == pytest.approx(expected["pAcc-base"], abs=1e-9)
    assert 100 * pixel_accuracy(counts, unseen) == pytest.approx(expected["pAcc-unbase"], abs=1e-9)
    assert 100 * mean_iou(counts, "gt", unseen) == pytest.approx(case["results_by_names"]["unseen_IoU"], abs=1e-9)

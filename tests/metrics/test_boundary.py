import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from lexiseg.metrics.boundary import BoundaryConfusion, boundary_confusion, boundary_iou, rim_width
from lexiseg.metrics.semantic import class_iou


def blocks(rng: np.random.Generator, classes: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, classes, (4, 5)).repeat(9, 0).repeat(10, 1))


def test_by_hand() -> None:
    truth = torch.zeros(20, 30, dtype=torch.long)
    truth[:, 15:] = 1
    assert rim_width(20, 30) == 1
    counts = boundary_confusion(truth, truth, 2, 255, "rim")
    rim = 2 * 20 + 2 * 13  # of a half of 15 columns: two upright sides, and top and bottom between them
    assert counts[:-1].tolist() == [[rim, 0, 0], [0, rim, 0], [0, 0, 600 - 2 * rim]]
    shifted = truth.roll(1, dims=1)
    shifted[:, 0] = 0
    counts = boundary_confusion(shifted, truth, 2, 255, "rim")
    assert boundary_iou(counts, "rim")[0] < 0.6 < 0.8 < class_iou(counts)[2]  # the insides agree, the rims do not


def test_each_class_by_eroding_its_own_mask() -> None:
    """The definition, one class at a time."""
    rng = np.random.default_rng(0)
    prediction, truth = blocks(rng, 4), blocks(rng, 4)
    ours = boundary_iou(boundary_confusion(prediction, truth, 4, 255, "rim"), "rim")
    width = rim_width(36, 50)
    square = np.ones((2 * width + 1, 2 * width + 1))
    for index in range(4):
        rims = []
        for labels in (prediction, truth):
            mask = (labels == index).numpy()
            rims.append(mask & ~ndimage.binary_erosion(mask, square))
        assert ours[index] == pytest.approx((rims[0] & rims[1]).sum() / (rims[0] | rims[1]).sum())


def test_the_order_of_the_classes_changes_nothing_but_with_eroded_labels() -> None:
    rng = np.random.default_rng(1)
    prediction, truth = blocks(rng, 4), blocks(rng, 4)
    swap = torch.tensor([3, 1, 2, 0])
    for rule, same in (("rim", True), ("eroded_labels", False)):
        plain = boundary_iou(boundary_confusion(prediction, truth, 4, 255, rule), rule)
        swapped = boundary_iou(boundary_confusion(swap[prediction], swap[truth], 4, 255, rule), rule)
        assert torch.equal(plain, swapped[swap]) == same


def test_ignored_pixels_and_merging() -> None:
    rng = np.random.default_rng(2)
    whole, first, second = (BoundaryConfusion(4, ignore=65535) for _ in range(3))
    for part in (first, second):
        prediction, truth = blocks(rng, 4), blocks(rng, 4)
        truth[:, :10] = 65535
        for accumulator in (whole, part):
            accumulator.update(prediction, truth)
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)
    assert whole.counts.sum() == 2 * 36 * 40
    with pytest.raises(ValueError, match="another rule"):
        first.merge(BoundaryConfusion(4, ignore=65535, rule="eroded_labels"))
    with pytest.raises(ValueError, match="at most 254 classes"):
        BoundaryConfusion(300, 65535, "eroded_labels").update(torch.zeros(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="alike"):
        whole.update(torch.zeros(2, 2), torch.zeros(2, 3))


def test_detectron2_numbers(shared: Path) -> None:
    folder = shared / "parity" / "benchmarks"
    case = json.loads((folder / "case-semseg.json").read_text())
    arrays = np.load(folder / "case-semseg.npz")
    boundary = BoundaryConfusion(len(case["classes"]), case["ignore_label"], "eroded_labels")
    for prediction, truth in zip(arrays["pred"], arrays["gt"], strict=True):
        boundary.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    for index, name in enumerate(case["classes"]):
        expected = case["results_current"][f"BoundaryIoU-{name}"]
        assert 100 * boundary.iou()[index].item() == pytest.approx(expected, abs=1e-9)

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg.metrics.mask_accuracy import class_masks, mask_accuracy, mask_confusion


def test_by_hand() -> None:
    confusion = mask_confusion(4)
    confusion.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    confusion.update(torch.tensor([3]), torch.tensor([2]))
    confusion.update(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.long))
    result = mask_accuracy(confusion.counts, torch.tensor([True, False, False, True]))
    assert result.per_class == pytest.approx((0.5, 1.0, 0.0, math.nan), nan_ok=True)
    assert (result.mean, result.seen, result.unseen, result.overall) == (0.5, 0.5, 0.5, 0.5)
    assert math.isnan(mask_accuracy(confusion.counts).seen)


def test_one_mask_per_class() -> None:
    labels = np.array([[4, 65535, 2], [4, 4, 2]], np.uint16)
    masks, classes = class_masks(torch.from_numpy(labels), 65535)
    assert classes.tolist() == [2, 4]
    assert masks[1].tolist() == [[True, False, False], [True, True, False]]
    masks, classes = class_masks(torch.full((2, 3), 255), 255)
    assert masks.shape == (0, 2, 3)
    assert classes.shape == (0,)


def test_golden(shared: Path) -> None:
    folder = shared / "parity" / "maskclip-pp"
    arrays = np.load(folder / "pieces.npz")
    assert "mask_accuracy/gt" in json.loads((folder / "pieces.json").read_text())["inputs"]
    truth = torch.from_numpy(arrays["mask_accuracy/gt"])
    seen = torch.from_numpy(arrays["mask_accuracy/overlap"])
    confusion = mask_confusion(len(seen))
    for number, labels in enumerate(truth):
        confusion.update(torch.from_numpy(arrays[f"mask_accuracy/pred_{number}"]), class_masks(labels, 255)[1])
    result = mask_accuracy(confusion.counts, seen)
    assert np.array_equal(confusion.counts, arrays["mask_accuracy/confusion"][:, :-1])
    assert 100 * np.array([result.mean, result.seen, result.unseen]) == pytest.approx(arrays["mask_accuracy/result"])
    assert 100 * np.array(result.per_class) == pytest.approx(arrays["mask_accuracy/per_class"], nan_ok=True)

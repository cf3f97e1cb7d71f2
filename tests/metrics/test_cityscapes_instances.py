"""AP by Cityscapes' rules: against its own program's figures, and by hand.

tests/golden/cityscapes_ap.npz: five random scenes, their detections, and what cityscapesScripts 2.3.0 from PyPI, run on
files made of them, says of each kind and of all.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from lexiseg.data.cityscapes import KINDS, panoptic_segments
from lexiseg.evaluation.records import pack_cityscapes, unpack_cityscapes
from lexiseg.metrics.cityscapes_instances import cityscapes_average_precision, match_cityscapes
from lexiseg.metrics.panoptic import PanopticSegment

GOLDEN = Path(__file__).parents[1] / "golden" / "cityscapes_ap.npz"
CAR = 0


def test_the_figures_of_its_own_program() -> None:
    golden = np.load(GOLDEN)
    scenes = golden["instances"]
    masks = np.unpackbits(golden["mask_bits"]).astype(bool).reshape(-1, *scenes.shape[1:])
    classes = list(KINDS)
    outcomes = []
    for number, scene in enumerate(scenes):
        own = np.flatnonzero(golden["scene"] == number)
        found = [(classes.index(golden["kind"][at]), float(golden["score"][at]), masks[at]) for at in own]
        regions, listed = panoptic_segments(scene.astype(np.int32))
        truth = [PanopticSegment(region.number, region.class_index, region.is_crowd) for region in listed]
        outcome = match_cityscapes(found, regions, truth, things=range(11, 19))
        outcomes.append(unpack_cityscapes(pack_cityscapes(outcome)))
    result = cityscapes_average_precision(outcomes, len(classes))
    assert [result.numbers["AP"], result.numbers["AP50"]] == pytest.approx(golden["ap"], abs=1e-14)
    of_kind = {int(kind): ap for kind, ap, _ in golden["ap_of_kind"]}
    for index, kind in enumerate(classes):
        assert result.per_class[index] == pytest.approx(of_kind.get(kind, math.nan), abs=1e-14, nan_ok=True)


def scene(*boxes: tuple[int, int, int, int], crowd: bool = False) -> tuple[np.ndarray, list[PanopticSegment]]:
    """Cars in a picture of 40 x 60 on background; what is right of column 50 is void."""
    regions = np.full((40, 60), len(boxes) + 1, np.int32)
    regions[:, 50:] = 0
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        regions[top:bottom, left:right] = number
    truth = [PanopticSegment(number, CAR, crowd) for number in range(1, len(boxes) + 1)]
    return regions, [*truth, PanopticSegment(len(boxes) + 1, 1)]


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[top:bottom, left:right] = True
    return mask


LARGE = (0, 0, 20, 20)
SMALL = (30, 0, 39, 10)  # 90 pixels


@pytest.mark.parametrize(
    ("boxes", "detections", "expected"),
    [
        ([LARGE], [(0.9, LARGE)], 1.0),
        ([LARGE], [], 0.0),
        ([LARGE], [(0.9, LARGE), (0.5, LARGE)], 1.0),  # the second is wrong, but weaker than all that is right
        ([LARGE], [(0.5, LARGE), (0.9, (20, 30, 30, 40))], 0.5 * (1 / 2) + 0.5 * 0),  # a stronger one is wrong
        ([LARGE, SMALL], [(0.9, LARGE), (0.95, SMALL)], 1.0),  # small ones need not be found, nor do they harm
        ([LARGE], [(0.9, LARGE), (0.95, (0, 50, 20, 60))], 1.0),  # on void
    ],
)
def test_by_hand(boxes: list, detections: list, expected: float) -> None:
    regions, truth = scene(*boxes)
    found = [(CAR, score, box(*place)) for score, place in detections]
    outcome = match_cityscapes(found, regions, truth, things=[CAR])
    assert cityscapes_average_precision([outcome], 2).per_class[CAR] == pytest.approx(expected)


def test_groups_and_stuff_are_not_looked_for() -> None:
    regions, truth = scene(LARGE, crowd=True)
    found = [(CAR, 0.9, box(*LARGE)), (1, 0.9, box(20, 0, 40, 50))]
    outcome = match_cityscapes(found, regions, truth, things=[CAR])
    assert not outcome[CAR].wrong.any() and not outcome[CAR].found.any()
    result = cityscapes_average_precision([outcome], 2)
    assert all(math.isnan(value) for value in (*result.per_class, *result.numbers.values()))

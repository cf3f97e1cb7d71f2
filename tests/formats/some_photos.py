"""Results to be written and read back: shapes with holes, parts, single pixels and odd names."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lexiseg.formats.records import PhotoRecord
from lexiseg.results import Result, make_result
from lexiseg.types import InstanceMasks, PanopticMap, Segment, SemanticMap
from lexiseg.vocabulary import Vocabulary, VocabularyClass

WORDS = Vocabulary(
    (
        VocabularyClass(("sky", "heavens"), is_thing=False),
        VocabularyClass(("car & <van>",)),
        VocabularyClass(("tree",), is_thing=False, color=(0, 200, 0)),
    )
)
HEIGHT, WIDTH = 31, 40


def segment(class_index: int, score: float, area: int) -> Segment:
    scores = torch.full((3,), 0.05)
    scores[class_index] = score
    return Segment(class_index, score, area, scores)


def shapes() -> torch.Tensor:
    """bool [3, H, W]: a ring with an island in it, two parts that touch by a corner, and a lonely pixel."""
    masks = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 2:20, 3:22] = True
    masks[0, 6:14, 7:17] = False
    masks[0, 9:11, 10:13] = True
    masks[1, 20:25, 25:30] = True
    masks[1, 25:28, 30:38] = True
    masks[2, 30, 39] = True
    return masks


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def semantic(name: str = "a/b c.jpg") -> Result:
    labels = torch.full((HEIGHT, WIDTH), -1)
    for index, mask in enumerate(shapes()):
        labels[mask] = index
    found = tuple(segment(index, 0.9 - 0.2 * index, int(mask.sum())) for index, mask in enumerate(shapes()))
    return make_result(SemanticMap(labels, found), WORDS, photo(), name, model="colours")


def panoptic(name: str = "b.png") -> Result:
    ids = torch.zeros(HEIGHT, WIDTH, dtype=torch.int32)
    for number, mask in enumerate(shapes(), start=1):
        ids[mask] = number
    found = tuple(
        segment(index, score, int(mask.sum()))
        for index, score, mask in zip((1, 1, 2), (0.9, 0.5, 0.25), shapes(), strict=True)
    )
    return make_result(PanopticMap(ids, found), WORDS, photo(), name, model="colours")


def instances(name: str = "c.tif") -> Result:
    """Masks that overlap."""
    masks = torch.cat([shapes(), shapes()[:1].flip(1)])
    found = tuple(segment(1, score, int(mask.sum())) for score, mask in zip((0.9, 0.7, 0.6, 0.5), masks, strict=True))
    return make_result(InstanceMasks(masks, found), WORDS, photo(), name, model="colours")


def nothing(name: str = "inner/nothing.jpg") -> Result:
    return make_result(
        PanopticMap(torch.zeros(9, 9, dtype=torch.int32), ()), WORDS, np.zeros((9, 9, 3), np.uint8), name
    )


RESULTS = (semantic, panoptic, instances)


def write_photos(folder: Path) -> None:
    """The photos of the results, by their names."""
    for make in RESULTS:
        path = folder / make().photo
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make().rgb).save(path, format="PNG")


def records() -> list[PhotoRecord]:
    return [make().record() for make in (*RESULTS, nothing)]

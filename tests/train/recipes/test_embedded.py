"""A whole embedded model by its one command, in a few steps on photos of stripes."""

from pathlib import Path

import pytest
from PIL import Image

from lexiseg import Segmenter
from lexiseg.train.recipes import embedded
from tests.train.recipes.stripes import package

STREET = ["sky", "building", "road", "pedestrian", "tree"]
COCO = ["person", "car", "door", "window", "sky", "building", "tree"]


@pytest.mark.slow  # the words of a whole lexicon are encoded twice
@pytest.mark.parametrize("name", [embedded.STREET_TINY, embedded.OUTDOOR_TINY])
def test_from_nothing_to_a_model_that_segments(name: str, tmp_path: Path) -> None:
    for key, classes in (("camvid", STREET), ("msrc", STREET), ("coco_panoptic", COCO)):
        package(tmp_path, key, classes)
    for key in ("coco_things", "coco_captions"):
        package(tmp_path, key, COCO, ignored=True)
    assert embedded.train(name, tmp_path, tmp_path / "run", share=0.0003)
    stages = {folder.name for folder in (tmp_path / "run").iterdir()}
    assert ("generator" in stages) == (name == embedded.STREET_TINY)
    result = Segmenter.from_pretrained(tmp_path / "run" / "model", device="cpu")(
        Image.new("RGB", (96, 64)), "sky, road"
    )
    assert result.label_map.shape == (64, 96)

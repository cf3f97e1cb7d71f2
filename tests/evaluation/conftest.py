"""Labelled photos that a model of three colours can be measured on, and candidates that answer by rule."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.evaluation import Candidate
from lexiseg.types import Segment, SemanticMap

CLASSES = ["sky", "road", "traffic sign"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Six photos whose grey level tells the class: left half sky, right half road, one pixel not labelled."""
    folder = tmp_path / "tiny"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    ids = [f"p{number}" for number in range(6)]
    labels = np.zeros((8, 12), np.uint8)
    labels[:, 6:] = 1
    for id in ids:
        Image.fromarray(np.stack([labels * 100] * 3, -1)).save(folder / "images" / f"{id}.jpg", quality=95)
        labels[0, 0] = 255
        Image.fromarray(labels).save(folder / "labels" / f"{id}.png")
        labels[0, 0] = 0
    description = {"name": "tiny", "classes": CLASSES, "ignore": 255, "splits": {"train": ids[:1], "test": ids[1:]}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Twelve photos of red, green and blue patches, every patch a region, some of them called by a wrong class."""
    folder = tmp_path / "colours"
    for part in ("images", "labels", "segments"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    regions = {}
    for number in range(12):
        patches = rng.integers(0, 3, (2, 3))
        ids = np.arange(1, 7).reshape(2, 3)
        wrong = rng.random((2, 3)) < 0.2
        classes = np.where(wrong, (patches + 1) % 3, patches)
        large = [array.repeat(32, 0).repeat(32, 1) for array in (patches, ids, classes)]
        rgb = (np.arange(3) == large[0][..., None]).astype(np.uint8) * 200
        labels = large[2].astype(np.uint8)
        labels[:4] = 255
        Image.fromarray(rgb).save(folder / f"images/c{number}.png")
        Image.fromarray(labels).save(folder / f"labels/c{number}.png")
        Image.fromarray(large[1].astype(np.uint8)).save(folder / f"segments/c{number}.png")
        regions[f"c{number}"] = [[int(id), int(index), 0] for id, index in zip(ids.flat, classes.flat, strict=True)]
    description = {
        "name": "colours-12",
        "classes": ["red", "green", "blue"],
        "isthing": [1, 1, 0],
        "ignore": 255,
        "image_suffix": ".png",
        "splits": {"val": [f"c{number}" for number in range(12)]},
        "segments": "patches",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "segments.json").write_text(json.dumps(regions))
    return folder


def labelling(rule: Callable[[np.ndarray], torch.Tensor], name: str = "grey", **options: object) -> Candidate:
    """A candidate that labels every pixel by a rule."""

    def predict(image, vocabulary, tasks):
        labels = rule(image)
        present = [index for index in labels.unique().tolist() if index >= 0]
        scores = torch.ones(len(vocabulary)) / len(vocabulary)
        found = tuple(Segment(index, 0.75, int((labels == index).sum()), scores) for index in present)
        return {"semantic": SemanticMap(labels, found)}

    return Candidate(name, predict, **options)


def by_grey_level(image: np.ndarray) -> torch.Tensor:
    """Right everywhere but in the lowest row, which it calls a traffic sign."""
    labels = torch.from_numpy((image[..., 0] > 50).astype(np.int64))
    labels[-1] = 2
    return labels

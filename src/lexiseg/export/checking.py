"""Does a file say what PyTorch says? Told on real photos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

from lexiseg.export.graphs import ExportError, with_view
from lexiseg.exported.description import Check
from lexiseg.exported.running import ExportedSegmenter
from lexiseg.images import Photo, find_images, read_image
from lexiseg.results import Task
from lexiseg.segmenter import Segmenter
from lexiseg.types import PanopticMap, Prediction, SemanticMap
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.model_folder import Model

LEAST_AGREEMENT = 0.999
"""Share of the pixels with the same class that a float32 file must have."""

TASKS: tuple[Task, ...] = ("semantic", "panoptic")

WORDS = "sky, tree, building | house | temple, water | lake, grass, flower, road | street, mountain, person, car"
"""For files whose words are an input."""


def photos_to_check(folder: Path | None) -> list[Photo]:
    """Those of a folder; without one the two photos that scikit-learn carries."""
    if folder is None:
        bundle = datasets.load_sample_images()
        return [Photo(rgb, Path(name).name) for rgb, name in zip(bundle.images, bundle.filenames, strict=True)]
    if not folder.is_dir():
        raise ExportError(f"{folder}: no folder; give one with photos to check the file on")
    photos = [read_image(path) for path in find_images(folder)]
    if not photos:
        raise ExportError(f"{folder}: a folder without images; give one with photos to check the file on")
    return photos


def reference(model: Model, exported: ExportedSegmenter) -> Segmenter:
    """PyTorch on the canvas of a file: the same pixels go into both."""
    known = exported.description
    canvas = replace(model.canvas, within=known.size_hw)
    system = with_view(model.system, known.view_hw)
    return Segmenter(replace(model, canvas=canvas, system=system), "cpu")


def checked(model: Model, exported: ExportedSegmenter, photos: Sequence[Photo], words: Vocabulary) -> Check:
    """The file against PyTorch."""
    segmenter = reference(model, exported)
    return agreement(
        (segmenter.predict(photo, words, TASKS), exported.predict(photo, words, TASKS)) for photo in photos
    )


def agreement(pairs: Iterable[tuple[dict[Task, Prediction], dict[Task, Prediction]]]) -> Check:
    """Of two outcomes for each of some photos."""
    photos, pixels, same = 0, 0, dict.fromkeys(TASKS, 0)
    for ours, theirs in pairs:
        photos += 1
        for task in TASKS:
            labels, others = labels_of(ours[task]), labels_of(theirs[task])
            same[task] += int((labels == others).sum())
        pixels += labels.numel()
    return Check(
        photos=photos,
        pixels=pixels,
        same_labels=same["semantic"] / pixels,
        same_segments=same["panoptic"] / pixels,
    )


def labels_of(found: Prediction) -> Tensor:
    """[H, W]: the class of every pixel, -1 for none."""
    if isinstance(found, SemanticMap):
        return found.labels.cpu()
    found = cast(PanopticMap, found)
    class_of = torch.tensor([-1, *(segment.class_index for segment in found.segments)])
    return class_of[found.ids.cpu().long()]


def as_percent(share: float) -> str:
    """99.9987 %: never rounded up to a hundred."""
    return f"{np.floor(share * 1e6) / 1e4:.4f} %"

"""One photo: the model looks at it, and what it says is held against the truth."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.data.packages import LabelledPhoto, LabelledPhotos
from lexiseg.evaluation.candidates import Candidate
from lexiseg.evaluation.records import PhotoRecord, pack_cityscapes, pack_outcome, sparse, sparse_columns
from lexiseg.metrics.boundary import boundary_confusion
from lexiseg.metrics.cityscapes_instances import match_cityscapes
from lexiseg.metrics.instances import ScoredInstance, TrueInstance, encode_mask, match_instances
from lexiseg.metrics.mask_accuracy import class_masks, mask_confusion
from lexiseg.metrics.panoptic import PanopticSegment, count_segments
from lexiseg.metrics.semantic import confusion_matrix
from lexiseg.results import Task
from lexiseg.types import InstanceMasks, PanopticMap, SemanticMap
from lexiseg.vocabulary import Vocabulary

Measure = Literal["miou", "boundary", "pq", "ap", "masks"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""What can be measured: mIoU and its relatives, Boundary IoU, panoptic quality, AP, mask accuracy."""

TASK_OF: dict[Measure, Task] = {"miou": "semantic", "boundary": "semantic", "pq": "panoptic", "ap": "instance"}

GivenMasks = Literal["classes", "regions"]
"""Which true masks are given for mask accuracy: one per class of the labels, or every region of its own."""


@dataclass(frozen=True)
class Look:
    """What is asked of every photo."""

    vocabulary: Vocabulary
    """K words or more."""
    word_class: Tensor
    """[words + 1] int64: the class of each word; the last one is -1, for pixels without a class."""
    measures: tuple[Measure, ...]
    given_masks: GivenMasks | None = None

    @property
    def tasks(self) -> tuple[Task, ...]:
        return tuple(dict.fromkeys(TASK_OF[measure] for measure in self.measures if measure in TASK_OF))


def look_at(candidate: Candidate, data: LabelledPhotos, id: str, look: Look, first: bool) -> PhotoRecord:
    """The record of one photo. Errors name it."""
    photo = data.photo(id)
    try:
        if "masks" in look.measures:
            return _named_masks(candidate, data, photo, look, first)
        return _segmented(candidate, data, photo, look, first)
    except ValueError as error:
        raise ValueError(f"{data.name}/{id}: {error}") from None


def _segmented(
    candidate: Candidate, data: LabelledPhotos, photo: LabelledPhoto, look: Look, first: bool
) -> PhotoRecord:
    start = time.perf_counter()
    outcomes = candidate.predict(photo.image, look.vocabulary, look.tasks)
    seconds = time.perf_counter() - start
    classes, truth = len(data.classes), torch.from_numpy(photo.labels)
    pixels = confidence = rims = segments = instances = None
    semantic = outcomes.get("semantic")
    if semantic is not None:
        assert isinstance(semantic, SemanticMap)
        labels = look.word_class[semantic.labels]
        # Of several words for one class the last one's score stands: calibration is about plain lists of classes.
        confidence = [(int(look.word_class[s.class_index]), s.score) for s in semantic.segments]
        if "miou" in look.measures:
            pixels = sparse(confusion_matrix(labels, truth, classes, data.ignore))
        if "boundary" in look.measures:
            rims = sparse(boundary_confusion(labels, truth, classes, data.ignore, "rim"))
    panoptic = outcomes.get("panoptic")
    if panoptic is not None:
        assert isinstance(panoptic, PanopticMap)
        found = [
            PanopticSegment(number, int(look.word_class[segment.class_index]))
            for number, segment in enumerate(panoptic.segments, start=1)
        ]
        ids = panoptic.ids.numpy()
        segments = sparse_columns(count_segments(ids, found, photo.regions, true_segments(data, photo), classes))
    detections = outcomes.get("instance")
    if detections is not None:
        assert isinstance(detections, InstanceMasks)
        found_things = [
            (int(look.word_class[segment.class_index]), segment.score, mask.numpy())
            for mask, segment in zip(detections.masks, detections.segments, strict=True)
        ]
        if data.instance_rules == "cityscapes":
            things = [index for index, flag in enumerate(data.is_thing or ()) if flag]
            instances = pack_cityscapes(
                match_cityscapes(found_things, photo.regions, true_segments(data, photo), things)
            )
        else:
            scored = [ScoredInstance(index, score, encode_mask(mask)) for index, score, mask in found_things]
            instances = pack_outcome(match_instances(scored, true_instances(data, photo), classes))
    memory, gpu_memory = peak_memory_mb(candidate.device)
    return PhotoRecord(photo.id, seconds, first, memory, gpu_memory, pixels, confidence, rims, segments, instances)


def _named_masks(
    candidate: Candidate, data: LabelledPhotos, photo: LabelledPhoto, look: Look, first: bool
) -> PhotoRecord:
    if candidate.classify_masks is None:
        raise ValueError(f"{candidate.name} cannot be given masks")
    masks, classes = true_masks(data, photo, look.given_masks or "classes")
    confusion = mask_confusion(len(data.classes))
    seconds = 0.0
    if len(masks):
        start = time.perf_counter()
        scores = candidate.classify_masks(photo.image, look.vocabulary, masks)
        seconds = time.perf_counter() - start
        confusion.update(look.word_class[scores.argmax(1)], classes)
    memory, gpu_memory = peak_memory_mb(candidate.device)
    return PhotoRecord(photo.id, seconds, first, memory, gpu_memory, masks=sparse(confusion.counts))


def true_segments(data: LabelledPhotos, photo: LabelledPhoto) -> list[PanopticSegment]:
    """The segments of a photo as its package lists them."""
    return [
        PanopticSegment(region, index, bool(crowd)) for region, index, crowd in data.region_classes.get(photo.id, [])
    ]


def true_instances(data: LabelledPhotos, photo: LabelledPhoto) -> list[TrueInstance]:
    """The annotated things of a photo: of a file of their own, or the regions that are things."""
    if data.instances is not None:
        return [
            TrueInstance(entry["class"], entry["rle"], entry["area"], is_crowd=bool(entry["iscrowd"]))
            for entry in data.instances.get(photo.id, [])
        ]
    found = []
    for region, index, crowd in data.region_classes.get(photo.id, []):
        if data.is_thing is not None and data.is_thing[index]:
            mask = photo.regions == region
            found.append(TrueInstance(index, encode_mask(mask), float(mask.sum()), is_crowd=bool(crowd)))
    return found


def true_masks(data: LabelledPhotos, photo: LabelledPhoto, given: GivenMasks) -> tuple[NDArray[np.bool_], Tensor]:
    """Masks [N, H, W] and their classes [N]: of the labels, or of the regions in their order, without empty ones."""
    if given == "classes":
        masks, classes = class_masks(torch.from_numpy(photo.labels), data.ignore)
        return masks.numpy(), classes
    listed = [(photo.regions == region, index) for region, index, _ in data.region_classes.get(photo.id, [])]
    listed = [(mask, index) for mask, index in listed if mask.any()]
    stacked = np.stack([mask for mask, _ in listed]) if listed else np.zeros((0, *photo.labels.shape), bool)
    return stacked, torch.tensor([index for _, index in listed], dtype=torch.int64)


def peak_memory_mb(device: str) -> tuple[float | None, float | None]:
    """Of the whole process since its start, and on the GPU."""
    gpu = torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None
    if sys.platform == "win32":  # whose Python does not tell
        return None, gpu
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10), gpu  # bytes there, kilobytes elsewhere


def known_measures(data: LabelledPhotos, asked: Sequence[str] | None) -> tuple[Measure, ...]:
    """What is measured: what was asked for, or what the data offers. What it cannot offer is an error."""
    offered = set(data.measures)
    if asked is None:
        return tuple(measure for measure in MEASURES if measure in offered)
    for name in asked:
        if name not in MEASURES:
            raise ValueError(f"no measure is called {name!r}: choose from {', '.join(MEASURES)}")
        if name in ("pq", "ap") and name not in offered:
            raise ValueError(f"{data.name} has no {'regions' if name == 'pq' else 'instances'}, so no {name} of it")
    if "masks" in asked and len(set(asked)) > 1:
        raise ValueError("mask accuracy is measured by itself: the model draws no masks then")
    return tuple(measure for measure in MEASURES if measure in asked)

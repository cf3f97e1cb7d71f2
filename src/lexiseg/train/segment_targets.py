"""Photos as sets of segments: what a mask generator is trained to find.

A segment is one object of a countable class, or all of one stuff class. A photo carries one 8-bit map of segment
numbers, so that a crop of it stays as cheap as a crop of labels.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from lexiseg.data.packages import LabelledPhoto, LabelledPhotos
from lexiseg.train.augment import FILL, Cutout, crop_matrix, cut_out, paint_openings, paste, recolour, warp
from lexiseg.train.lexicon import Lexicon
from lexiseg.train.matcher import SegmentTargets

UNKNOWN = 0
"""Nobody has said what is there."""
NOTHING = 255
"""None of the classes that were labelled: outside every mask."""
MOST_SEGMENTS = 240
"""Of one photo; the rest of the 8-bit numbers is for what is painted and pasted."""
PAINTED = ("window", "door")
"""Concepts that are painted on walls: classes of every package, though its buildings may have some already."""
STUFF = {
    *("sky", "building", "road", "sidewalk", "tree", "fence", "pole", "traffic sign"),
    *("grass", "mountain", "water"),
}
"""One segment per class, in packages that do not tell things from stuff themselves. Poles and signs are thin or tiny
and stand in dozens: one mask for all of them is what a generator of few queries can learn."""


@dataclass(frozen=True)
class SegmentedPhoto:
    """A decoded photo and its segments."""

    image: Image.Image
    ids: Image.Image
    """Mode L: number of the segment, or UNKNOWN, or NOTHING."""
    classes: tuple[int, ...]
    """Class of segment 1, 2, ..."""


def segments_of(
    photo: LabelledPhoto, things: NDArray[np.bool_], crowds: Iterable[int]
) -> tuple[NDArray, tuple[int, ...]]:
    """ids [H, W] and the class of each segment.

    things [256] by class index. Objects are the photo's own regions where it has them, else connected parts.
    crowds: regions that hold several objects nobody has told apart: UNKNOWN.
    """
    labels = photo.labels
    has_regions = bool(photo.regions.any())
    ids = np.zeros(labels.shape, np.uint8)
    found: list[tuple[int, NDArray[np.bool_]]] = []
    for index in np.unique(labels[labels != 255]):
        inside = labels == index
        if not things[index]:
            found.append((int(index), inside))
            continue
        parts = photo.regions * inside if has_regions else ndimage.label(inside, np.ones((3, 3)))[0]
        found += [(int(index), parts == part) for part in np.unique(parts) if part and part not in crowds]
    found.sort(key=lambda item: -int(item[1].sum()))
    for number, (_, inside) in enumerate(found[:MOST_SEGMENTS], start=1):
        ids[inside] = number
    return ids, tuple(index for index, _ in found[:MOST_SEGMENTS])


def targets_of(ids: NDArray[np.uint8], classes: Sequence[int], smallest: int) -> SegmentTargets:
    """ids [h, w] of a crop -> its segments of at least `smallest` cells; smaller ones become unknown."""
    counts = np.bincount(ids.reshape(-1), minlength=256)
    numbers = [number for number in range(1, len(classes) + 1) if counts[number] >= smallest]
    cells = torch.from_numpy(ids.copy())  # arrays of images are read-only
    known = np.zeros(256, bool)
    known[[*numbers, NOTHING]] = True
    return SegmentTargets(
        labels=torch.tensor([classes[number - 1] for number in numbers], dtype=torch.int64),
        masks=cells == torch.tensor(numbers, dtype=torch.uint8)[:, None, None],
        known=torch.from_numpy(known[ids]),
    )


class SegmentedPhotos:
    """All photos of one package in memory, and the concepts its segments are told apart by."""

    def __init__(self, package: LabelledPhotos, split: str, lexicon: Lexicon, extra: Iterable[str] = ()) -> None:
        """extra: concepts of what is pasted into the photos of the package, as far as they have no class there."""
        own = [lexicon.concept_of(name) for name in package.classes]
        self.lexicon = lexicon
        self.package = package
        self.only_things = package.name in ("coco_things", "coco_captions")
        self.concepts = list(dict.fromkeys([*own, *PAINTED]))
        self._added: dict[str, int | None] = {concept: self.concepts.index(concept) for concept in PAINTED}
        for concept in extra:
            self._add(concept)
        class_of = {index: self.concepts.index(concept) for index, concept in enumerate(own)}
        things = np.zeros(256, bool)
        for index, name in enumerate(package.classes):
            things[index] = package.is_thing[index] if package.is_thing else name not in STUFF
        self.photos: list[SegmentedPhoto] = []
        for id in package.ids(split):
            photo = package.photo(id)
            crowds = [region for region, _, crowd in package.region_classes.get(id, []) if crowd]
            ids, classes = segments_of(photo, things, crowds)
            if self.only_things:
                ids[photo.labels == package.ignore] = NOTHING
            if classes:
                ids_image = Image.fromarray(ids)
                self.photos.append(
                    SegmentedPhoto(Image.fromarray(photo.image), ids_image, tuple(class_of[c] for c in classes))
                )
        self.walls = {self.concepts.index(concept) for concept in ("building", "house") if concept in self.concepts}

    def _add(self, concept: str) -> None:
        """Give `concept` a class: the one it is, or may be, or a new one. None where two of the package fit."""
        if concept in self.concepts:
            self._added[concept] = self.concepts.index(concept)
            return
        fitting = [index for index, other in enumerate(self.concepts) if self.lexicon.overlap(concept, other)]
        if not fitting:
            self.concepts.append(concept)
            fitting = [len(self.concepts) - 1]
        self._added[concept] = fitting[0] if len(fitting) == 1 else None

    def class_of(self, concept: str) -> int | None:
        """The class of a concept that was added, or None where the photos cannot take it."""
        return self._added.get(concept)

    def cutouts(self, names: set[str]) -> list[tuple[str, Cutout]]:
        """(concept, object) of every whole object of the named classes that is neither tiny nor most of its photo."""
        wanted = {self.lexicon.concept_of(name) for name in names if name in self.package.classes}
        found = []
        for photo in self.photos:
            ids = np.asarray(photo.ids)
            counts = np.bincount(ids.reshape(-1), minlength=256)
            for number, index in enumerate(photo.classes, start=1):
                if self.concepts[index] in wanted and 900 < counts[number] < 0.4 * ids.size:
                    found.append((self.concepts[index], cut_out(photo.image, ids == number, number)))
        return found

    def draw(
        self,
        rng: random.Random,
        size: int,
        stride: int,
        scales: tuple[float, float],
        cutouts: Sequence[tuple[str, Cutout]] = (),
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], list[int]]:
        """A crop [size, size, 3], the segments of its cells [size / stride, size / stride], and their classes."""
        photo = rng.choice(self.photos)
        image, ids, classes = photo.image, photo.ids, list(photo.classes)
        if not self.only_things and rng.random() < 0.35:
            wall_ids = [number for number, index in enumerate(classes, start=1) if index in self.walls]
            wall = np.isin(np.asarray(ids), wall_ids)
            if wall.mean() > 0.06:
                image, ids = paint_openings(rng, image, ids, wall, len(classes) + 1, len(classes) + 2)
                classes += [self.concepts.index(concept) for concept in PAINTED]
        centre = None
        if rng.random() < 0.3:  # somewhere on any of the segments, so that small ones are seen as well
            ys, xs = np.nonzero(np.asarray(ids) == rng.randrange(1, len(classes) + 1))
            if len(ys):
                spot = rng.randrange(len(ys))
                centre = (float(xs[spot]), float(ys[spot]))
        matrix = crop_matrix(rng, size, (image.height, image.width), scales, centre)
        image = warp(image, matrix, size, 1, FILL)
        ids = warp(ids, matrix, size, stride, UNKNOWN)
        if cutouts and rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 2, 3))):
                concept, cutout = rng.choice(cutouts)
                index = self.class_of(concept)
                if index is not None and len(classes) < NOTHING - 1:
                    classes.append(index)
                    paste(rng, image, ids, stride, replace(cutout, row=len(classes)))
        return np.asarray(recolour(rng, image)), np.asarray(ids), classes

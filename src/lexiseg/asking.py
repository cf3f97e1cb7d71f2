"""How a model is asked, whatever runs it: one picture or many, and what may be asked about them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from lexiseg.images import ImageInput, ImageLimits, Photo, read_image
from lexiseg.results import TASKS, Task
from lexiseg.vocabulary import Vocabulary

Words = str | Path | Sequence[Any] | Mapping[str, Any] | Vocabulary
"""Whatever `Vocabulary.parse` reads."""

_T = TypeVar("_T")

_REMEMBERED = 8
"""Vocabularies."""

INSTANCE_MIN_SCORE = 0.25
"""Models give their hundred best guesses at instances, for measures that rank them; people want the likely ones."""


def known_task(task: str) -> Task:
    """The task of that name."""
    for known in TASKS:
        if known == task:
            return known
    raise ValueError(f"no task is called {task!r}: choose one of {', '.join(TASKS)}")


def least_score(task: str, min_score: float | None, masks_given: bool = False) -> float:
    """The score a segment needs; min_score: as the caller said, None for what is usual."""
    likely = INSTANCE_MIN_SCORE if task == "instance" and not masks_given else 0.0
    least = likely if min_score is None else min_score
    if not 0 <= least <= 1:
        raise ValueError(f"a smallest score of {least} makes no sense: scores are between 0 and 1")
    return least


def check_things(task: str, vocabulary: Vocabulary) -> None:
    """Raises ValueError where nothing could be found."""
    if task == "instance" and not any(entry.is_thing for entry in vocabulary.classes):
        raise ValueError("instances are of things, but every class of the vocabulary is stuff: mark the things")


class Encoded(Generic[_T]):
    """What encoding made of the last few vocabularies. Threads may ask at once."""

    def __init__(self) -> None:
        self._made: OrderedDict[Vocabulary, _T] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, vocabulary: Vocabulary, encode: Callable[[Vocabulary], _T]) -> _T:
        """What `encode` made of the vocabulary before, or makes of it now."""
        with self._lock:
            made = self._made.pop(vocabulary, None)
        if made is None:
            made = encode(vocabulary)
        with self._lock:
            self._made[vocabulary] = made
            while len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        return made

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._made.clear()


def is_one(images: object) -> bool:
    """Whether it is one picture rather than many. What is neither is left to `read_image` to refuse."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Photo):
        return True
    return hasattr(images, "read") or not isinstance(images, Iterable)


def read_numbered(image: ImageInput | Photo, number: int, limits: ImageLimits) -> Photo:
    """Pictures without a name of their own are called by their place."""
    if isinstance(image, Image.Image):
        named = bool(getattr(image, "filename", None))
    else:
        named = isinstance(image, str | os.PathLike | Photo) or hasattr(image, "read")
    return read_image(image, limits, None if named else f"image {number}")

"""The front door: a model, a picture and words in, results out."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lexiseg import postprocess
from lexiseg.images import ImageError, ImageInput, ImageLimits, Photo, read_image
from lexiseg.postprocess import Frame
from lexiseg.results import TASKS, Result, Task, make_result
from lexiseg.selection import Selector, can_select, for_instances, for_panoptic, for_semantic
from lexiseg.text_bank import cache_folder, text_bank
from lexiseg.types import Images, Prediction, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model

log = logging.getLogger(__name__)

Words = str | Path | Sequence[Any] | Mapping[str, Any] | Vocabulary
"""Whatever `Vocabulary.parse` reads."""

INSTANCE_MIN_SCORE = 0.25
"""Models give their hundred best guesses at instances, for measures that rank them; people want the likely ones."""

_REMEMBERED_VOCABULARIES = 8


class Segmenter:
    """A model ready to be asked.

        segmenter = Segmenter.from_pretrained("street-tiny")
        result = segmenter("street.jpg", "sky, road | street, car")
        for photo, result in segmenter.stream(photos, words):    # a bad photo gives an ImageError, and the rest goes on
            ...

    Photos go through one at a time: in a batch they would be padded to the largest, which changes the outcome a little.
    """

    def __init__(
        self,
        model: Model,
        device: str | torch.device = "auto",
        limits: ImageLimits | None = None,
        *,
        skip_decided: bool = False,
    ) -> None:
        if skip_decided and not can_select(model.system):
            raise ValueError(
                f"{model.name}: skip_decided is for models with a Mask-Adapter whose generator tells void; the "
                "others score all proposals at once"
            )
        self.model = model
        self.limits = limits or ImageLimits()
        self.skip_decided = skip_decided
        self._banks: OrderedDict[Vocabulary, TextBank] = OrderedDict()
        self.device = torch.device("cpu")
        self.to(device)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        device: str | torch.device = "auto",
        limits: ImageLimits | None = None,
        *,
        skip_decided: bool = False,
    ) -> Segmenter:
        """A model by its name (`lexiseg models` lists them), by its folder, or as "organisation/name" on the hub.

        device: "auto" takes CUDA, then Apple's MPS, then the CPU. limits: how large a picture may be. skip_decided: of
        a model with a Mask-Adapter, proposals that cannot change the outcome are not computed (see
        `lexiseg.selection`); in a semantic result the scores of segments are then told from the others.
        """
        chosen = pick_device(device)
        name = model if isinstance(model, str) else Path(model)
        loaded = load(name, chosen)
        log.info("%s on %s", loaded.name, chosen)
        return cls(loaded, chosen, limits, skip_decided=skip_decided)

    def to(self, device: str | torch.device) -> Segmenter:
        """Moves the model; returns the segmenter itself."""
        self.device = pick_device(device)
        self.model.system.to(self.device)
        self._banks.clear()
        return self

    @overload
    def __call__(  # type: ignore[overload-overlap]  # strings and bytes are iterable, but one picture
        self,
        images: ImageInput | Photo,
        words: Words,
        task: Task = ...,
        *,
        background: bool = ...,
        min_score: float | None = ...,
    ) -> Result: ...

    @overload
    def __call__(
        self,
        images: Iterable[ImageInput | Photo],
        words: Words,
        task: Task = ...,
        *,
        background: bool = ...,
        min_score: float | None = ...,
    ) -> list[Result]: ...

    def __call__(
        self,
        images: ImageInput | Photo | Iterable[ImageInput | Photo],
        words: Words,
        task: Task = "semantic",
        *,
        background: bool = False,
        min_score: float | None = None,
    ) -> Result | list[Result]:
        """One result for one picture, a list for many; the first bad picture raises its ImageError.

        images: what `read_image` takes, or many of those: a list, an iterator, a 4-dimensional array or tensor.
        words: what `Vocabulary.parse` takes; with `background` a last class stands for everything else.
        task: "semantic" gives every pixel a class; "panoptic" finds segments that do not overlap, and says nothing
        where it finds none; "instance" finds scored masks of things, which may overlap.
        min_score: segments below it are left out; None is 0, for instances 0.25.
        """
        vocabulary, bank, least = self._prepare(words, task, background, min_score)
        if _is_one(images):
            photo = read_image(cast(ImageInput | Photo, images), self.limits)
            return self._segment(photo, vocabulary, bank, task, least)
        return [
            self._segment(_read_numbered(image, number, self.limits), vocabulary, bank, task, least)
            for number, image in enumerate(cast(Iterable[ImageInput | Photo], images), start=1)
        ]

    def stream(
        self,
        images: Iterable[ImageInput | Photo],
        words: Words,
        task: Task = "semantic",
        *,
        background: bool = False,
        min_score: float | None = None,
    ) -> Iterator[tuple[ImageInput | Photo, Result | ImageError]]:
        """Each picture with its result, or with the error that says why it has none: the rest goes on.

        Nothing is kept and pictures are taken from `images` one at a time, so there may be any number of them. Mistakes
        in the words or the task are raised at once.
        """
        vocabulary, bank, least = self._prepare(words, task, background, min_score)
        if _is_one(images):
            images = [cast(ImageInput, images)]
        return self._stream(images, vocabulary, bank, task, least)

    def _stream(
        self, images: Iterable[ImageInput | Photo], vocabulary: Vocabulary, bank: TextBank, task: Task, least: float
    ) -> Iterator[tuple[ImageInput | Photo, Result | ImageError]]:
        for number, image in enumerate(images, start=1):
            outcome: Result | ImageError
            try:
                photo = _read_numbered(image, number, self.limits)
                try:
                    outcome = self._segment(photo, vocabulary, bank, task, least)
                except (MemoryError, torch.OutOfMemoryError):
                    outcome = ImageError(photo.name, "does not fit into memory with these words; make it smaller")
            except ImageError as error:
                outcome = error
            yield image, outcome

    def _prepare(
        self, words: Words, task: str, background: bool, min_score: float | None
    ) -> tuple[Vocabulary, TextBank, float]:
        if task not in TASKS:
            raise ValueError(f"no task is called {task!r}: choose one of {', '.join(TASKS)}")
        least = (INSTANCE_MIN_SCORE if task == "instance" else 0.0) if min_score is None else min_score
        if not 0 <= least <= 1:
            raise ValueError(f"a smallest score of {least} makes no sense: scores are between 0 and 1")
        vocabulary = Vocabulary.parse(words, background=background)
        if task == "instance" and not any(entry.is_thing for entry in vocabulary.classes):
            raise ValueError("instances are of things, but every class of the vocabulary is stuff: mark the things")
        return vocabulary, self._bank(vocabulary), least

    @torch.inference_mode()
    def _bank(self, vocabulary: Vocabulary) -> TextBank:
        """The encoded vocabulary on the model's device; the last few are remembered."""
        bank = self._banks.pop(vocabulary, None)
        if bank is None:
            rows = text_bank(
                vocabulary,
                self.model.templates,
                self.model.text_encoder,
                self.model.training_phrases,
                fingerprint=self.model.fingerprint,
                cache=cache_folder(),
            )
            bank = rows.to(self.device)
        self._banks[vocabulary] = bank
        while len(self._banks) > _REMEMBERED_VOCABULARIES:
            self._banks.popitem(last=False)
        return bank

    @torch.inference_mode()
    def _segment(self, photo: Photo, vocabulary: Vocabulary, bank: TextBank, task: Task, least: float) -> Result:
        images = self.model.canvas([photo]).to(self.device)
        frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
        masks, class_probs, void_prob = self._scored(images, bank, task, frame)
        is_thing = torch.tensor([entry.is_thing for entry in vocabulary.classes], device=self.device)
        outputs = self.model.outputs
        prediction: Prediction
        if task == "semantic":
            prediction = postprocess.semantic(masks, class_probs, frame)
        elif task == "panoptic":
            prediction = postprocess.panoptic(
                masks,
                class_probs,
                void_prob,
                is_thing,
                frame,
                object_mask_threshold=outputs.object_mask_threshold,
                overlap_threshold=outputs.overlap_threshold,
            )
        else:
            prediction = postprocess.instances(masks, class_probs, frame, is_thing, top=outputs.top_instances)
        return make_result(
            prediction,
            vocabulary,
            photo.rgb,
            photo.name,
            model=self.model.name,
            source=photo.source,
            min_score=least,
        )

    def _scored(self, images: Images, bank: TextBank, task: Task, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """mask_logits [n, h, w], class_probs [n, K], void_prob [n]: of all proposals, or of those that can matter."""
        if not self.skip_decided:
            proposals, scores = self.model.system(images, bank)
            return proposals.mask_logits[0], scores.class_probs[0], scores.void_prob[0]
        selector, outputs = Selector(self.model.system, images, bank), self.model.outputs
        if task == "semantic":
            few = for_semantic(selector, frame)
        elif task == "panoptic":
            few = for_panoptic(selector, outputs.object_mask_threshold)
        else:
            few = for_instances(selector, outputs.top_instances)
        log.info("%d of %d proposals computed", len(few.computed), few.count)
        return few.mask_logits, few.class_probs, few.void_prob


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the best there is; a device that is named must be there."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"no device is called {str(device)!r}: use auto, cpu, cuda, cuda:1 or mps") from None
    if chosen.type == "cuda" and (not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"the device {chosen} is not here ({torch.cuda.device_count()} CUDA devices): use cpu or auto")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("the device mps is not here: use cpu or auto")
    return chosen


def _is_one(images: object) -> bool:
    """Whether it is one picture rather than many. What is neither is left to `read_image` to refuse."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | Photo):
        return True
    return hasattr(images, "read") or not isinstance(images, Iterable)


def _read_numbered(image: ImageInput | Photo, number: int, limits: ImageLimits) -> Photo:
    """Pictures without a name of their own are called by their place."""
    if isinstance(image, Image.Image):
        named = bool(getattr(image, "filename", None))
    else:
        named = isinstance(image, str | os.PathLike | Photo) or hasattr(image, "read")
    return read_image(image, limits, None if named else f"image {number}")

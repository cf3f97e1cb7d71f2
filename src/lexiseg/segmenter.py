"""The front door: a model, a picture and words in, results out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from lexiseg import postprocess, tiling
from lexiseg.asking import Encoded, Words, check_things, is_one, known_task, least_score, read_numbered
from lexiseg.images import ImageError, ImageInput, ImageLimits, Photo, looks, read_image
from lexiseg.mask_input import OF_MANY_PHOTOS, MaskInput, PhotoMasks, read_masks
from lexiseg.outcomes import Scored, prediction_of, things
from lexiseg.postprocess import Frame
from lexiseg.proposals.given_masks import GivenMasks, with_given_masks
from lexiseg.regions.grown import GrownUntilSeen
from lexiseg.results import Result, Task, make_result
from lexiseg.scoring.fusion import RegionOnly
from lexiseg.selection import Selector, can_select, for_instances, for_panoptic, for_semantic
from lexiseg.system import System
from lexiseg.text_bank import cache_folder
from lexiseg.tiling import Span, Tiling
from lexiseg.types import Images, PanopticMap, Prediction, Proposals, Scores, Size, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import compose, load
from lexiseg.zoo.model_folder import Model

log = logging.getLogger(__name__)


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
        augmented: bool = False,
        tiles: Tiling | None = None,
    ) -> None:
        """augmented: the semantic outcome is the mean of 18 looks at each photo, at nine sizes and mirrored, as some
        numbers were published; it takes as many times longer. tiles: photos larger than a tile are cut, and what the
        tiles show is put together (see `lexiseg.tiling`), for the semantic and the panoptic task."""
        if tiles is not None and (skip_decided or augmented):
            raise ValueError("tiles have a single whole look each: leave out skip_decided and augmented")
        if skip_decided and augmented:
            raise ValueError("skip_decided and augmented: only one look at a photo can be spared a part of the work")
        if augmented and (model.outputs.least_cover > 0 or model.outputs.paint_threshold is not None):
            raise ValueError(f"{model.name}: augmented needs scores at every pixel, but this model leaves pixels out")
        if skip_decided and not can_select(model.system):
            raise ValueError(
                f"{model.name}: skip_decided is for models with a Mask-Adapter or masked crops whose generator tells "
                "void; the others score all proposals at once"
            )
        self.model = model
        self.limits = limits or ImageLimits()
        self.skip_decided = skip_decided
        self.augmented = augmented
        self.tiles = tiles
        self._naming = naming_system(model.system)
        self._banks = Encoded[TextBank]()
        self.keeps_words = True
        """Whether encoded words are kept on the disk; a server does not write down what its clients type."""
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
        augmented: bool = False,
        tiles: Tiling | None = None,
    ) -> Segmenter:
        """A model by its name (`lexiseg models` lists them), by its folder, or as "organisation/name" on the hub.

        device: "auto" takes CUDA, then Apple's MPS, then the CPU. limits: how large a picture may be. skip_decided: of
        a model with a Mask-Adapter or masked crops, proposals that cannot change the outcome are not computed (see
        `lexiseg.selection`); in a semantic result the scores of segments are then told from the others. augmented,
        tiles: see the constructor.
        """
        chosen = pick_device(device)
        name = model if isinstance(model, str) else Path(model)
        loaded = load(name, chosen)
        log.info("%s on %s", loaded.name, chosen)
        return cls(loaded, chosen, limits, skip_decided=skip_decided, augmented=augmented, tiles=tiles)

    @classmethod
    def compose(
        cls,
        proposals: str | os.PathLike[str],
        regions: str | os.PathLike[str],
        device: str | torch.device = "auto",
        limits: ImageLimits | None = None,
        *,
        skip_decided: bool = False,
        **choices: Any,
    ) -> Segmenter:
        """Any generator of masks before any classifier of regions; docs/combinations.md has the pairs.

            Segmenter.compose("given", "fcclip-convnext-large")  # then: segmenter(photo, words, masks=...)
            Segmenter.compose("models/sam", "mask-adapter-fcclip-large", settings={"points_per_side": 16})

        proposals: "given", a model, or a generator of transformers. regions: a model, or a CLIP in open_clip's layout.
        Each by name, folder or "organisation/name". choices: fields of `zoo.composition.Choices`. Two parts that cannot
        be joined raise a CompositionError with the reason. `lexiseg.compose_folder` writes a pair as one model folder.
        """
        chosen = pick_device(device)
        drawn, read = (part if isinstance(part, str) else Path(part) for part in (proposals, regions))
        return cls(compose(drawn, read, chosen, **choices), chosen, limits, skip_decided=skip_decided)

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
        masks: MaskInput | PhotoMasks | None = ...,
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
        masks: Iterable[MaskInput | PhotoMasks] | None = ...,
    ) -> list[Result]: ...

    def __call__(
        self,
        images: ImageInput | Photo | Iterable[ImageInput | Photo],
        words: Words,
        task: Task = "semantic",
        *,
        background: bool = False,
        min_score: float | None = None,
        masks: MaskInput | PhotoMasks | Iterable[MaskInput | PhotoMasks] | None = None,
    ) -> Result | list[Result]:
        """One result for one picture, a list for many; the first bad picture raises its ImageError.

        images: what `read_image` takes, or many of those: a list, an iterator, a 4-dimensional array or tensor.
        words: what `Vocabulary.parse` takes; with `background` a last class stands for everything else.
        task: "semantic" gives every pixel a class; "panoptic" finds segments that do not overlap, and says nothing
        where it finds none; "instance" finds scored masks of things, which may overlap.
        min_score: segments below it are left out; None is 0, for instances of a model's own masks 0.25.
        masks: what `read_masks` takes, one such for each picture. Then the model draws none: it names these, and they
        come back as they are. "instance" is every mask with its best word, things and stuff; "panoptic" lays them down
        by score, each on what is left; "semantic" leaves pixels that no mask covers without a class.
        """
        question = self._prepare(words, task, background, min_score, masks is not None)
        if is_one(images):
            photo = read_image(cast(ImageInput | Photo, images), self.limits)
            return self._segment(photo, question, cast(MaskInput | PhotoMasks | None, masks))
        pairs = _paired(cast(Iterable[ImageInput | Photo], images), cast(Iterable[MaskInput] | None, masks))
        return [
            self._segment(read_numbered(image, number, self.limits), question, own)
            for number, (image, own) in enumerate(pairs, start=1)
        ]

    def stream(
        self,
        images: Iterable[ImageInput | Photo],
        words: Words,
        task: Task = "semantic",
        *,
        background: bool = False,
        min_score: float | None = None,
        masks: Iterable[MaskInput | PhotoMasks] | None = None,
    ) -> Iterator[tuple[ImageInput | Photo, Result | ImageError]]:
        """Each picture with its result, or with the error that says why it has none: the rest goes on.

        Nothing is kept and pictures are taken from `images` one at a time, so there may be any number of them. Mistakes
        in the words or the task are raised at once.
        """
        question = self._prepare(words, task, background, min_score, masks is not None)
        if is_one(images):
            images, masks = [cast(ImageInput, images)], None if masks is None else [cast(MaskInput, masks)]
        return self._stream(_paired(images, masks), question)

    def _stream(
        self, pairs: Iterable[tuple[ImageInput | Photo, MaskInput | PhotoMasks | None]], question: Question
    ) -> Iterator[tuple[ImageInput | Photo, Result | ImageError]]:
        for number, (image, masks) in enumerate(pairs, start=1):
            outcome: Result | ImageError
            try:
                photo = read_numbered(image, number, self.limits)
                try:
                    outcome = self._segment(photo, question, masks)
                except (MemoryError, torch.OutOfMemoryError):
                    outcome = ImageError(photo.name, "does not fit into memory with these words; make it smaller")
            except ImageError as error:
                outcome = error
            yield image, outcome

    def _prepare(
        self, words: Words, task: str, background: bool, min_score: float | None, masks_given: bool
    ) -> Question:
        known = known_task(task)
        if self.augmented and (task != "semantic" or masks_given):
            raise ValueError("several looks at a photo are averaged pixel by pixel: only the semantic task has that")
        if self.tiles is not None:
            self._check_tiled(task, masks_given)
        if isinstance(self.model.system.generator, GivenMasks) and not masks_given:
            raise ValueError(f"{self.model.name} draws no masks of its own: give the photos' masks (masks=, --masks)")
        least = least_score(task, min_score, masks_given)
        vocabulary = Vocabulary.parse(words, background=background)
        if not masks_given:
            check_things(task, vocabulary)
        return Question(vocabulary, self._banks.of(vocabulary, self._bank), known, least, masks_given)

    def _check_tiled(self, task: str, masks_given: bool) -> None:
        if task == "instance":
            raise ValueError(
                "instances may overlap, and are not joined across tiles: take the panoptic task, or no tiles"
            )
        if masks_given:
            raise ValueError("given masks are of the whole photo, which tiles cut: leave out one of them")
        outputs = self.model.outputs
        if task == "semantic" and (outputs.least_cover > 0 or outputs.paint_threshold is not None):
            raise ValueError(
                f"{self.model.name}: semantic tiles need scores at every pixel, but this model leaves pixels out"
            )

    @torch.inference_mode()
    def _bank(self, vocabulary: Vocabulary) -> TextBank:
        """The encoded vocabulary on the model's device."""
        return self.model.text_bank(vocabulary, cache_folder() if self.keeps_words else None).to(self.device)

    def prepare(
        self, words: Words, task: str = "semantic", *, background: bool = False, min_score: float | None = None
    ) -> Question:
        """What `together` asks about a photo: the words are read and encoded. The arguments are those of a call."""
        return self._prepare(words, task, background, min_score, masks_given=False)

    def size_on_canvas(self, photo: Photo) -> Size:
        """Photos that agree in it may be segmented `together`."""
        return self.model.canvas.fit(photo.size_hw)

    @torch.inference_mode()
    def together(self, photos: Sequence[Photo], questions: Sequence[Question]) -> list[Result]:
        """Several photos in one pass, each with a question of its own.

        They must have one size on the canvas, so that none is padded for another and each outcome is what it would be
        alone. The encoder sees all of them at once; what follows it, those that share a vocabulary.
        """
        if len(photos) == 1 or self.skip_decided or self.augmented or self.tiles is not None:
            return [self._segment(photo, question, None) for photo, question in zip(photos, questions, strict=True)]
        if len({self.size_on_canvas(photo) for photo in photos}) > 1:
            raise ValueError("photos of several sizes on the canvas cannot be segmented together")
        images, system = self.model.canvas(photos).to(self.device), self.model.system
        features = system.encoder(images) if system.encoder is not None else None
        of_words: dict[Vocabulary, list[int]] = {}
        for row, question in enumerate(questions):
            of_words.setdefault(question.vocabulary, []).append(row)
        results: dict[int, Result] = {}
        for rows in of_words.values():
            own = images.rows(rows)
            seen = None if features is None else features.rows(rows)
            proposals, scores = system.read(own, seen, questions[rows[0]].bank)
            for place, row in enumerate(rows):
                scored = _scored_row(proposals, scores, place)
                found = self._outcome(scored, questions[row], _frame(own.rows([place])), alone=True)
                results[row] = self._result(found, photos[row], questions[row])
        return [results[row] for row in range(len(photos))]

    def _result(
        self, prediction: Prediction, photo: Photo, question: Question, mask_ids: Sequence[int] | None = None
    ) -> Result:
        if photo.blank is not None:
            prediction = postprocess.without_blank(prediction, photo.blank)
        return make_result(
            prediction,
            question.vocabulary,
            photo.rgb,
            photo.name,
            model=self.model.name,
            source=photo.source,
            min_score=question.least,
            mask_ids=mask_ids,
        )

    @torch.inference_mode()
    def _segment(self, photo: Photo, question: Question, masks: MaskInput | PhotoMasks | None) -> Result:
        ids = None
        if question.masks_given:
            given = read_masks(cast(MaskInput, masks), photo, self.limits)
            prediction, ids = self._named(self.model.canvas([photo]), given, question), given.ids
        elif self.augmented:
            prediction = self._found_by_looks(photo, question)
        elif self.tiles is not None and self.tiles.cuts(photo.size_hw):
            prediction = self._found_in_tiles(photo, question, self.tiles)
        else:
            prediction = self._found(self.model.canvas([photo]).to(self.device), question)
        return self._result(prediction, photo, question, ids)

    @torch.inference_mode()
    def predict(self, image: ImageInput | Photo, words: Words, tasks: Sequence[Task]) -> dict[Task, Prediction]:
        """Several kinds of outcome of one picture from one look at it, with nothing left out: for measuring.

        With several tasks mask logits are resized before they become probabilities, for the semantic outcome too, as
        the published settings with all outputs do.
        """
        questions = [self._prepare(words, task, False, None, masks_given=False) for task in tasks]
        photo = read_image(image, self.limits)
        if self.augmented:
            return {question.task: self._found_by_looks(photo, question) for question in questions}
        images = self.model.canvas([photo]).to(self.device)
        frame = _frame(images)
        outcomes: dict[Task, Prediction] = {}
        scored = None
        for question in questions:
            if scored is None or self.skip_decided:
                scored = self._scored(images, question, frame)
            outcomes[question.task] = self._outcome(scored, question, frame, alone=len(questions) == 1)
        return outcomes

    @torch.inference_mode()
    def classify_masks(self, image: ImageInput | Photo, words: Words, masks: MaskInput | PhotoMasks) -> Tensor:
        """[Q, K] on the CPU: how given masks of a picture score against the words, nothing left out.

        masks: what `read_masks` takes.
        """
        photo = read_image(image, self.limits)
        hard = torch.from_numpy(read_masks(masks, photo, self.limits).masks)
        question = self._prepare(words, "instance", False, None, masks_given=True)
        images = with_given_masks(self.model.canvas([photo]), [hard]).to(self.device)
        return self._naming(images, question.bank)[1].class_probs[0].cpu()

    def _found(self, images: Images, question: Question) -> Prediction:
        """What the masks of the model's own generator show."""
        frame = _frame(images)
        return self._outcome(self._scored(images, question, frame), question, frame, alone=True)

    def _found_by_looks(self, photo: Photo, question: Question) -> Prediction:
        """The classes of the pixels by the mean of several looks."""
        views = []
        for images, mirrored in looks(self.model.canvas, photo):
            images = images.to(self.device)
            frame = _frame(images)
            scored = self._scored(images, question, frame)
            views.append(postprocess.SemanticView(scored.mask_logits, scored.class_probs, frame, mirrored))
        return postprocess.semantic_mean(views, self.model.outputs.sigmoid_at or "canvas")

    def _found_in_tiles(self, photo: Photo, question: Question, tiles: Tiling) -> Prediction:
        """What the tiles of a photo show, put together."""

        sigmoid_at = self.model.outputs.sigmoid_at

        def seen(rows: Span, columns: Span) -> tuple[Scored, Frame]:
            images = self.model.canvas([photo.part(rows, columns)]).to(self.device)
            frame = _frame(images)
            return self._scored(images, question, frame), frame

        def scores(rows: Span, columns: Span) -> postprocess.SemanticView:
            scored, frame = seen(rows, columns)
            return postprocess.SemanticView(scored.mask_logits, scored.class_probs, frame)

        def segments(rows: Span, columns: Span) -> tiling.PanopticView:
            scored, frame = seen(rows, columns)
            view = postprocess.SemanticView(scored.mask_logits, scored.class_probs, frame)
            # On the canvas: a large tile has more pixels than any use.
            found = self._outcome(scored, question, replace(frame, output_hw=frame.picture_hw), alone=True)
            threshold = self.model.outputs.object_mask_threshold
            return tiling.PanopticView(tiling.with_void(view, scored.void_prob, threshold), cast(PanopticMap, found))

        if question.task == "semantic":
            return tiling.semantic(photo.size_hw, tiles, scores, sigmoid_at or "canvas")
        is_thing = things(question.vocabulary, torch.device("cpu")).tolist()
        return tiling.panoptic(photo.size_hw, tiles, segments, is_thing, sigmoid_at or "output")

    def _outcome(self, scored: Scored, question: Question, frame: Frame, alone: bool) -> Prediction:
        return prediction_of(scored, question.vocabulary, question.task, frame, self.model.outputs, alone)

    def _named(self, images: Images, given: PhotoMasks, question: Question) -> Prediction:
        """What the given masks show. They are judged on the canvas, and come back on the photo's own grid."""
        hard = torch.from_numpy(given.masks)
        _, scores = self._naming(with_given_masks(images, [hard]).to(self.device), question.bank)
        hard, class_probs, void_prob = hard.to(self.device), scores.class_probs[0], scores.void_prob[0]
        size_hw = images.original_hw[0]
        frame = Frame(size_hw, size_hw, size_hw)
        if question.task == "semantic":
            return postprocess.semantic(hard, class_probs, frame, least_cover=0.5)
        if question.task == "instance":
            return postprocess.best_class_each(hard, class_probs, void_prob, frame)
        # Somebody wants each of these masks: one that better ones cover in part keeps the rest, however little.
        is_thing = things(question.vocabulary, self.device)
        return postprocess.panoptic_by_score(
            hard, class_probs, void_prob, is_thing, frame, overlap_threshold=0.0, part_share=None
        )

    def _scored(self, images: Images, question: Question, frame: Frame) -> Scored:
        """Of all proposals, or of those that can matter."""
        if not self.skip_decided:
            proposals, scores = self.model.system(images, question.bank)
            return _scored_row(proposals, scores, 0)
        selector, outputs = Selector(self.model.system, images, question.bank), self.model.outputs
        if question.task == "semantic":
            few = for_semantic(selector, frame)
        elif question.task == "panoptic":
            few = for_panoptic(selector, outputs.object_mask_threshold)
        else:
            few = for_instances(selector, outputs.top_instances)
        log.info("%d of %d proposals computed", len(few.computed), few.count)
        return Scored(few.mask_logits, few.class_probs, few.void_prob, told_from_void=True)


@dataclass(frozen=True)
class Question:
    """What is asked about every picture of a call."""

    vocabulary: Vocabulary
    bank: TextBank
    task: Task
    least: float
    """The score a segment needs."""
    masks_given: bool


def _scored_row(proposals: Proposals, scores: Scores, row: int) -> Scored:
    """Of one picture of a batch."""
    told = proposals.class_logits is not None
    return Scored(proposals.mask_logits[row], scores.class_probs[row], scores.void_prob[row], told)


def _frame(images: Images) -> Frame:
    """Of a batch of one."""
    return Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])


def naming_system(system: System) -> System:
    """The parts of a system that read masks, behind masks that come with the pictures. It shares their modules."""
    embedder = GrownUntilSeen(system.embedder)
    return System(system.encoder, GivenMasks(), embedder, system.scorer, RegionOnly()).train(system.training)


def _paired(
    images: Iterable[ImageInput | Photo], masks: Iterable[MaskInput | PhotoMasks] | None
) -> Iterator[tuple[ImageInput | Photo, MaskInput | PhotoMasks | None]]:
    """Each picture with its own masks."""
    if masks is None:
        return ((image, None) for image in images)
    if isinstance(masks, str | os.PathLike):
        if Path(masks).suffix.lower() in OF_MANY_PHOTOS:
            return ((image, masks) for image in images)
        raise ValueError(f"masks={os.fspath(masks)!r} is one file, but there are many pictures: give one for each")
    if isinstance(images, Sized) and isinstance(masks, Sized) and len(images) != len(masks):
        raise ValueError(f"there are {len(images)} pictures, but masks for {len(masks)}")
    return _zipped(images, iter(masks))


def _zipped(
    images: Iterable[ImageInput | Photo], masks: Iterator[MaskInput | PhotoMasks]
) -> Iterator[tuple[ImageInput | Photo, MaskInput | PhotoMasks]]:
    for number, image in enumerate(images, start=1):
        try:
            own = next(masks)
        except StopIteration:
            raise ValueError(f"there are masks for {number - 1} pictures only") from None
        yield image, own


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

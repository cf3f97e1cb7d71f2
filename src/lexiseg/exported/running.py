"""The front door of an exported model: the same questions and the same results as those of `Segmenter`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from lexiseg.asking import Encoded, Words, check_things, is_one, known_task, least_score, read_numbered
from lexiseg.exported.description import KEY, Description, ExportedFileError, TextFile, read_description
from lexiseg.exported.sessions import open_session
from lexiseg.exported.words import ExportedTextEncoder, text_encoder_beside
from lexiseg.geometry import TowerView
from lexiseg.images import Canvas, ImageError, ImageInput, ImageLimits, Photo, read_image
from lexiseg.outcomes import Scored, prediction_of
from lexiseg.postprocess import Frame, without_blank
from lexiseg.results import Result, Task, make_result
from lexiseg.text_bank import cache_folder, encode_vocabulary, text_bank
from lexiseg.types import Images, Prediction, Size
from lexiseg.vocabulary import Vocabulary

Feed = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Graph:
    """One file."""

    path: Path
    description: Description
    session: onnxruntime.InferenceSession

    @classmethod
    def open(cls, path: Path, device: str = "auto", threads: int | None = None) -> Graph:
        session = open_session(path, device, threads)
        description = read_description(session.get_modelmeta().custom_metadata_map, KEY, Description, path)
        wanted = {entry.name for entry in session.get_inputs()}
        given = {"pixels", "picture_hw"} | (VIEW_INPUTS if description.view else set())
        words = wanted - given
        told = given <= wanted and words <= WORD_INPUTS and bool(words) == (description.classes is None)
        if not told or {entry.name for entry in session.get_outputs()} != set(OUTPUTS):
            raise ExportedFileError(f"{path}: its inputs are not those its description tells of; export it again")
        return cls(path, description, session)

    @property
    def canvas(self) -> Canvas:
        return Canvas(**self.description.canvas.model_dump(), within=self.description.size_hw)

    @property
    def view(self) -> TowerView | None:
        view = self.description.view
        return None if view is None else TowerView("short", view.short_edge, view.multiple, view.size_hw)

    def run(self, images: Images, words: Feed) -> Scored:
        """A batch of one, and the inputs that are words."""
        outputs = self.session.run(OUTPUTS, {**picture_feed(images, self.view, self.description), **words})
        masks, class_probs, void_prob = (torch.from_numpy(output[0]) for output in outputs)
        return Scored(masks, class_probs, void_prob, self.description.told_from_void)


VIEW_INPUTS = {"view", "view_hw", "rows", "columns"}
WORD_INPUTS = {"region", "query", "class_of", "seen"}
OUTPUTS = ["mask_logits", "class_probs", "void_prob"]


def picture_feed(images: Images, view: TowerView | None, description: Description) -> Feed:
    """The inputs of a graph that are made of the picture."""
    feed = {"pixels": images.pixels.numpy(), "picture_hw": np.array(images.sizes_hw[0], np.int64)}
    if view is None or description.view is None:
        return feed
    seen = view(images)
    masks_hw, grid_hw = (
        _divided(canvas_hw, stride)
        for canvas_hw, stride in (
            (images.canvas_hw, description.mask_stride),
            (seen.canvas_hw, description.view.stride),
        )
    )
    rows, columns = view.maps(masks_hw, images, seen, grid_hw)
    return feed | {
        "view": seen.pixels.numpy(),
        "view_hw": np.array(seen.sizes_hw[0], np.int64),
        "rows": rows[0].numpy(),
        "columns": columns[0].numpy(),
    }


def _divided(size_hw: Size, stride: int) -> Size:
    return (-(-size_hw[0] // stride), -(-size_hw[1] // stride))


@dataclass(frozen=True)
class ExportedQuestion:
    """What is asked about every picture of a call."""

    vocabulary: Vocabulary
    feed: Feed
    task: Task
    least: float


class ExportedSegmenter:
    """An exported model ready to be asked.

        segmenter = ExportedSegmenter.load("street.onnx")
        result = segmenter("street.jpg", "sky, road | street, car")     # without words where they are in the file

    Files for several sizes answer together: a photo goes to the one that keeps most of it, then to the smallest.
    """

    def __init__(self, graphs: Sequence[Graph], limits: ImageLimits | None = None) -> None:
        if not graphs:
            raise ValueError("an exported model has at least one file")
        self.graphs = tuple(graphs)
        self.limits = limits or ImageLimits()
        self.keeps_words = True
        """Whether encoded words are kept on the disk."""
        own = {(graph.description.size_hw, graph.description.view, graph.description.check) for graph in graphs}
        shared = {
            graph.description.model_copy(update={"size_hw": None, "view": None, "check": None}).model_dump_json()
            for graph in graphs
        }
        if len(shared) > 1:
            names = ", ".join(graph.path.name for graph in graphs)
            raise ExportedFileError(f"{names}: of different models or words; keep each model's files in one folder")
        if len(own) < len(graphs):
            raise ExportedFileError(f"{graphs[0].path.parent}: two files for one size; remove one of them")
        self._text = cache(self._load_text)
        self._feeds = Encoded[Feed]()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str = "auto",
        limits: ImageLimits | None = None,
        *,
        threads: int | None = None,
    ) -> ExportedSegmenter:
        """NAME.onnx; where there is none, NAME-512x768.onnx and all others of that kind beside it.

        device: auto, cpu or cuda. threads: of one run; None for as many as PyTorch takes here. Raises
        ExportedFileError.
        """
        files = files_of(Path(path))
        return cls([Graph.open(file, device, threads) for file in files], limits)

    @property
    def description(self) -> Description:
        """What the files have in common; size and view are those of the first."""
        return self.graphs[0].description

    @property
    def name(self) -> str:
        """Of the model it was made of."""
        return self.description.model

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The words that are in the file; None where each question brings its own."""
        return self.description.vocabulary

    def __call__(
        self,
        images: ImageInput | Photo | Iterable[ImageInput | Photo],
        words: Words | None = None,
        task: Task = "semantic",
        *,
        background: bool = False,
        min_score: float | None = None,
    ) -> Result | list[Result]:
        """One result for one picture, a list for many. The arguments are those of `Segmenter`; words may be left out
        where they are in the file."""
        question = self.prepare(words, task, background=background, min_score=min_score)
        if is_one(images):
            return self._segment(read_image(cast(ImageInput | Photo, images), self.limits), question)
        many = cast(Iterable[ImageInput | Photo], images)
        return [
            self._segment(read_numbered(image, number, self.limits), question)
            for number, image in enumerate(many, start=1)
        ]

    def stream(
        self,
        images: Iterable[ImageInput | Photo],
        words: Words | None = None,
        task: Task = "semantic",
        *,
        background: bool = False,
        min_score: float | None = None,
    ) -> Iterator[tuple[ImageInput | Photo, Result | ImageError]]:
        """Each picture with its result, or with the error that says why it has none: the rest goes on."""
        question = self.prepare(words, task, background=background, min_score=min_score)
        return self._stream([cast(ImageInput, images)] if is_one(images) else images, question)

    def _stream(
        self, images: Iterable[ImageInput | Photo], question: ExportedQuestion
    ) -> Iterator[tuple[ImageInput | Photo, Result | ImageError]]:
        for number, image in enumerate(images, start=1):
            try:
                yield image, self._segment(read_numbered(image, number, self.limits), question)
            except ImageError as error:
                yield image, error

    def prepare(
        self, words: Words | None, task: str = "semantic", *, background: bool = False, min_score: float | None = None
    ) -> ExportedQuestion:
        """The words are read and encoded; mistakes in a question are told here."""
        known = known_task(task)
        least = least_score(task, min_score)
        vocabulary = self._words(words, background)
        check_things(task, vocabulary)
        return ExportedQuestion(vocabulary, self._feeds.of(vocabulary, self._feed), known, least)

    def predict(self, image: ImageInput | Photo, words: Words | None, tasks: Sequence[Task]) -> dict[Task, Prediction]:
        """Several kinds of outcome of one picture from one look at it: see `Segmenter.predict`."""
        questions = [self.prepare(words, task) for task in tasks]
        photo = read_image(image, self.limits)
        scored, frame = self._scored(photo, questions[0])
        return {
            question.task: prediction_of(
                scored, question.vocabulary, question.task, frame, self.description.outputs, alone=len(tasks) == 1
            )
            for question in questions
        }

    def graph_for(self, size_hw: Size) -> Graph:
        """The file for a photo of that size."""

        def merit(graph: Graph) -> tuple[int, int]:
            height, _ = graph.canvas.picture_hw(size_hw)
            own = graph.description.size_hw
            return height, 0 if own is None else -own[0] * own[1]

        return max(self.graphs, key=merit)

    def _words(self, words: Words | None, background: bool) -> Vocabulary:
        own = self.vocabulary
        if own is None:
            if words is None:
                raise ValueError(f"{self.name}: this file has no words of its own: give them (--classes)")
            return Vocabulary.parse(words, background=background)
        if background or (words is not None and Vocabulary.parse(words) != own):
            shown = ", ".join(own.names[:5]) + (", ..." if len(own) > 5 else "")
            raise ValueError(
                f"{self.graphs[0].path.name}: its words are fixed ({shown}): leave out yours, or export "
                "without --classes"
            )
        return own

    def _feed(self, vocabulary: Vocabulary) -> Feed:
        """The inputs that are words."""
        known = self.description
        if known.classes is not None:
            return {}
        assert known.text is not None  # the description was checked for it
        kept = cache_folder() if self.keeps_words else None
        text = known.text
        bank = text_bank(
            vocabulary,
            known.templates,
            lambda: self._text(text),
            known.training_phrases,
            fingerprint=f"exported {text.sha256}",
            cache=kept,
            mix_templates=known.mix_templates,
        )
        query = bank.query
        if known.query_templates is not None:
            own = known.query_text or text
            query = encode_vocabulary(
                vocabulary,
                known.query_templates,
                lambda: self._text(own),
                fingerprint=f"exported {own.sha256}",
                cache=kept,
            )
        inputs: dict[str, Tensor] = {
            "region": bank.region,
            "query": query,
            "class_of": bank.class_of,
            "seen": bank.seen,
        }
        asked = {entry.name for entry in self.graphs[0].session.get_inputs()}
        return {name: tensor.numpy() for name, tensor in inputs.items() if name in asked}

    def _load_text(self, file: TextFile) -> ExportedTextEncoder:
        return text_encoder_beside(self.graphs[0].path, file)

    def _scored(self, photo: Photo, question: ExportedQuestion) -> tuple[Scored, Frame]:
        graph = self.graph_for(photo.size_hw)
        images = graph.canvas([photo])
        try:
            scored = graph.run(images, question.feed)
        except Exception as error:  # of onnxruntime, which has no class of its own for "out of memory"
            reason = " ".join(str(error).split())[:200]
            raise ImageError(photo.name, f"onnxruntime could not run {graph.path.name} on it ({reason})") from error
        return scored, Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])

    @torch.inference_mode()
    def _segment(self, photo: Photo, question: ExportedQuestion) -> Result:
        scored, frame = self._scored(photo, question)
        found = prediction_of(scored, question.vocabulary, question.task, frame, self.description.outputs)
        if photo.blank is not None:
            found = without_blank(found, photo.blank)
        return make_result(
            found,
            question.vocabulary,
            photo.rgb,
            photo.name,
            model=self.name,
            source=photo.source,
            min_score=question.least,
        )


def files_of(path: Path) -> list[Path]:
    """The files that `path` stands for."""
    if path.is_file():
        return [path]
    found = sorted(
        file for file in path.parent.glob(f"{path.stem}-*.onnx") if _is_size(file.stem.removeprefix(f"{path.stem}-"))
    )
    if not found:
        raise ExportedFileError(
            f"{path}: there is no such file; make it with: lexiseg export --model NAME --out {path}"
        )
    return found


def sized_file(path: Path, size_hw: Size) -> Path:
    """Where the file for one of several sizes lies."""
    return path.with_name(f"{path.stem}-{size_hw[0]}x{size_hw[1]}{path.suffix}")


def _is_size(text: str) -> bool:
    height, _, width = text.partition("x")
    return height.isdigit() and width.isdigit()

"""The run of a batch: what is missing is read ahead of the model, segmented and written; then all is merged."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import lexiseg
from lexiseg.bulk.folder import FORMATS, MERGED, BatchFolder, Format
from lexiseg.bulk.inputs import BatchError, Input, inputs_of
from lexiseg.bulk.merging import merge
from lexiseg.evaluation import candidate_of
from lexiseg.images import ImageError, Photo
from lexiseg.results import Task
from lexiseg.segmenter import Question, Segmenter, Words
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.model_folder import Model

_AHEAD = 2
"""Photos that are read while another one is segmented; each takes memory."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch."""

    folder: Path
    photos: int
    """All of the input."""
    new: int
    """Those that this call has segmented."""
    failures: dict[str, str]
    """Photo -> what is wrong with it; the same call tries them again."""
    merged: Path | None
    """The COCO file, in that format."""


def run_batch(
    segmenter: Segmenter,
    photos: str | os.PathLike[str],
    words: Words,
    out: str | os.PathLike[str],
    *,
    task: Task = "semantic",
    format: Format = "coco",
    background: bool = False,
    min_score: float | None = None,
    progress: bool | None = None,
) -> Outcome:
    """Segments all photos into `out`; the same call goes on where an earlier one was stopped, by whatever.

    photos: see `inputs.inputs_of`. words, task, background, min_score: as for a call of the segmenter. progress: a bar
    with the rate and the time left; None where somebody is looking. A bad photo is written down and the rest goes on.
    Raises BatchError, and what the segmenter raises about words and task; OSError where `out` cannot be written.
    """
    if format not in FORMATS:
        raise BatchError(f"no format is called {format!r}: choose one of {', '.join(FORMATS)}")
    out = Path(out)
    vocabulary = Vocabulary.parse(words, background=background)
    with inputs_of(photos, segmenter.limits, out) as inputs:
        question = segmenter.prepare(vocabulary, task, min_score=min_score)  # mistakes are told before a folder is made
        with BatchFolder(out, format, _settings(segmenter, question)) as folder:
            missing = {photo.name: photo for photo in inputs if not folder.is_finished(photo)}
            if missing:  # else it would be older than what it is made of
                (out / MERGED).unlink(missing_ok=True)
            finished, hidden = len(inputs) - len(missing), None if progress is None else not progress
            with tqdm(total=len(inputs), initial=finished, desc="segmenting", unit="photo", disable=hidden) as bar:
                failures = _segment(segmenter, question, missing, folder, bar)
            done = [photo.name for photo in inputs if photo.name not in failures]
            merged = merge(folder, done, vocabulary) if format == "coco" else None
    return Outcome(out, len(inputs), len(missing) - len(failures), failures, merged)


def _segment(
    segmenter: Segmenter, question: Question, photos: Mapping[str, Input], folder: BatchFolder, bar: tqdm[Any]
) -> dict[str, str]:
    """Writes the results of the photos; what failed, with its reason."""
    failures: dict[str, str] = {}
    with folder.failures() as list_failure, closing(_read_ahead(photos.values())) as readings:

        def failed(name: str, problem: str) -> None:
            failures[name] = problem
            list_failure(name, problem)
            bar.update()

        def good() -> Iterator[Photo]:
            for photo, reading in readings:
                if isinstance(reading, ImageError):
                    failed(photo.name, reading.problem)
                else:
                    yield reading

        stream = segmenter.stream(good(), question.vocabulary, question.task, min_score=question.least)
        for photo, result in stream:
            assert isinstance(photo, Photo)  # that is what `good` gives
            if isinstance(result, ImageError):
                failed(photo.name, result.problem)
            else:
                folder.write(photos[photo.name], result)
                bar.update()
    return failures


def _read_ahead(photos: Iterable[Input]) -> Generator[tuple[Input, Photo | ImageError]]:
    """The photos in their order, read by a thread of its own while the caller is at work on earlier ones."""
    with ThreadPoolExecutor(1, "lexiseg-reader") as reader:
        waiting: deque[tuple[Input, Future[Photo | ImageError]]] = deque()
        try:
            for photo in photos:
                waiting.append((photo, reader.submit(_read, photo)))
                if len(waiting) > _AHEAD:
                    first, reading = waiting.popleft()
                    yield first, reading.result()
            while waiting:
                first, reading = waiting.popleft()
                yield first, reading.result()
        finally:
            for _, reading in waiting:
                reading.cancel()


def _read(photo: Input) -> Photo | ImageError:
    try:
        return photo.read()
    except ImageError as error:
        return error
    except MemoryError:
        return ImageError(photo.name, "does not fit into memory; make it smaller")


def _settings(segmenter: Segmenter, question: Question) -> dict[str, Any]:
    """All that decides about a result, beside the photo."""
    model, vocabulary = segmenter.model, question.vocabulary
    return {
        "words": [[list(entry.phrases), entry.is_thing, entry.color] for entry in vocabulary.classes],
        "background": vocabulary.background,
        "task": question.task,
        "min_score": question.least,
        "model": model.name,
        "weights": candidate_of(segmenter).fingerprint,
        "rules of the model": hashlib.sha256(_rules(model).encode()).hexdigest(),
        "skip_decided": segmenter.skip_decided,
        "tiles": segmenter.tiles and asdict(segmenter.tiles),
        "version of lexiseg": lexiseg.__version__,
    }


def _rules(model: Model) -> str:
    """What the weights do not tell: sizes, thresholds, the weight of one score against another."""
    query = model.query and (model.query.fingerprint, model.query.templates)
    parts = [
        (name, key, value)
        for name, part in model.system.named_modules()
        for key, value in sorted(vars(part).items())
        if isinstance(value, int | float | str)
    ]
    words = (model.templates, model.mix_templates, model.training_phrases, model.own_classes, query)
    return repr((model.canvas, model.outputs, words, parts))

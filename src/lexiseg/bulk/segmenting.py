"""What is done with the photos of a batch: read ahead of the model, segmented, written; by one process or many."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

from lexiseg.bulk.folder import BatchFolder
from lexiseg.bulk.inputs import Input
from lexiseg.images import ImageError, Photo
from lexiseg.results import Result
from lexiseg.segmenter import Question, Segmenter

_AHEAD = 2
"""Photos that are read while another one is segmented; each takes memory."""


@dataclass(frozen=True)
class Failure:
    """Why a photo has no results."""

    problem: str
    unexpected: str | None = None
    """The type of the exception, where it is no fault of the photo that anybody knows of."""


def segment_photos(
    segmenter: Segmenter, question: Question, photos: Iterable[Input], folder: BatchFolder
) -> Generator[tuple[Input, Failure | None]]:
    """Writes the results of the photos, in their order; each with what was wrong with it, or None.

    Raises OSError where they cannot be written.
    """
    with closing(_read_ahead(photos)) as readings:
        for photo, reading in readings:
            found = reading if isinstance(reading, Failure) else _results(segmenter, question, reading)
            if isinstance(found, Failure):
                yield photo, found
            else:
                folder.write(photo, found)
                yield photo, None


def _results(segmenter: Segmenter, question: Question, photo: Photo) -> Result | Failure:
    stream = segmenter.stream([photo], question.vocabulary, question.task, min_score=question.least)
    try:
        _, found = next(iter(stream))
    except Exception as error:  # a model may fail on a photo in ways nobody has thought of
        text = " ".join(str(error).split())[:300]
        return Failure(f"the model failed ({type(error).__name__}: {text})", type(error).__name__)
    return Failure(found.problem) if isinstance(found, ImageError) else found


def _read_ahead(photos: Iterable[Input]) -> Generator[tuple[Input, Photo | Failure]]:
    """The photos in their order, read by a thread of its own while the caller is at work on earlier ones."""
    with ThreadPoolExecutor(1, "lexiseg-reader") as reader:
        waiting: deque[tuple[Input, Future[Photo | Failure]]] = deque()
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


def _read(photo: Input) -> Photo | Failure:
    try:
        return photo.read()
    except ImageError as error:
        return Failure(error.problem)
    except MemoryError:
        return Failure("does not fit into memory; make it smaller")

"""A batch shared among processes by Ray Data, on this machine or on a cluster.

Photos are its rows, and every worker writes what it finds: the records are the checkpoint, with Ray as without. A photo
given out again after the death of a worker is passed over where its record is there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from lexiseg.bulk.folder import BatchFolder
from lexiseg.bulk.inputs import BatchError, Input
from lexiseg.bulk.segmenting import Failure, segment_photos
from lexiseg.bulk.settings import settings_of
from lexiseg.cluster import Cluster, ClusterError, Lost, spread
from lexiseg.segmenter import Question, Segmenter

_TOGETHER = 8
"""Photos that a worker is given at once, and that a death may delay."""


@dataclass(frozen=True)
class Workers:
    """Who computes a batch: Workers(partial(Segmenter.from_pretrained, "street-tiny"), Cluster(workers=4))."""

    load: Callable[[], Segmenter]
    """Called once in every process. It is sent there: a function of a module, or `functools.partial` of one with names
    and numbers."""
    cluster: Cluster = field(default_factory=Cluster)


def share_photos(
    workers: Workers, question: Question, photos: Sequence[Input], folder: BatchFolder
) -> Generator[tuple[Input, Failure | None]]:
    """As `segment_photos`, by all workers and in the order in which they come to an end. Raises BatchError."""
    asked = (question.vocabulary, question.task, question.least)
    seen = (folder.path.absolute(), folder.settings)
    together = max(1, min(_TOGETHER, len(photos) // 16))  # few photos shall not wait for one worker
    try:
        with closing(spread(photos, _Worker, (workers.load, asked, seen), workers.cluster, together)) as outcomes:
            for number, outcome in outcomes:
                yield photos[number], _LOST if isinstance(outcome, Lost) else outcome
    except ClusterError as error:
        raise BatchError(str(error)) from None


_LOST = Failure("the process ended whenever it was at this photo; it may need more memory than there is")


class _Worker:
    """One process of the batch."""

    def __init__(self, load: Callable[[], Segmenter], asked: tuple[Any, ...], seen: tuple[Any, ...]) -> None:
        self.segmenter = load()
        vocabulary, task, least = asked
        self.question = self.segmenter.prepare(vocabulary, task, min_score=least)
        path, settings = seen
        self.folder = BatchFolder(path, settings["format"], settings_of(self.segmenter, self.question))
        self.folder.check_shared()

    def __call__(self, photos: Sequence[Input]) -> list[Failure | None]:
        missing = [photo for photo in photos if not self.folder.is_finished(photo)]
        outcomes = segment_photos(self.segmenter, self.question, missing, self.folder)
        failures = {photo.name: failure for photo, failure in outcomes}
        return [failures.get(photo.name) for photo in photos]

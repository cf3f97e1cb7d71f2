"""The queue before the models: photos that fit together go through in one pass."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from lexiseg.images import Photo
from lexiseg.results import Result
from lexiseg.segmenter import Question, Segmenter

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Job:
    """A photo that waits for its result."""

    segmenter: Segmenter
    photo: Photo
    question: Question
    result: Future[Result] = field(default_factory=Future)

    def fits(self, other: Job) -> bool:
        """Whether both can go through in one pass and come out as they would alone."""
        return self.segmenter is other.segmenter and self.segmenter.size_on_canvas(
            self.photo
        ) == other.segmenter.size_on_canvas(other.photo)


@dataclass(frozen=True)
class Pass:
    """What a worker has done, for those who count."""

    photos: int
    seconds: float


class Batcher:
    """Workers, each a thread that takes the oldest job and those that fit to it.

    Nothing waits for company: a batch is what has gathered while the workers were busy, and it leaves its share to
    workers without work. threads: of the processor, for each worker. Jobs in the queue are bounded by who submits them.
    """

    def __init__(
        self,
        workers: int = 1,
        max_batch: int = 8,
        threads: int = 1,
        on_pass: Callable[[Pass], None] = lambda done: None,
    ) -> None:
        self.max_batch = max_batch
        self.threads = threads
        self._on_pass = on_pass
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"lexiseg-worker-{number}", daemon=True)
            for number in range(1, workers + 1)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, segmenter: Segmenter, photo: Photo, question: Question) -> Future[Result]:
        """The result to come. Cancelling it takes the job out of the queue, if no worker has it yet."""
        job = Job(segmenter, photo, question)
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._waiting.append(job)
            self._changed.notify()
        job.result.add_done_callback(lambda result: self._forget(job) if result.cancelled() else None)
        return job.result

    def __len__(self) -> int:
        """Jobs that no worker has taken."""
        return len(self._waiting)

    def close(self) -> None:
        """The workers finish what is waiting, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _forget(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        torch.set_num_threads(self.threads)  # counts for the thread that says so
        while (batch := self._take()) is not None:
            if batch:  # else everybody has left meanwhile
                started = time.perf_counter()
                _answer(batch)
                self._on_pass(Pass(len(batch), time.perf_counter() - started))
            del batch  # photos are not kept while the worker waits for more

    def _take(self) -> list[Job] | None:
        """The next jobs, the oldest first; None when there will be no more."""
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._closed:
                self._changed.wait()
            sharing, self._idle = self._idle, self._idle - 1
            if not self._waiting:
                return None
            fitting = [job for job in self._waiting if job.fits(self._waiting[0])]
            batch = fitting[: min(self.max_batch, -(-len(fitting) // sharing))]
            for job in batch:
                self._waiting.remove(job)
        return [job for job in batch if job.result.set_running_or_notify_cancel()]


def _answer(batch: list[Job]) -> None:
    """Sets the result of each job, or the error that it has."""
    try:
        segmenter = batch[0].segmenter
        results = segmenter.together([job.photo for job in batch], [job.question for job in batch])
    except Exception as error:  # whatever it is, the client is told and the worker goes on
        if len(batch) == 1:
            batch[0].result.set_exception(error)
            return
        # One photo or too many at once? Alone each of them shows.
        log.warning("a batch of %d failed and is done one by one: %s", len(batch), error)
        for job in batch:
            _answer([job])
        return
    for job, result in zip(batch, results, strict=True):
        job.result.set_result(result)

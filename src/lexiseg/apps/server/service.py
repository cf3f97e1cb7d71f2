"""The work behind the API and the page alike: a place, a photo decoded, words read, a result within the time limit."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from lexiseg.apps.server.batching import Batcher, Pass
from lexiseg.apps.server.limits import Limits
from lexiseg.apps.server.metrics import Metrics
from lexiseg.apps.server.questions import Ask
from lexiseg.apps.server.refusals import Refusal
from lexiseg.images import ImageError, ImageTooLargeError, Photo, read_image
from lexiseg.results import Result
from lexiseg.segmenter import Question, Segmenter

_T = TypeVar("_T")

_LONGEST_WAIT = 60
"""Seconds, of Retry-After."""


class Service:
    """Models that are loaded, the queue before them, and the places of those who may wait.

    workers: passes at a time; None is one for each core on a CPU, each with one thread, since small operators gain
    little from more, and one on other devices. max_batch: photos of a pass; None is 2 on a CPU, where more only take
    more memory, and 8 on other devices. It lives in one event loop; `Batcher` and the pool have the threads.
    """

    def __init__(
        self,
        segmenters: Mapping[str, Segmenter],
        limits: Limits | None = None,
        workers: int | None = None,
        max_batch: int | None = None,
    ) -> None:
        self.segmenters = dict(segmenters)
        self.limits = limits or Limits()
        self.metrics = Metrics()
        on_cpu = all(segmenter.device.type == "cpu" for segmenter in self.segmenters.values())
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.workers = workers or (cores if on_cpu else 1)
        threads = max(1, cores // self.workers)
        self.batcher = Batcher(self.workers, max_batch or (2 if on_cpu else 8), threads, self._passed)
        self.metrics.count_waiting(lambda: len(self.batcher))
        self.closing = False
        self.taken = 0
        """Places."""
        self._photo_seconds = 1.0
        self._pool = ThreadPoolExecutor(max(2, cores), "lexiseg-pool", initializer=torch.set_num_threads, initargs=(1,))
        self._encoding = asyncio.Lock()
        for segmenter in self.segmenters.values():
            segmenter.keeps_words = False

    @property
    def models(self) -> tuple[str, ...]:
        """The names that may be asked for, the usual one first."""
        return tuple(self.segmenters)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Held from the head of a request to its answer; raises Refusal where there is none."""
        if self.closing:
            raise Refusal("closing", "the server is being stopped; try again in a while", retry_after=_LONGEST_WAIT)
        if self.taken >= self.limits.places:
            raise Refusal(
                "busy", f"all {self.limits.places} places are taken; try again later", retry_after=self.expected_wait()
            )
        self.taken += 1
        self.metrics.places_taken.set(self.taken)
        try:
            yield
        finally:
            self.taken -= 1
            self.metrics.places_taken.set(self.taken)

    def expected_wait(self) -> int:
        """Seconds until those who are here will have their answers, as far as one can tell."""
        return min(_LONGEST_WAIT, max(1, math.ceil(self.taken * self._photo_seconds / self.workers)))

    async def segment(self, ask: Ask) -> Result:
        """Cancelling it takes the photo out of the queue. The caller has a place and keeps the time."""
        segmenter = self.segmenters[ask.model]
        photo = await self.in_pool("decode", lambda: read_photo(ask.image, ask.name, self.limits))
        async with self._encoding:  # new words of one client at a time; known ones take no time
            question = await self.in_pool("words", lambda: _prepared(segmenter, ask))
        started = time.perf_counter()
        try:
            return await asyncio.wrap_future(self.batcher.submit(segmenter, photo, question))
        except (MemoryError, torch.OutOfMemoryError):
            raise Refusal(
                "too_many_pixels", f"{ask.name}: does not fit into memory with these words; make it smaller"
            ) from None
        finally:
            self.metrics.stage_seconds.labels("wait_and_segment").observe(time.perf_counter() - started)

    async def in_pool(self, stage: str, work: Callable[[], _T]) -> _T:
        """Work that takes a while, off the event loop, and counted as a stage."""
        started = time.perf_counter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self.metrics.stage_seconds.labels(stage).observe(time.perf_counter() - started)

    async def idle(self) -> None:
        """Returns when everybody who has a place has left it."""
        while self.taken:
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """The workers finish what they have, and end."""
        self.closing = True
        self.batcher.close()
        self._pool.shutdown()

    def _passed(self, done: Pass) -> None:
        self.metrics.passed(done)
        self._photo_seconds += 0.1 * (done.seconds / done.photos - self._photo_seconds)


def read_photo(image: bytes, name: str, limits: Limits) -> Photo:
    """The photo in the bytes of a file; raises Refusal."""
    try:
        return read_image(image, limits.image, name)
    except ImageTooLargeError as error:
        if len(image) > limits.max_bytes:
            raise Refusal("too_many_bytes", str(error)) from None
        most = f"{limits.max_pixels / 1e6:g} megapixels"
        raise Refusal(
            "too_many_pixels", f"{name}: this server takes photos of at most {most}; make it smaller"
        ) from None
    except ImageError as error:
        raise Refusal("wrong_photo", str(error)) from None


def _prepared(segmenter: Segmenter, ask: Ask) -> Question:
    try:
        return segmenter.prepare(ask.vocabulary, ask.task, min_score=ask.min_score)
    except ValueError as error:
        raise Refusal("wrong_field", str(error)) from None

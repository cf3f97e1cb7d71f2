"""The queue: what goes through together comes out as it would alone."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from lexiseg.apps.server.batching import Batcher, Pass
from lexiseg.images import Photo, read_image
from lexiseg.results import TASKS, Result
from lexiseg.segmenter import Question, Segmenter
from tests.apps.toy_server import photo_bytes
from tests.colour_model import colour_model

WORDS = ("red, green | grass, blue", "blue, red", "green", "red, green | grass, blue")


class Held(Segmenter):
    """Waits for `go` before each pass, and remembers how many photos it had."""

    def __init__(self, fails: Callable[[Sequence[Photo]], bool] = lambda photos: False) -> None:
        super().__init__(colour_model(), "cpu")
        self.go, self.passes, self.fails = threading.Event(), list[int](), fails

    def together(self, photos: Sequence[Photo], questions: Sequence[Question]) -> list[Result]:
        assert self.go.wait(20)
        self.passes.append(len(photos))
        if self.fails(photos):
            raise torch.OutOfMemoryError("too many")
        return super().together(photos, questions)


def photo(seed: int = 0, size_hw: tuple[int, int] = (60, 80)) -> Photo:
    return read_image(photo_bytes(size_hw, "PNG", seed), name=f"photo {seed}")


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_same(one: Result, other: Result) -> None:
    assert (one.task, one.words, one.photo) == (other.task, other.words, other.photo)
    assert np.array_equal(one.label_map, other.label_map)
    assert [segment.label for segment in one.segments] == [segment.label for segment in other.segments]


@pytest.mark.parametrize("task", TASKS)
def test_together_as_alone(task: str) -> None:
    segmenter = Segmenter(colour_model(), "cpu")
    photos = [photo(seed) for seed in range(4)]
    questions = [segmenter.prepare(words, task) for words in WORDS]
    together = segmenter.together(photos, questions)
    for one, own, words in zip(together, photos, WORDS, strict=True):
        assert_same(one, segmenter(own, words, task))


def test_photos_of_one_shape_may_have_several_sizes() -> None:
    segmenter = Segmenter(colour_model(), "cpu")
    photos = [photo(0, (60, 80)), photo(1, (120, 160))]
    results = segmenter.together(photos, [segmenter.prepare(WORDS[0])] * 2)
    assert [result.size_hw for result in results] == [(60, 80), (120, 160)]
    assert_same(results[1], segmenter(photos[1], WORDS[0]))


def test_other_shapes_are_refused() -> None:
    segmenter = Segmenter(colour_model(), "cpu")
    with pytest.raises(ValueError, match="several sizes"):
        segmenter.together([photo(0), photo(1, (80, 60))], [segmenter.prepare("red")] * 2)


def test_what_waits_goes_through_together() -> None:
    segmenter, done = Held(), list[Pass]()
    batcher = Batcher(max_batch=3, on_pass=done.append)
    question = segmenter.prepare("red, blue")
    first = batcher.submit(segmenter, photo(), question)
    wait_until(lambda: len(batcher) == 0)  # the worker has it, and is held
    rest = [batcher.submit(segmenter, photo(seed), question) for seed in range(1, 5)]
    tall = batcher.submit(segmenter, photo(9, (80, 60)), question)
    segmenter.go.set()
    assert [future.result(20).photo for future in (first, *rest, tall)] == [f"photo {n}" for n in (0, 1, 2, 3, 4, 9)]
    assert segmenter.passes == [1, 3, 1, 1], "three at most, and the tall one by itself"
    batcher.close()
    assert [one.photos for one in done] == segmenter.passes


def test_idle_workers_get_their_share() -> None:
    segmenter = Held()
    batcher = Batcher(workers=2, max_batch=8)
    question = segmenter.prepare("red, blue")
    held = [batcher.submit(segmenter, photo(seed), question) for seed in range(2)]
    wait_until(lambda: len(batcher) == 0)
    more = [batcher.submit(segmenter, photo(seed), question) for seed in range(4)]
    segmenter.go.set()
    for future in (*held, *more):
        future.result(20)
    batcher.close()
    assert sum(segmenter.passes) == 6


def test_a_client_that_leaves_frees_its_place() -> None:
    segmenter = Held()
    batcher = Batcher()
    question = segmenter.prepare("red")
    first = batcher.submit(segmenter, photo(), question)
    wait_until(lambda: len(batcher) == 0)
    second = batcher.submit(segmenter, photo(1), question)
    assert len(batcher) == 1
    assert second.cancel()
    assert len(batcher) == 0, "its photo is not kept"
    segmenter.go.set()
    assert first.result(20).photo == "photo 0"
    batcher.close()
    assert segmenter.passes == [1]


def test_too_many_at_once_are_done_one_by_one() -> None:
    segmenter = Held(fails=lambda photos: len(photos) > 1 or photos[0].name == "photo 2")
    batcher = Batcher()
    question = segmenter.prepare("red, blue")
    futures = [batcher.submit(segmenter, photo(0), question)]
    wait_until(lambda: len(batcher) == 0)
    futures += [batcher.submit(segmenter, photo(seed), question) for seed in (1, 2, 3)]
    segmenter.go.set()
    assert futures[1].result(20).photo == "photo 1"
    assert futures[3].result(20).photo == "photo 3"
    assert isinstance(futures[2].exception(20), torch.OutOfMemoryError), "its own mistake, and nobody else's"
    batcher.close()


def test_closing_finishes_what_waits() -> None:
    segmenter = Held()
    batcher = Batcher()
    question = segmenter.prepare("red")
    futures = [batcher.submit(segmenter, photo(seed), question) for seed in range(5)]
    segmenter.go.set()
    batcher.close()
    assert all(future.result(0).photo == f"photo {seed}" for seed, future in enumerate(futures))
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(segmenter, photo(), question)

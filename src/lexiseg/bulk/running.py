"""The run of a batch: what is missing is read ahead of the model, segmented and written; then all is merged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lexiseg.bulk.folder import BatchFolder
from lexiseg.bulk.inputs import BatchError, Input, inputs_of
from lexiseg.bulk.merging import forget_merged, merge
from lexiseg.bulk.segmenting import Failure, segment_photos
from lexiseg.bulk.settings import settings_of
from lexiseg.bulk.sharing import Workers, share_photos
from lexiseg.formats.table import find_format
from lexiseg.results import Task
from lexiseg.segmenter import Segmenter, Words
from lexiseg.vocabulary import Vocabulary

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
"""Also where a path was made of it, which leaves one slash."""
_ALIKE = 10
"""So many photos in a row that the model fails on in the same unexpected way: it is not the photos."""


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
    """The file or folder made of all of them, in the formats that have one."""


def run_batch(
    segmenter: Segmenter,
    photos: str | os.PathLike[str],
    words: Words,
    out: str | os.PathLike[str],
    *,
    task: Task = "semantic",
    format: str = "coco",
    background: bool = False,
    min_score: float | None = None,
    progress: bool | None = None,
    workers: Workers | None = None,
) -> Outcome:
    """Segments all photos into `out`; the same call goes on where an earlier one was stopped, by whatever.

    photos: see `inputs.inputs_of`. words, task, background, min_score: as for a call of the segmenter. format: a name
    in `formats.table.FORMATS`. progress: a bar with the rate and the time left; None where somebody is looking.
    workers: who computes, by Ray Data, in the place of `segmenter`, which then only says what is to be computed; runs
    with and without may follow one another. A bad photo is written down and the rest goes on.
    Raises BatchError, and what the segmenter raises about words and task; OSError where `out` cannot be written.
    """
    _check(format)
    if _ADDRESS.match(os.fspath(out)):
        raise BatchError(f"{os.fspath(out)}: results are written to a folder; give one, and copy it when all is done")
    out = Path(out)
    vocabulary = Vocabulary.parse(words, background=background)
    with inputs_of(photos, segmenter.limits, out) as inputs:
        _check(format, inputs)
        question = segmenter.prepare(vocabulary, task, min_score=min_score)  # mistakes are told before a folder is made
        with BatchFolder(out, format, settings_of(segmenter, question)) as folder:
            missing = [photo for photo in inputs if not folder.is_finished(photo)]
            if missing:  # else it would be older than what it is made of
                forget_merged(folder)
            finished, hidden = len(inputs) - len(missing), None if progress is None else not progress
            with tqdm(total=len(inputs), initial=finished, desc="segmenting", unit="photo", disable=hidden) as bar:
                if workers is None or not missing:
                    outcomes = segment_photos(segmenter, question, missing, folder)
                else:
                    outcomes = share_photos(workers, question, missing, folder)
                with closing(outcomes):
                    failures = _collect(outcomes, folder, bar)
            folder.sweep()
            done = [photo.name for photo in inputs if photo.name not in failures]
            merged = merge(folder, done, vocabulary)
    return Outcome(out, len(inputs), len(missing) - len(failures), failures, merged)


def _check(format: str, inputs: Sequence[Input] = ()) -> None:
    """Before anything is begun."""
    try:
        find_format(format, (photo.name for photo in inputs))
    except ValueError as error:
        raise BatchError(str(error)) from None


def _collect(outcomes: Iterable[tuple[Input, Failure | None]], folder: BatchFolder, bar: tqdm[Any]) -> dict[str, str]:
    """What failed, with its reason. Raises BatchError where nothing but the same failure comes any more."""
    failures: dict[str, str] = {}
    alike, kind = 0, None
    with folder.failures() as list_failure:
        for photo, failure in outcomes:
            bar.update()
            alike = alike + 1 if failure and failure.unexpected and failure.unexpected == kind else 1
            kind = failure and failure.unexpected
            if failure:
                failures[photo.name] = failure.problem
                list_failure(photo.name, failure.problem)
                if kind and alike == _ALIKE:
                    raise BatchError(
                        f"{folder.path}: {alike} photos in a row, the last {photo.name}: {failure.problem}; what is "
                        "finished is kept, and the same call goes on from there"
                    )
    return failures

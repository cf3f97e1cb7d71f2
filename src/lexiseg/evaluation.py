"""Measuring a model on labelled photos: how good, how fast, how much memory."""

from __future__ import annotations

import json
import math
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lexiseg.data.packages import LabelledPhotos
from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.semantic import (
    MEAN_RULES,
    MeanRule,
    SemanticConfusion,
    class_accuracy,
    class_counts,
    class_iou,
    frequency_weighted_iou,
    harmonic_mean,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    resampled_mean_iou,
)
from lexiseg.segmenter import Segmenter, Words
from lexiseg.vocabulary import Vocabulary, VocabularyClass

SPLITS_IN_ORDER = ("test", "val", "validation")
"""What is measured where nothing is said: the first of these that the data has."""

SegmentPhoto = Callable[[NDArray[np.uint8], Vocabulary], Tensor]
"""RGB [H, W, 3] and the words -> class indices [H, W]."""


@dataclass(frozen=True)
class ClassResult:
    """One class of the data."""

    name: str
    """As the data calls it."""
    phrases: tuple[str, ...]
    """What the model was asked for."""
    iou: float
    """0..1; NaN where the class does not occur."""
    accuracy: float
    """Share of its pixels that were found, 0..1; NaN where it does not occur."""
    true_share: float
    """Share of the labelled pixels, 0..1."""
    predicted_share: float
    """Share of the same pixels that the model gave to it, 0..1."""
    seen: bool | None
    """Shares a phrase with the model's training vocabulary; None where that is not known."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Scores are fractions in 0..1, NaN where the data says nothing."""

    model: str
    data: str
    split: str
    photos: int
    photos_in_split: int
    classes: tuple[ClassResult, ...]
    miou: dict[MeanRule, float]
    """By both rules; see `lexiseg.metrics.semantic`."""
    miou_interval: dict[MeanRule, tuple[float, float]]
    """95 % of what resampled photos would give."""
    miou_seen: float
    miou_unseen: float
    """Over the seen and the unseen classes that occur."""
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float
    seconds_per_photo: float
    """Median; the first photo, which also pays for reading the words, is left out where there are others."""
    peak_memory_mb: float
    """Of the whole process, since its start."""
    peak_gpu_memory_mb: float | None
    machine: str

    @property
    def hiou(self) -> float:
        """Harmonic mean of the seen and the unseen classes' mean IoU."""
        return harmonic_mean(self.miou_seen, self.miou_unseen)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file. Scores and shares in percent, None where there is none."""
        return {
            "model": self.model,
            "data": self.data,
            "split": self.split,
            "photos": self.photos,
            "photos_in_split": self.photos_in_split,
            "unit": "percent",
            "miou": {rule: _percent(value) for rule, value in self.miou.items()},
            "miou_95_percent_interval": {
                rule: [_percent(edge) for edge in edges] for rule, edges in self.miou_interval.items()
            },
            "miou_seen": _percent(self.miou_seen),
            "miou_unseen": _percent(self.miou_unseen),
            "hiou": _percent(self.hiou),
            "mean_accuracy": _percent(self.mean_accuracy),
            "pixel_accuracy": _percent(self.pixel_accuracy),
            "frequency_weighted_iou": _percent(self.frequency_weighted_iou),
            "seconds_per_photo": round(self.seconds_per_photo, 4),
            "peak_memory_mb": None if math.isnan(self.peak_memory_mb) else round(self.peak_memory_mb),
            "peak_gpu_memory_mb": None if self.peak_gpu_memory_mb is None else round(self.peak_gpu_memory_mb),
            "machine": self.machine,
            "classes": [
                {
                    "name": result.name,
                    "phrases": list(result.phrases),
                    "iou": _percent(result.iou),
                    "accuracy": _percent(result.accuracy),
                    "true_share": _percent(result.true_share),
                    "predicted_share": _percent(result.predicted_share),
                    "seen": result.seen,
                }
                for result in self.classes
            ],
        }

    def to_markdown(self) -> str:
        """Two tables: the summary, and the classes in the order of the data."""
        part = "" if self.photos == self.photos_in_split else f" of {self.photos_in_split}, evenly spread"
        lines = [
            f"# {self.model} on {self.data}, {self.split}",
            "",
            f"{self.photos} photos{part}; {len(self.classes)} classes.",
            "",
            "| measure | value |",
            "|---|---|",
        ]
        rules: dict[MeanRule, str] = {
            "gt": "classes that occur in the labels",
            "gt_or_pred": "classes that occur in the labels or in a prediction",
        }
        for rule, meaning in rules.items():
            low, high = self.miou_interval[rule]
            interval = f"{_shown(low)} to {_shown(high)}"
            lines.append(f"| mIoU, rule `{rule}`: {meaning} | {_shown(self.miou[rule])} (95 %: {interval}) |")
        if any(result.seen is not None for result in self.classes):
            lines.append(
                f"| mIoU seen / unseen / harmonic mean | {_shown(self.miou_seen)} / {_shown(self.miou_unseen)} / "
                f"{_shown(self.hiou)} |"
            )
        memory = f"{self.peak_memory_mb:.0f} MB"
        if self.peak_gpu_memory_mb is not None:
            memory += f", and {self.peak_gpu_memory_mb:.0f} MB on the GPU"
        lines += [
            f"| mean class accuracy | {_shown(self.mean_accuracy)} |",
            f"| pixel accuracy | {_shown(self.pixel_accuracy)} |",
            f"| frequency-weighted IoU | {_shown(self.frequency_weighted_iou)} |",
            f"| seconds per photo (median) | {self.seconds_per_photo:.3g} |",
            f"| peak memory of the process | {memory} |",
            f"| machine | {self.machine} |",
            "",
            "| class | asked for as | IoU | accuracy | % of labelled pixels | % of predicted pixels |",
            "|---|---|---|---|---|---|",
        ]
        for result in self.classes:
            asked = ", ".join(result.phrases).replace("|", "\\|")
            lines.append(
                f"| {result.name} | {asked} | {_shown(result.iou)} | {_shown(result.accuracy)} | "
                f"{_shown(result.true_share)} | {_shown(result.predicted_share)} |"
            )
        return "\n".join(lines) + "\n"

    def save(self, folder: Path | str) -> tuple[Path, Path]:
        """Writes `<model>.<data>.<split>.json` and `.md` into `folder`; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = ".".join(re.sub(r"[^\w-]+", "_", part) for part in (self.model, self.data, self.split))
        as_json, as_markdown = folder / f"{stem}.json", folder / f"{stem}.md"
        as_json.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        as_markdown.write_text(self.to_markdown(), encoding="utf-8")
        return as_json, as_markdown


def evaluate(
    segment: SegmentPhoto,
    data: LabelledPhotos,
    *,
    name: str,
    split: str | None = None,
    words: Words | None = None,
    limit: int | None = None,
    training_phrases: Sequence[str] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Semantic segmentation of `data`, at the size of its labels.

    words: other names for the classes of the data, as many and in the same order, in any form a
    Vocabulary is read from; by default its own names. limit: so many photos, evenly spread over the split.
    training_phrases: what the model was trained on, to tell seen classes from unseen ones.
    """
    split = split or _default_split(data)
    ids = _spread(data.ids(split), limit)
    if not ids:
        raise ValueError(f"{data.name}: nothing to measure, split {split!r} holds no photos")
    vocabulary = _vocabulary(data, words)
    confusion = SemanticConfusion(len(data.classes), data.ignore)
    pictures, seconds = [], []
    for id in tqdm(ids, desc=f"{name} on {data.name}", unit="photo", disable=not progress):
        photo = data.photo(id)
        start = time.perf_counter()
        labels = segment(photo.image, vocabulary)
        seconds.append(time.perf_counter() - start)
        one = SemanticConfusion(len(data.classes), data.ignore)
        try:
            one.update(labels.cpu(), torch.from_numpy(photo.labels.astype(np.int64)))
        except ValueError as error:
            raise ValueError(f"{data.name}/{id}: {error}") from None
        confusion.merge(one)
        pictures.append(class_counts(one.counts))
    return _evaluation(
        confusion.counts,
        torch.stack(pictures),
        seconds[1:] or seconds,
        model=name,
        data=data,
        split=split,
        vocabulary=vocabulary,
        training_phrases=training_phrases,
        device=device,
    )


def evaluate_model(
    model: str | Path | Segmenter,
    data: str | Path | LabelledPhotos,
    *,
    split: str | None = None,
    words: Words | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Evaluation:
    """`evaluate` for a model by its name or folder, on a data package by its path: what `lexiseg eval` does."""
    photos = data if isinstance(data, LabelledPhotos) else LabelledPhotos(data)
    segmenter = model if isinstance(model, Segmenter) else Segmenter.from_pretrained(model, device)
    return evaluate(
        lambda image, vocabulary: torch.from_numpy(segmenter(image, vocabulary).label_map),
        photos,
        name=segmenter.model.name,
        split=split,
        words=words,
        limit=limit,
        training_phrases=segmenter.model.training_phrases,
        device=str(segmenter.device),
        progress=progress,
    )


def _evaluation(
    counts: Tensor,
    pictures: Tensor,
    seconds: list[float],
    *,
    model: str,
    data: LabelledPhotos,
    split: str,
    vocabulary: Vocabulary,
    training_phrases: Sequence[str] | None,
    device: str,
) -> Evaluation:
    seen = None if training_phrases is None else torch.tensor(vocabulary.seen(training_phrases))
    _, true, predicted = class_counts(counts).double() / counts.sum()
    iou, accuracy = class_iou(counts).tolist(), class_accuracy(counts).tolist()
    times = drawn_times(len(pictures))
    return Evaluation(
        model=model,
        data=data.name,
        split=split,
        photos=len(pictures),
        photos_in_split=len(data.ids(split)),
        classes=tuple(
            ClassResult(
                name=name,
                phrases=vocabulary.classes[k].phrases,
                iou=iou[k],
                accuracy=accuracy[k],
                true_share=float(true[k]),
                predicted_share=float(predicted[k]),
                seen=None if seen is None else bool(seen[k]),
            )
            for k, name in enumerate(data.classes)
        ),
        miou={rule: mean_iou(counts, rule) for rule in MEAN_RULES},
        miou_interval={rule: interval(resampled_mean_iou(pictures, rule, times)) for rule in MEAN_RULES},
        miou_seen=math.nan if seen is None else mean_iou(counts, "gt", seen),
        miou_unseen=math.nan if seen is None else mean_iou(counts, "gt", ~seen),
        mean_accuracy=mean_accuracy(counts),
        pixel_accuracy=pixel_accuracy(counts),
        frequency_weighted_iou=frequency_weighted_iou(counts),
        seconds_per_photo=statistics.median(seconds),
        peak_memory_mb=_peak_memory_mb(),
        peak_gpu_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if device.startswith("cuda") else None,
        machine=_machine(device),
    )


def _default_split(data: LabelledPhotos) -> str:
    for split in SPLITS_IN_ORDER:
        if split in data.splits:
            return split
    if len(data.splits) == 1:
        return next(iter(data.splits))
    raise ValueError(f"{data.name} has no test split; choose one of {', '.join(data.splits)}")


def _spread(ids: Sequence[str], limit: int | None) -> list[str]:
    """`limit` of the ids at even distances: neighbours are often frames of one film."""
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} photos leaves nothing to measure")
    if limit is None or limit >= len(ids):
        return list(ids)
    return [ids[position * len(ids) // limit] for position in range(limit)]


def _vocabulary(data: LabelledPhotos, words: Words | None) -> Vocabulary:
    if words is None:
        is_thing = data.is_thing or (False,) * len(data.classes)
        return Vocabulary(
            tuple(VocabularyClass((name,), is_thing=thing) for name, thing in zip(data.classes, is_thing, strict=True))
        )
    vocabulary = Vocabulary.parse(words)
    if vocabulary.background:
        raise ValueError("a background class cannot be measured: the labels have none")
    if len(vocabulary) != len(data.classes):
        raise ValueError(
            f"{data.name} has {len(data.classes)} classes ({', '.join(data.classes)}), but {len(vocabulary)} words "
            "were given; give one for each, in the same order"
        )
    return vocabulary


def _peak_memory_mb() -> float:
    if sys.platform == "win32":  # whose Python does not tell
        return math.nan
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, kilobytes elsewhere


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {platform.system()}, {device}, {torch.get_num_threads()} threads"


def _percent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * fraction, 3)


def _shown(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"

"""The numbers of an evaluation, computed from the records of its photos, and their written forms."""

from __future__ import annotations

import json
import math
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lexiseg.data.packages import LabelledPhotos
from lexiseg.data.published_words import remark_on
from lexiseg.evaluation.candidates import Candidate
from lexiseg.evaluation.records import (
    PhotoRecord,
    add_sparse,
    add_sparse_columns,
    sparse,
    sparse_class_counts,
    unpack_cityscapes,
    unpack_outcome,
)
from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.boundary import boundary_iou
from lexiseg.metrics.cityscapes_instances import cityscapes_average_precision
from lexiseg.metrics.instances import AveragePrecision, average_precision
from lexiseg.metrics.mask_accuracy import MaskAccuracy, mask_accuracy
from lexiseg.metrics.panoptic import PanopticQuality, Quality, panoptic_quality, resampled_pq
from lexiseg.metrics.semantic import (
    MEAN_RULES,
    MeanRule,
    class_accuracy,
    class_counts,
    class_iou,
    frequency_weighted_iou,
    harmonic_mean,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    resampled_mean_accuracy,
    resampled_mean_iou,
)
from lexiseg.zoo.catalogue import ZOO

if TYPE_CHECKING:
    from lexiseg.evaluation.running import Plan

CALIBRATION_BINS = 10
CONFUSION_PAIRS = 20
"""How many of the most frequent mistakes are told."""

VERSIONS_OF = ("lexiseg", "torch", "torchvision", "open_clip_torch", "numpy", "pillow", "pycocotools")
"""Packages on which the last digits depend; Pillow's resampling and JPEG decoding move mIoU by a tenth of a point."""

Interval = tuple[float, float]
"""The middle 95 % of what resampled photos would give."""


@dataclass(frozen=True)
class ClassResult:
    """One class of the data. NaN where it does not occur, or where that was not measured."""

    name: str
    """As the data calls it."""
    phrases: tuple[str, ...]
    """What the model was asked for."""
    seen: bool | None
    """Shares a phrase with the model's training vocabulary; None where that is not known."""
    iou: float = math.nan
    """0..1."""
    accuracy: float = math.nan
    """Share of its pixels that were found, 0..1."""
    true_share: float = math.nan
    """Share of the labelled pixels, 0..1."""
    predicted_share: float = math.nan
    """Share of the same pixels that the model gave to it, 0..1."""
    boundary_iou: float = math.nan
    pq: float = math.nan
    ap: float = math.nan
    mask_accuracy: float = math.nan


@dataclass(frozen=True)
class SemanticResult:
    """Of a label for every pixel."""

    miou: Mapping[MeanRule, float]
    """By both rules; see `lexiseg.metrics.semantic`."""
    miou_interval: Mapping[MeanRule, Interval]
    miou_seen: Mapping[MeanRule, float]
    miou_unseen: Mapping[MeanRule, float]
    """Over the seen and the unseen classes; NaN where it is not known which are seen."""
    mean_accuracy: float
    pixel_accuracy: float
    frequency_weighted_iou: float
    confusions: tuple[tuple[int | None, int, int], ...]
    """The most frequent mistakes: (what was said, what is true, pixels), None for no class."""
    calibration: tuple[tuple[float, float, int], ...]
    """Per tenth of the score that has pixels: mean score, share of correct pixels, pixels."""

    @property
    def hiou(self) -> Mapping[MeanRule, float]:
        """Harmonic mean of the seen and the unseen classes' mean IoU."""
        return {rule: harmonic_mean(self.miou_seen[rule], self.miou_unseen[rule]) for rule in self.miou}


@dataclass(frozen=True)
class Published:
    """What the authors report for this model on this benchmark, in percent."""

    numbers: Mapping[str, float]
    """"miou", "pq", "sq", "rq", "ap", "mask_acc" (of one true mask per class)."""
    miou_rule: MeanRule | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured. Scores are fractions in 0..1, NaN where the data says nothing."""

    model: str
    data: str
    title: str
    split: str
    photos: int
    photos_in_split: int
    classes: tuple[ClassResult, ...]
    seconds_per_photo: float
    """Median, without evaluation; first photos, which also pay for reading the words, are left out where there are
    others."""
    peak_memory_mb: float | None
    """Of the largest process, since its start."""
    peak_gpu_memory_mb: float | None
    machine: str
    versions: Mapping[str, str]
    remarks: tuple[str, ...]
    """What is not as in the published benchmark."""
    semantic: SemanticResult | None = None
    panoptic: PanopticQuality | None = None
    pq_interval: Interval | None = None
    instances: AveragePrecision | None = None
    boundary_iou: float | None = None
    """Mean over the classes that occur, by the definition (rule `rim`)."""
    masks: MaskAccuracy | None = None
    masks_interval: Interval | None = None
    given_masks: str | None = None
    published: Published | None = None
    records: tuple[PhotoRecord, ...] = field(default=(), repr=False, compare=False)
    """Photo by photo, for comparisons and reports."""

    # ------------------------------------------------------------------------------------------------------- written

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file. Scores and shares in percent, None where there is none."""
        told: dict[str, Any] = {
            "model": self.model,
            "data": self.data,
            "title": self.title,
            "split": self.split,
            "photos": self.photos,
            "photos_in_split": self.photos_in_split,
            "unit": "percent",
        }
        if self.semantic is not None:
            told |= _semantic_dict(self.semantic, self.classes)
        if self.boundary_iou is not None:
            told["boundary_iou"] = _percent(self.boundary_iou)
        if self.panoptic is not None:
            groups = {"all": self.panoptic.all, "things": self.panoptic.things, "stuff": self.panoptic.stuff}
            told["panoptic"] = {name: _quality_dict(quality) for name, quality in groups.items()}
            told["pq_95_percent_interval"] = _percents(self.pq_interval)
        if self.instances is not None:
            told["instances"] = {name: _percent(value) for name, value in self.instances.numbers.items()}
        if self.masks is not None:
            told["mask_accuracy"] = {
                "given": self.given_masks,
                "mean": _percent(self.masks.mean),
                "mean_95_percent_interval": _percents(self.masks_interval),
                "seen": _percent(self.masks.seen),
                "unseen": _percent(self.masks.unseen),
                "overall": _percent(self.masks.overall),
            }
        if self.published is not None:
            told["published"] = {"numbers": dict(self.published.numbers), "miou_rule": self.published.miou_rule}
        return told | {
            "seconds_per_photo": round(self.seconds_per_photo, 4),
            "peak_memory_mb": None if self.peak_memory_mb is None else round(self.peak_memory_mb),
            "peak_gpu_memory_mb": None if self.peak_gpu_memory_mb is None else round(self.peak_gpu_memory_mb),
            "machine": self.machine,
            "versions": dict(self.versions),
            "remarks": list(self.remarks),
            "classes_without_truth": [entry.name for entry in self.classes if not self._occurs(entry)],
            "classes": [self._class_dict(entry) for entry in self.classes],
        }

    def to_markdown(self) -> str:
        """The summary with the published numbers beside, and the classes in the order of the data."""
        part = "" if self.photos == self.photos_in_split else f" of {self.photos_in_split}, evenly spread"
        lines = [f"# {self.model} on {self.data}, {self.split}", ""]
        lines.append(f"{self.photos} photos{part}; {len(self.classes)} classes.")
        for remark in self.remarks:
            lines += ["", f"Not as published: {remark}."]
        lines += ["", "| measure | measured | published |", "|---|---|---|"]
        lines += [f"| {name} | {value} | {published} |" for name, value, published in self.rows()]
        memory = "-" if self.peak_memory_mb is None else f"{self.peak_memory_mb:.0f} MB"
        if self.peak_gpu_memory_mb is not None:
            memory += f", and {self.peak_gpu_memory_mb:.0f} MB on the GPU"
        lines += [
            f"| seconds per photo (median), without evaluation | {self.seconds_per_photo:.3g} | |",
            f"| peak memory of a process | {memory} | |",
            f"| machine | {self.machine} | |",
            f"| versions | {', '.join(f'{name} {number}' for name, number in self.versions.items())} | |",
            "",
            *self._class_table(),
        ]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path | str) -> tuple[Path, Path]:
        """Writes `<model>.<data>.<split>.json` and `.md` into `folder`; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_markdown = folder / f"{self.stem}.json", folder / f"{self.stem}.md"
        as_json.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        as_markdown.write_text(self.to_markdown(), encoding="utf-8")
        return as_json, as_markdown

    @property
    def stem(self) -> str:
        """The beginning of the names of its files."""
        return file_stem(self.model, self.data, self.split, given_masks=self.masks is not None)

    # --------------------------------------------------------------------------------------------------------- parts

    def rows(self) -> list[tuple[str, str, str]]:
        """(measure, measured, published) of the summary."""
        published = {} if self.published is None else self.published.numbers
        rule = None if self.published is None else self.published.miou_rule
        shown = {name: f"{value:g}" for name, value in published.items()}
        knows_seen = any(entry.seen is not None for entry in self.classes)
        rows: list[tuple[str, str, str]] = []
        if self.semantic is not None:
            found = self.semantic
            for kind in MEAN_RULES:
                value = f"{_shown(found.miou[kind])} (95 %: {_range(found.miou_interval[kind])})"
                same_rule = kind == (rule or "gt")
                rows.append((f"mIoU, rule `{kind}`: {RULES[kind]}", value, shown.get("miou", "") if same_rule else ""))
            if knows_seen:
                three = (found.miou_seen["gt"], found.miou_unseen["gt"], found.hiou["gt"])
                rows.append(("mIoU seen / unseen / harmonic mean (hIoU), rule `gt`", _joined(three), ""))
            rows += [
                ("mean class accuracy (mACC)", _shown(found.mean_accuracy), ""),
                ("pixel accuracy (pACC)", _shown(found.pixel_accuracy), ""),
                ("frequency-weighted IoU (fwIoU)", _shown(found.frequency_weighted_iou), ""),
            ]
        if self.boundary_iou is not None:
            rows.append(("mean Boundary IoU", _shown(self.boundary_iou), ""))
        if self.panoptic is not None:
            value = f"{_shown(self.panoptic.all.pq)} (95 %: {_range(self.pq_interval)})"
            rows.append(("PQ", value, shown.get("pq", "")))
            rows.append(("SQ", _shown(self.panoptic.all.sq), shown.get("sq", "")))
            rows.append(("RQ", _shown(self.panoptic.all.rq), shown.get("rq", "")))
            for name, group in (("things", self.panoptic.things), ("stuff", self.panoptic.stuff)):
                rows.append((f"PQ / SQ / RQ, {name}", _joined((group.pq, group.sq, group.rq)), ""))
        if self.instances is not None:
            numbers = self.instances.numbers
            rows.append(("AP (masks)", _shown(numbers["AP"]), shown.get("ap", "")))
            if "AP75" in numbers:
                rows.append(("AP50 / AP75", _joined((numbers["AP50"], numbers["AP75"])), ""))
                sizes = (numbers["APs"], numbers["APm"], numbers["APl"])
                rows.append(("AP small / medium / large", _joined(sizes), ""))
            else:
                rows.append(("AP50", _shown(numbers["AP50"]), ""))
        if self.masks is not None:
            value = f"{_shown(self.masks.mean)} (95 %: {_range(self.masks_interval)})"
            of_classes = shown.get("mask_acc", "") if self.given_masks == "classes" else ""
            rows.append(
                (f"mask accuracy, true masks of {self.given_masks} given: mean over classes", value, of_classes)
            )
            if knows_seen:
                rows.append(("mask accuracy seen / unseen", _joined((self.masks.seen, self.masks.unseen)), ""))
            rows.append(("mask accuracy over all masks", _shown(self.masks.overall), ""))
        return rows

    def columns(self) -> list[tuple[str, str]]:
        """(heading, field) of the columns about classes that have something in them."""
        columns = [("IoU", "iou"), ("accuracy", "accuracy"), ("Boundary IoU", "boundary_iou")]
        columns += [("PQ", "pq"), ("AP", "ap"), ("mask accuracy", "mask_accuracy")]
        columns += [("% of labelled pixels", "true_share"), ("% of predicted pixels", "predicted_share")]
        return [
            (heading, name)
            for heading, name in columns
            if not all(math.isnan(getattr(entry, name)) for entry in self.classes)
        ]

    def _class_table(self) -> list[str]:
        columns = self.columns()
        headings = ["class", "asked for as", *(heading for heading, _ in columns)]
        lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
        for entry in self.classes:
            cells = [entry.name, ", ".join(entry.phrases), *(_shown(getattr(entry, name)) for _, name in columns)]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        return lines

    def _class_dict(self, entry: ClassResult) -> dict[str, Any]:
        told = {"name": entry.name, "phrases": list(entry.phrases), "seen": entry.seen}
        return told | {name: _percent(getattr(entry, name)) for _, name in self.columns()}

    def _occurs(self, entry: ClassResult) -> bool:
        return entry.true_share > 0 or any(
            not math.isnan(value) for value in (entry.iou, entry.ap, entry.mask_accuracy)
        )


RULES: dict[MeanRule, str] = {
    "gt": "classes that occur in the labels",
    "gt_or_pred": "classes that occur in the labels or in a prediction",
}


def evaluation_of(records: Sequence[PhotoRecord], data: LabelledPhotos, plan: Plan, candidate: Candidate) -> Evaluation:
    """All numbers, from the records in the order of the data."""
    number = len(data.classes)
    phrases = _phrases_of_classes(data, plan)
    trained = candidate.training_phrases
    seen = None if trained is None else torch.tensor([not set(trained).isdisjoint(own) for own in phrases])
    remark = remark_on(data.name, [entry.phrases for entry in plan.look.vocabulary.classes])
    times = drawn_times(len(records))
    of_class: list[dict[str, float]] = [{} for _ in range(number)]
    parts: dict[str, Any] = {}

    if "miou" in plan.look.measures:
        counts = _confusion(records, "pixels", number)
        pictures = picture_counts(records, "pixels", number)
        parts["semantic"] = _semantic(counts, pictures, times, seen, records)
        _, true, predicted = class_counts(counts).double() / max(int(counts.sum()), 1)
        _note(of_class, "iou", class_iou(counts).tolist())
        _note(of_class, "accuracy", class_accuracy(counts).tolist())
        _note(of_class, "true_share", true.tolist())
        _note(of_class, "predicted_share", predicted.tolist())
    if "boundary" in plan.look.measures:
        rims = torch.zeros(number + 2, number + 1, dtype=torch.int64)
        for record in records:
            add_sparse(rims, record.rims or ())
        iou = boundary_iou(rims, "rim")
        parts["boundary_iou"] = float(iou.nanmean())
        _note(of_class, "boundary_iou", iou.tolist())
    if "pq" in plan.look.measures:
        segments = np.zeros((len(records), 5, number), np.int64)
        for row, record in zip(segments, records, strict=True):
            add_sparse_columns(row, record.segments or ())
        quality = panoptic_quality(segments.sum(0), data.is_thing or (False,) * number)
        parts |= {"panoptic": quality, "pq_interval": interval(resampled_pq(segments, times))}
        _note(of_class, "pq", [entry.pq if entry.classes else math.nan for entry in quality.per_class])
    if "ap" in plan.look.measures:
        fared = [record.instances or () for record in records]
        if data.instance_rules == "cityscapes":
            found = cityscapes_average_precision([unpack_cityscapes(one) for one in fared], number)
        else:
            found = average_precision([unpack_outcome(one) for one in fared], number)
        parts["instances"] = found
        _note(of_class, "ap", found.per_class)
    if "masks" in plan.look.measures:
        accuracy = mask_accuracy(_confusion(records, "masks", number), seen)
        pictures = picture_counts(records, "masks", number)
        parts |= {"masks": accuracy, "masks_interval": interval(resampled_mean_accuracy(pictures, times))}
        parts["given_masks"] = plan.look.given_masks
        _note(of_class, "mask_accuracy", accuracy.per_class)

    seconds = [record.seconds for record in records if record.seconds and not record.first]
    return Evaluation(
        model=candidate.name,
        data=data.name,
        title=data.title,
        split=plan.split,
        photos=len(records),
        photos_in_split=plan.photos_in_split,
        classes=tuple(
            ClassResult(name, phrases[index], None if seen is None else bool(seen[index]), **of_class[index])
            for index, name in enumerate(data.classes)
        ),
        seconds_per_photo=statistics.median(seconds or [record.seconds for record in records]),
        peak_memory_mb=max((r.memory_mb for r in records if r.memory_mb is not None), default=None),
        peak_gpu_memory_mb=max((r.gpu_memory_mb for r in records if r.gpu_memory_mb is not None), default=None),
        machine=_machine(candidate.device),
        versions={"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}},
        remarks=(*data.remarks, *([] if remark is None else [remark])),
        published=_published(candidate.name, data.name),
        records=tuple(records),
        **parts,
    )


def picture_counts(records: Sequence[PhotoRecord], kind: Literal["pixels", "masks"], num_classes: int) -> Tensor:
    """[N, 3, K]: correct, true and predicted of every photo, of its pixels or of its given masks."""
    return torch.stack([sparse_class_counts(getattr(record, kind) or (), num_classes) for record in records])


def file_stem(model: str, data: str, split: str, given_masks: bool) -> str:
    """The beginning of the names of files about one model on one package."""
    parts = [model, data, split, *(["masks"] if given_masks else [])]
    return ".".join(re.sub(r"[^\w-]+", "_", part) for part in parts)


def _semantic(
    counts: Tensor, pictures: Tensor, times: Tensor, seen: Tensor | None, records: Sequence[PhotoRecord]
) -> SemanticResult:
    def over(chosen: Tensor | None) -> dict[MeanRule, float]:
        return {rule: math.nan if chosen is None else mean_iou(counts, rule, chosen) for rule in MEAN_RULES}

    return SemanticResult(
        miou={rule: mean_iou(counts, rule) for rule in MEAN_RULES},
        miou_interval={rule: interval(resampled_mean_iou(pictures, rule, times)) for rule in MEAN_RULES},
        miou_seen=over(seen),
        miou_unseen=over(None if seen is None else ~seen),
        mean_accuracy=mean_accuracy(counts),
        pixel_accuracy=pixel_accuracy(counts),
        frequency_weighted_iou=frequency_weighted_iou(counts),
        confusions=_confusions(counts),
        calibration=_calibration(records),
    )


def _confusions(counts: Tensor) -> tuple[tuple[int | None, int, int], ...]:
    wrong = counts.clone()
    wrong.diagonal().zero_()
    cells = sorted(sparse(wrong), key=lambda cell: (-cell[2], cell))[:CONFUSION_PAIRS]
    return tuple((said if said < counts.shape[1] else None, true, pixels) for said, true, pixels in cells)


def _calibration(records: Sequence[PhotoRecord]) -> tuple[tuple[float, float, int], ...]:
    """How far a score may be believed: pixels by the score of the region they were put into."""
    pixels, correct = np.zeros(CALIBRATION_BINS), np.zeros(CALIBRATION_BINS)
    scores = np.zeros(CALIBRATION_BINS)
    for record in records:
        of_class = dict(record.confidence or ())
        for said, true, count in record.pixels or ():
            if said in of_class:
                bin = min(int(of_class[said] * CALIBRATION_BINS), CALIBRATION_BINS - 1)
                pixels[bin] += count
                scores[bin] += count * of_class[said]
                correct[bin] += count * (said == true)
    return tuple(
        (float(scores[bin] / pixels[bin]), float(correct[bin] / pixels[bin]), int(pixels[bin]))
        for bin in range(CALIBRATION_BINS)
        if pixels[bin]
    )


def _phrases_of_classes(data: LabelledPhotos, plan: Plan) -> list[tuple[str, ...]]:
    """What was asked for, per class: more than one word where several stand for one class."""
    phrases: list[tuple[str, ...]] = [() for _ in data.classes]
    for entry, index in zip(plan.look.vocabulary.classes, plan.look.word_class.tolist(), strict=False):
        phrases[index] += entry.phrases
    return phrases


def _confusion(records: Sequence[PhotoRecord], kind: Literal["pixels", "masks"], num_classes: int) -> Tensor:
    counts = torch.zeros(num_classes + 1, num_classes, dtype=torch.int64)
    for record in records:
        add_sparse(counts, getattr(record, kind) or ())
    return counts


def _note(of_class: list[dict[str, float]], name: str, values: Sequence[float]) -> None:
    for own, value in zip(of_class, values, strict=True):
        own[name] = value


def _published(model: str, data: str) -> Published | None:
    entry = ZOO.get(model)
    if entry is None or data not in entry.published:
        return None
    return Published(entry.published[data], entry.miou_rule)


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {platform.system()}, {device}, {torch.get_num_threads()} threads"


def _semantic_dict(found: SemanticResult, classes: Sequence[ClassResult]) -> dict[str, Any]:
    names = [entry.name for entry in classes]
    return {
        "miou": {rule: _percent(value) for rule, value in found.miou.items()},
        "miou_95_percent_interval": {rule: _percents(edges) for rule, edges in found.miou_interval.items()},
        "miou_seen": {rule: _percent(value) for rule, value in found.miou_seen.items()},
        "miou_unseen": {rule: _percent(value) for rule, value in found.miou_unseen.items()},
        "hiou": {rule: _percent(value) for rule, value in found.hiou.items()},
        "mean_accuracy": _percent(found.mean_accuracy),
        "pixel_accuracy": _percent(found.pixel_accuracy),
        "frequency_weighted_iou": _percent(found.frequency_weighted_iou),
        "confusions": [
            {"said": None if said is None else names[said], "true": names[true], "pixels": pixels}
            for said, true, pixels in found.confusions
        ],
        "calibration": [
            {"score": _percent(score), "correct": _percent(correct), "pixels": pixels}
            for score, correct, pixels in found.calibration
        ],
    }


def _quality_dict(quality: Quality) -> dict[str, Any]:
    return {
        "pq": _percent(quality.pq),
        "sq": _percent(quality.sq),
        "rq": _percent(quality.rq),
        "classes": quality.classes,
    }


def _percent(fraction: float) -> float | None:
    return None if math.isnan(fraction) else round(100 * fraction, 3)


def _percents(edges: Interval | None) -> list[float | None] | None:
    return None if edges is None else [_percent(edge) for edge in edges]


def _shown(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _range(edges: Interval | None) -> str:
    return "-" if edges is None else f"{_shown(edges[0])} to {_shown(edges[1])}"


def _joined(fractions: Sequence[float]) -> str:
    return " / ".join(_shown(value) for value in fractions)

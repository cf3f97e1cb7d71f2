"""How well a classifier names true masks, before a tuning and after it, on seen and on unseen classes.

The numbers are those of `lexiseg eval --given-masks`: every mask is classified by itself among all classes of its label
set, and the mean goes over the classes that occur (mMaskAcc).

P photos, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.images import Canvas, Photo
from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.mask_accuracy import mask_confusion
from lexiseg.metrics.semantic import class_counts, resampled_mean_accuracy
from lexiseg.proposals.given_masks import GivenMasks, with_given_masks
from lexiseg.regions.grown import GrownUntilSeen
from lexiseg.scoring.fusion import RegionOnly
from lexiseg.system import System
from lexiseg.types import TextBank


@dataclass(frozen=True)
class Named:
    """What the masks of some photos were called."""

    counts: Tensor
    """[P, 3, K] float64: of each photo the masks called right, those there are, those called so."""
    answers: tuple[int, ...]
    """The class every mask was given, photo by photo."""

    def accuracy(self, classes: Tensor) -> float:
        """Mean over those of `classes` [K] bool that occur, 0..1; NaN where none does."""
        correct, true, _ = self.counts[:, :, classes].sum(dim=0)
        return float(torch.where(true > 0, correct / true, math.nan).nanmean()) if (true > 0).any() else math.nan

    def masks(self, classes: Tensor) -> int:
        """How many there are of `classes`."""
        return int(self.counts[:, 1, classes].sum())

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file; counts as [photo, row, class, count] where they are not zero."""
        places = self.counts.nonzero().tolist()
        counts = [[*place, int(self.counts[tuple(place)])] for place in places]
        return {"shape": list(self.counts.shape), "counts": counts, "answers": list(self.answers)}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Named:
        counts = torch.zeros(told["shape"], dtype=torch.float64)
        for photo, row, index, count in told["counts"]:
            counts[photo, row, index] = count
        return cls(counts, tuple(told["answers"]))


@torch.inference_mode()
def name_masks(
    embedder: nn.Module, scorer: nn.Module, text: TextBank, canvas: Canvas, photos: Sequence[PanopticPhoto], what: str
) -> Named:
    """The masks of `photos` named by the words of `text`, whose classes are theirs. what: for the progress bar.

    Leaves the modules in evaluation mode.
    """
    system = System(None, GivenMasks(), GrownUntilSeen(embedder), scorer, RegionOnly()).eval()
    device = text.region.device
    counts, answers = [], []
    for photo in tqdm(photos, desc=what, unit="photo", mininterval=5, disable=len(photos) < 2):
        confusion = mask_confusion(text.num_classes)
        numbers = [number for number in photo.classes if (photo.ids == number).any()]
        if numbers:
            masks = torch.from_numpy(photo.ids) == torch.tensor(numbers, dtype=torch.int32)[:, None, None]
            images = with_given_masks(canvas([Photo(photo.image, "")]), [masks]).to(device)
            said = system(images, text)[1].class_probs[0].argmax(dim=1).cpu()
            confusion.update(said, torch.tensor([photo.classes[number] for number in numbers]))
            answers += said.tolist()
        counts.append(class_counts(confusion.counts).double())
    stacked = torch.stack(counts) if counts else torch.zeros(0, 3, text.num_classes, dtype=torch.float64)
    return Named(stacked, tuple(answers))


@dataclass(frozen=True)
class Change:
    """One number before and after; fractions in 0..1, NaN where there is nothing to measure."""

    before: float
    after: float
    interval: tuple[float, float]
    """Of the difference: 95 % of what resampled photos would give."""
    masks: int

    def to_dict(self) -> dict[str, Any]:
        """In percent."""
        return {
            "before": _percent(self.before),
            "after": _percent(self.after),
            "difference": _percent(self.after - self.before),
            "difference_95_percent": [_percent(edge) for edge in self.interval],
            "masks": self.masks,
        }


def change_of(before: Named, after: Named, classes: Tensor) -> Change:
    """Both of the same photos. The interval is of photos drawn alike for both."""
    pair = (before.accuracy(classes), after.accuracy(classes))
    masks = before.masks(classes)
    if not masks:
        return Change(math.nan, math.nan, (math.nan, math.nan), 0)
    times = drawn_times(len(before.counts))
    samples = [resampled_mean_accuracy(named.counts[:, :, classes], times) for named in (before, after)]
    return Change(*pair, interval(samples[1] - samples[0]), masks)


def agreement(before: Named, after: Named) -> float:
    """Share of the masks that are called the same, 0..1."""
    pairs = list(zip(before.answers, after.answers, strict=True))
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else math.nan


def table(rows: Mapping[str, Change], remarks: Iterable[str] = ()) -> str:
    """Markdown: a row per group of masks, then the remarks."""
    lines = ["| mask accuracy, % | masks | before | after | difference | 95 % |", "|---|---|---|---|---|---|"]
    for name, change in rows.items():
        if not change.masks:
            lines.append(f"| {name} | 0 | - | - | - | - |")
            continue
        low, high = change.interval
        lines.append(
            f"| {name} | {change.masks} | {100 * change.before:.1f} | {100 * change.after:.1f} | "
            f"{100 * (change.after - change.before):+.1f} | {100 * low:+.1f} to {100 * high:+.1f} |"
        )
    return "\n".join((*lines, *(f"\n{remark}" for remark in remarks))) + "\n"


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 3)

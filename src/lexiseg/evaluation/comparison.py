"""Models against each other on the same photos.

A difference counts as one if its own interval leaves out zero. It is taken over the same resampled photos for both, so
it says more than two intervals that overlap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lexiseg.evaluation.outcome import Evaluation, Interval, file_stem, picture_counts
from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.semantic import resampled_mean_accuracy, resampled_mean_iou


@dataclass(frozen=True)
class Difference:
    """One model less another, as a fraction: of the mIoU (rule `gt`), or of the mask accuracy."""

    model: str
    other: str
    measure: str
    value: float
    interval: Interval

    @property
    def counts(self) -> bool:
        """Chance alone hardly makes such a difference."""
        return not self.interval[0] <= 0 <= self.interval[1]


def compare(model: Evaluation, other: Evaluation) -> Difference:
    """Both must be of the same photos and classes, and measure the same."""
    ids = [record.id for record in model.records]
    if ids != [record.id for record in other.records] or len(model.classes) != len(other.classes):
        raise ValueError(f"{model.model} and {other.model} were not measured on the same photos and classes")
    times = drawn_times(len(ids))
    if model.masks is not None and other.masks is not None:
        measure, value = "mask accuracy", model.masks.mean - other.masks.mean
        samples = [resampled_mean_accuracy(_pictures(one, "masks"), times) for one in (model, other)]
    elif model.semantic is not None and other.semantic is not None:
        measure, value = "mIoU", model.semantic.miou["gt"] - other.semantic.miou["gt"]
        samples = [resampled_mean_iou(_pictures(one, "pixels"), "gt", times) for one in (model, other)]
    else:
        raise ValueError(f"{model.model} and {other.model} have no measure in common that can be resampled")
    return Difference(model.model, other.model, measure, value, interval(samples[0] - samples[1]))


def _pictures(evaluation: Evaluation, kind: Literal["pixels", "masks"]) -> Tensor:
    return picture_counts(evaluation.records, kind, len(evaluation.classes))


def comparison_table(evaluations: Sequence[Evaluation]) -> str:
    """Markdown: a row per model, then the difference of every pair."""
    first = evaluations[0]
    lines = [f"# {first.title}, {first.split}: {len(evaluations)} models on the same {first.photos} photos", ""]
    rows = {evaluation.model: dict(pair[:2] for pair in evaluation.rows()) for evaluation in evaluations}
    measures = list(dict.fromkeys(name for own in rows.values() for name in own))
    lines += [f"| model | {' | '.join(measures)} | seconds per photo |", "|---" * (len(measures) + 2) + "|"]
    for evaluation in evaluations:
        cells = [rows[evaluation.model].get(name, "-") for name in measures]
        lines.append(f"| {evaluation.model} | {' | '.join(cells)} | {evaluation.seconds_per_photo:.3g} |")
    lines += ["", "| model | less | measure | difference | 95 % | counts |", "|---|---|---|---|---|---|"]
    for difference in differences(evaluations):
        low, high = difference.interval
        lines.append(
            f"| {difference.model} | {difference.other} | {difference.measure} | {100 * difference.value:+.1f} | "
            f"{100 * low:+.1f} to {100 * high:+.1f} | {'yes' if difference.counts else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def differences(evaluations: Sequence[Evaluation]) -> list[Difference]:
    """Of every pair, later ones less earlier ones."""
    return [compare(model, other) for place, model in enumerate(evaluations) for other in evaluations[:place]]


def comparison(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """For a JSON file: all models, and the differences in percent."""
    return {
        "models": [evaluation.to_dict() for evaluation in evaluations],
        "differences": [
            {
                "model": found.model,
                "less": found.other,
                "measure": found.measure,
                "difference": round(100 * found.value, 3),
                "95_percent_interval": [round(100 * edge, 3) for edge in found.interval],
                "counts": found.counts,
            }
            for found in differences(evaluations)
        ],
    }


def save_comparison(evaluations: Sequence[Evaluation], folder: Path | str) -> tuple[Path, Path]:
    """Writes `comparison.<data>.<split>.json` and `.md`; returns their paths."""
    first = evaluations[0]
    stem = file_stem("comparison", first.data, first.split, given_masks=first.masks is not None)
    as_json, as_markdown = Path(folder) / f"{stem}.json", Path(folder) / f"{stem}.md"
    as_json.write_text(json.dumps(comparison(evaluations), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    as_markdown.write_text(comparison_table(evaluations), encoding="utf-8")
    return as_json, as_markdown

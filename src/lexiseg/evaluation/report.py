"""One HTML page to look at: numbers, the worst and the best photos with what was found, mistakes, calibration.

The page stands by itself: pictures are inside it, nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.packages import LabelledPhotos
from lexiseg.drawing import Patch, class_colors, overlay
from lexiseg.evaluation.candidates import Candidate
from lexiseg.evaluation.outcome import Evaluation
from lexiseg.evaluation.records import PhotoRecord, sparse_class_counts
from lexiseg.evaluation.running import Plan
from lexiseg.types import SemanticMap
from lexiseg.vocabulary import Vocabulary, VocabularyClass

PHOTOS = 6
"""How many of the worst are shown, and as many of the best."""
WIDTH = 420
"""Of a picture on the page."""
_JPEG_QUALITY = 82

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; color: #1c1e21; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem .8rem .2rem 0; }
th { border-bottom: 1px solid #9aa; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.photo { display: flex; gap: .6rem; flex-wrap: wrap; margin: .4rem 0 1.4rem; }
figure { margin: 0; } figcaption { color: #566; font-size: .85rem; } img { max-width: 100%; display: block; }
.scroll { overflow-x: auto; } svg text { font: 12px system-ui, sans-serif; fill: #566; }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e4e6e9; } svg text { fill: #9ab; } }
"""


def write_report(
    evaluation: Evaluation, candidate: Candidate, data: LabelledPhotos, plan: Plan, folder: Path | str
) -> Path:
    """Writes `<model>.<data>.<split>.html` into `folder`; the model looks again at the photos that are shown."""
    parts = [_head(evaluation), _summary(evaluation)]
    if evaluation.semantic is not None:
        ranked = ranked_photos(evaluation)
        few = min(PHOTOS, len(ranked) // 2)
        parts.append("<h2>The worst photos</h2>")
        parts += [_photo(candidate, data, plan, record, iou) for iou, record in ranked[:few]]
        parts.append("<h2>The best photos</h2>")
        parts += [_photo(candidate, data, plan, record, iou) for iou, record in reversed(ranked[len(ranked) - few :])]
        parts += [_confusions(evaluation), _calibration(evaluation)]
    parts += [_classes(evaluation), "</body></html>\n"]
    path = Path(folder) / f"{evaluation.stem}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def ranked_photos(evaluation: Evaluation) -> list[tuple[float, PhotoRecord]]:
    """Photos with the mean IoU over the classes that occur in them, worst first; unlabelled ones are left out."""
    ranked = []
    for record in evaluation.records:
        correct, true, predicted = sparse_class_counts(record.pixels or (), len(evaluation.classes)).double()
        iou = correct / (true + predicted - correct)
        mean = float(iou[true > 0].mean())
        if not math.isnan(mean):
            ranked.append((mean, record))
    return sorted(ranked, key=lambda entry: (entry[0], entry[1].id))


def _head(evaluation: Evaluation) -> str:
    title = escape(f"{evaluation.model} on {evaluation.title}, {evaluation.split}")
    remarks = "".join(f"<p>Not as published: {escape(remark)}.</p>" for remark in evaluation.remarks)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{title}</h1><p>{evaluation.photos} of {evaluation.photos_in_split} photos, "
        f"{len(evaluation.classes)} classes; {escape(evaluation.machine)}.</p>{remarks}"
    )


def _summary(evaluation: Evaluation) -> str:
    return _table(["measure", "measured", "published"], [list(row) for row in evaluation.rows()])


def _photo(candidate: Candidate, data: LabelledPhotos, plan: Plan, record: PhotoRecord, iou: float) -> str:
    photo = data.photo(record.id)
    found = candidate.predict(photo.image, plan.look.vocabulary, ("semantic",))["semantic"]
    assert isinstance(found, SemanticMap)
    labels = plan.look.word_class[found.labels].numpy()
    truth = np.where(photo.labels == data.ignore, -1, photo.labels.astype(np.int64))
    classes = Vocabulary(tuple(VocabularyClass((name,)) for name in data.classes))
    pictures = [
        ("photo", Image.fromarray(photo.image)),
        ("what is true", _drawn(photo.image, truth, classes)),
        (f"what {candidate.name} says", _drawn(photo.image, labels, classes)),
    ]
    figures = "".join(
        f"<figure>{_inline(picture)}<figcaption>{escape(text)}</figcaption></figure>" for text, picture in pictures
    )
    return f'<h3>{escape(record.id)}: mean IoU {100 * iou:.1f}</h3><div class="photo">{figures}</div>'


def _drawn(image: NDArray[np.uint8], labels: NDArray[np.integer], classes: Vocabulary) -> Image.Image:
    """The photo with the classes over it; what has none (below zero) stays as it is."""
    colors = class_colors(classes)
    values = np.where(labels < 0, len(classes), labels).astype(np.int64)
    patches = [Patch(index, colors[index], classes.names[index]) for index in np.unique(labels[labels >= 0]).tolist()]
    return overlay(image, values, patches)


def _inline(picture: Image.Image) -> str:
    size = (WIDTH, max(1, round(picture.height * WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width="{size[0]}" height="{size[1]}" alt="" src="data:image/jpeg;base64,{content}">'


def _confusions(evaluation: Evaluation) -> str:
    assert evaluation.semantic is not None
    names = [entry.name for entry in evaluation.classes]
    pixels = sum(count for record in evaluation.records for _, _, count in record.pixels or ())
    rows = [
        [names[true], "no class" if said is None else names[said], f"{100 * count / pixels:.2f}"]
        for said, true, count in evaluation.semantic.confusions
    ]
    return "<h2>Most frequent mistakes</h2>" + _table(["is", "was called", "% of labelled pixels"], rows)


def _calibration(evaluation: Evaluation) -> str:
    """A point per tenth of the score: on the diagonal a score is worth what it says."""
    assert evaluation.semantic is not None
    points = evaluation.semantic.calibration
    if not points:
        return ""
    side, most = 260, max(pixels for _, _, pixels in points)
    dots = "".join(
        f'<circle cx="{40 + side * score:.1f}" cy="{10 + side * (1 - correct):.1f}" '
        f'r="{3 + 9 * math.sqrt(pixels / most):.1f}" fill="#2b7a9b" fill-opacity=".65"/>'
        for score, correct, pixels in points
    )
    return (
        "<h2>Calibration</h2><p>Regions by their score: how much of them is right. Size: pixels.</p>"
        f'<svg width="{side + 60}" height="{side + 50}" role="img" aria-label="calibration">'
        f'<path d="M40 10V{10 + side}H{40 + side}M40 {10 + side}L{40 + side} 10" stroke="#9aa" fill="none"/>{dots}'
        f'<text x="{40 + side / 2 - 16}" y="{side + 40}">score</text><text x="0" y="20">right</text></svg>'
    )


def _classes(evaluation: Evaluation) -> str:
    columns = evaluation.columns()
    entries = sorted(evaluation.classes, key=lambda entry: (math.isnan(entry.iou), -entry.iou, entry.name))
    rows = [
        [entry.name, ", ".join(entry.phrases)]
        + [
            "-" if math.isnan(value) else f"{100 * value:.1f}"
            for value in (getattr(entry, name) for _, name in columns)
        ]
        for entry in entries
    ]
    return "<h2>Classes</h2>" + _table(["class", "asked for as", *(heading for heading, _ in columns)], rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    number = text.replace(".", "", 1).replace("-", "", 1).isdigit() or text == "-"
    return f'<td class="n">{escape(text)}</td>' if number else f"<td>{escape(text)}</td>"

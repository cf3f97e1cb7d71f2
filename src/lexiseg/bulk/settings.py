"""What decides about the results of a batch, beside the photos: results of other settings are not mixed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import lexiseg
from lexiseg.evaluation import candidate_of
from lexiseg.segmenter import Question, Segmenter
from lexiseg.zoo.model_folder import Model


def settings_of(segmenter: Segmenter, question: Question) -> dict[str, Any]:
    """All that decides about a result, beside the photo."""
    model, vocabulary = segmenter.model, question.vocabulary
    return {
        "words": [[list(entry.phrases), entry.is_thing, entry.color] for entry in vocabulary.classes],
        "background": vocabulary.background,
        "task": question.task,
        "min_score": question.least,
        "model": model.name,
        "weights": candidate_of(segmenter).fingerprint,
        "rules of the model": hashlib.sha256(_rules(model).encode()).hexdigest(),
        "skip_decided": segmenter.skip_decided,
        "augmented": segmenter.augmented,
        "tiles": segmenter.tiles and asdict(segmenter.tiles),
        "version of lexiseg": lexiseg.__version__,
    }


def _rules(model: Model) -> str:
    """What the weights do not tell: sizes, thresholds, the weight of one score against another."""
    query = model.query and (model.query.fingerprint, model.query.templates)
    parts = [
        (name, key, value)
        for name, part in model.system.named_modules()
        for key, value in sorted(vars(part).items())
        if isinstance(value, int | float | str)
    ]
    words = (model.templates, model.mix_templates, model.training_phrases, model.own_classes, query)
    return repr((model.canvas, model.outputs, words, parts))

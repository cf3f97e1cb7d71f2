"""What is measured: something that looks at a photo and says what it shows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lexiseg.results import Task
from lexiseg.segmenter import Segmenter
from lexiseg.system import System
from lexiseg.types import InstanceMasks, PanopticMap, Prediction
from lexiseg.vocabulary import Vocabulary

Predict = Callable[[NDArray[np.uint8], Vocabulary, Sequence[Task]], Mapping[Task, Prediction]]
"""RGB [H, W, 3], the words and what is asked for -> an outcome for each, on the CPU."""

ClassifyMasks = Callable[[NDArray[np.uint8], Vocabulary, NDArray[np.bool_]], Tensor]
"""RGB [H, W, 3], the words and masks [Q, H, W] -> scores [Q, K] on the CPU."""


@dataclass(frozen=True)
class Candidate:
    """A model, or anything that answers like one."""

    name: str
    predict: Predict
    classify_masks: ClassifyMasks | None = None
    """None where masks cannot be given."""
    training_phrases: tuple[str, ...] | None = None
    """What it was trained on, to tell seen classes from unseen ones; None where that is not known."""
    fingerprint: str = ""
    """Stands for its weights: records of other weights are not continued."""
    device: str = "cpu"


def candidate_of(segmenter: Segmenter) -> Candidate:
    def predict(image: NDArray[np.uint8], vocabulary: Vocabulary, tasks: Sequence[Task]) -> dict[Task, Prediction]:
        return {task: _on_cpu(found) for task, found in segmenter.predict(image, vocabulary, tasks).items()}

    return Candidate(
        name=segmenter.model.name,
        predict=predict,
        classify_masks=segmenter.classify_masks,
        training_phrases=segmenter.model.training_phrases,
        fingerprint=_fingerprint(
            segmenter.model.system, segmenter.model.fingerprint + ("augmented" if segmenter.augmented else "")
        ),
        device=str(segmenter.device),
    )


def _on_cpu(outcome: Prediction) -> Prediction:
    if isinstance(outcome, InstanceMasks):
        return replace(outcome, masks=outcome.masks.cpu())
    if isinstance(outcome, PanopticMap):
        return replace(outcome, ids=outcome.ids.cpu())
    return replace(outcome, labels=outcome.labels.cpu())


def _fingerprint(system: System, text: str) -> str:
    """Of every weight of the system, and of its text tower by the model's own."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(system.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""From the scored proposals of a photo to what is asked for: the rules of `postprocess`, by the settings of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lexiseg import postprocess
from lexiseg.postprocess import Frame
from lexiseg.settings import OutputSettings
from lexiseg.types import Prediction
from lexiseg.vocabulary import Vocabulary


@dataclass(frozen=True)
class Scored:
    """The proposals of one picture with the verdict on them."""

    mask_logits: Tensor
    """[n, h, w]."""
    class_probs: Tensor
    """[n, K]."""
    void_prob: Tensor
    """[n]."""
    told_from_void: bool
    """The generator knows void: its masks compete for the pixels. Others may well lie over each other."""


def prediction_of(
    scored: Scored,
    vocabulary: Vocabulary,
    task: Literal["semantic", "panoptic", "instance"],
    frame: Frame,
    outputs: OutputSettings,
    alone: bool = True,
) -> Prediction:
    """What the proposals show. alone: no other kind of outcome is asked for (see `Segmenter.predict`)."""
    masks, class_probs = scored.mask_logits, scored.class_probs
    if task == "semantic" and outputs.paint_threshold is not None:
        return postprocess.painted(masks, class_probs, frame, outputs.paint_threshold, outputs.granularity)
    if task == "semantic":
        sigmoid_at = outputs.sigmoid_at or ("canvas" if alone else "output")
        return postprocess.semantic(masks, class_probs, frame, sigmoid_at, outputs.least_cover)
    is_thing = things(vocabulary, masks.device)
    sigmoid_at = outputs.sigmoid_at or "output"
    if task == "instance":
        return postprocess.instances(masks, class_probs, frame, is_thing, outputs.top_instances, sigmoid_at)
    rule = postprocess.panoptic if scored.told_from_void else postprocess.panoptic_by_score
    thresholds = (outputs.object_mask_threshold, outputs.overlap_threshold)
    return rule(masks, class_probs, scored.void_prob, is_thing, frame, *thresholds, sigmoid_at)


def things(vocabulary: Vocabulary, device: torch.device) -> Tensor:
    """[K] bool."""
    return torch.tensor([entry.is_thing for entry in vocabulary.classes], device=device)

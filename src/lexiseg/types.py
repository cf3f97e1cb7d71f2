"""The data that crosses between the stages of the pipeline.

    class names -> Vocabulary -> TextBank
    image -> Images -> encoder -> Features
    generator(images, features, text) -> Proposals
    embedder(images, features, mask_logits) -> Regions
    scorer(regions, text) -> region_logits
    fuse(proposals, region_logits, valid, text) -> Scores

Shape letters, here and everywhere: B images, Q proposals, K classes, A phrases, T templates,
D joint image-text width, C feature channels, H W canvas, h w a smaller grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""

SigmoidAt = Literal["grid", "canvas", "output"]
"""Where mask logits become probabilities: before any resizing, on the canvas, or after all of it."""


@dataclass(frozen=True)
class Images:
    """A batch of pictures on one canvas.

    Each picture sits in the top left corner; the rest of the canvas is padding. Values are raw,
    so that every tower can normalise, resize and pad its own view.
    """

    pixels: Tensor
    """[B, 3, H, W] float32, RGB, 0..255, zero in the padding."""
    sizes_hw: tuple[Size, ...]
    """Size of each picture on the canvas, without padding."""
    original_hw: tuple[Size, ...]
    """Size each picture had in its file: the size of the outputs."""
    given_masks: Tensor | None = None
    """[B, Q, H, W] bool on the canvas: masks that came with the pictures. Only `GivenMasks` reads them."""
    unscaled: Images | None = None
    """The same pictures before they were brought to the size of this canvas, for towers that take their view from
    those; None where there was no such step."""

    @property
    def canvas_hw(self) -> Size:
        return (self.pixels.shape[-2], self.pixels.shape[-1])

    def to(self, device: str | torch.device) -> Images:
        """The same on another device."""
        masks, unscaled = self.given_masks, self.unscaled
        return replace(
            self,
            pixels=self.pixels.to(device),
            given_masks=None if masks is None else masks.to(device),
            unscaled=None if unscaled is None else unscaled.to(device),
        )

    def rows(self, chosen: Sequence[int]) -> Images:
        """Some pictures of the batch, on the same canvas."""
        index, masks, unscaled = list(chosen), self.given_masks, self.unscaled
        return Images(
            pixels=self.pixels[index],
            sizes_hw=tuple(self.sizes_hw[row] for row in index),
            original_hw=tuple(self.original_hw[row] for row in index),
            given_masks=None if masks is None else masks[index],
            unscaled=None if unscaled is None else unscaled.rows(index),
        )


@dataclass(frozen=True)
class Features:
    """What a CLIP trunk sees, before its projection into the joint space."""

    maps: tuple[Tensor, ...]
    """Four maps [B, C, h, w], fine to coarse, at strides 4, 8, 16 and 32 of the canvas."""
    dense: Tensor
    """[B, C, h, w], the map that CLIP pools and projects."""

    def rows(self, chosen: Sequence[int]) -> Features:
        """Of some pictures of the batch."""
        index = list(chosen)
        return Features(tuple(level[index] for level in self.maps), self.dense[index])


@dataclass(frozen=True)
class TextBank:
    """The encoded vocabulary: one row per phrase, grouped by class."""

    query: Tensor
    """[A, T, D] unit rows the generator reads. T is 1 where the templates are averaged."""
    region: Tensor
    """[A, T, D] unit rows the scorer reads: `query` itself unless they come from another CLIP."""
    class_of: Tensor
    """[A] int64, non-decreasing: the class of each phrase, 0..K-1, every class at least once."""
    seen: Tensor
    """[K] bool: the class shares a phrase with the model's training vocabulary."""
    own_class: Tensor | None = None
    """[N] int64 in 0..K: which class each of the generator's own classes is, K for none of them. Only for generators
    trained on a fixed list of N classes."""

    @property
    def num_classes(self) -> int:
        return self.seen.shape[0]  # not its len: that would be a constant of a traced graph

    def to(self, device: str | torch.device) -> TextBank:
        """The same on another device."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic soft masks, and what the generator itself thinks of them."""

    mask_logits: Tensor
    """[B, Q, h, w] on the canvas; a pixel belongs to a mask where its logit is above zero."""
    class_logits: Tensor | None = None
    """[B, Q, K + 1] in-vocabulary logits with void last; None from generators without classes."""


@dataclass(frozen=True)
class Regions:
    """Each proposal as CLIP sees it."""

    embeds: Tensor
    """[B, Q, D] in the joint space, not normalised."""
    valid: Tensor
    """[B, Q] bool: false where the proposal covers nothing CLIP could look at."""
    dense_embeds: Tensor | None = None
    """[B, D, h, w], the whole picture in the joint space, not normalised: for scorers that adapt the words to the
    picture. None from embedders that were not asked for it."""


@dataclass(frozen=True)
class Scores:
    """The verdict on each proposal. `class_probs` and `void_prob` sum to one per proposal, except where a method was
    published with products that do not (`scoring.fusion.PowerProduct`)."""

    class_probs: Tensor
    """[B, Q, K] in 0..1."""
    void_prob: Tensor
    """[B, Q] in 0..1: the proposal is none of the classes."""


@dataclass(frozen=True)
class Segment:
    """One region of a panoptic result or one instance, on the output grid."""

    class_index: int
    score: float
    """0..1."""
    area: int
    """Pixels."""
    class_scores: Tensor
    """[K] in 0..1: how the region scored against every class."""
    proposal: int | None = None
    """The row of the proposal it is, where that is a single one and the rule tells."""


@dataclass(frozen=True)
class SemanticMap:
    """A class for every pixel."""

    labels: Tensor
    """[H, W] class indices, int64, of a tiled photo narrower; -1 where no mask lies, under rules that leave such pixels
    without a class."""
    segments: tuple[Segment, ...]
    """One per class that occurs, in order of class index."""


@dataclass(frozen=True)
class PanopticMap:
    """Non-overlapping segments; pixels nobody claims are 0."""

    ids: Tensor
    """[H, W] int32, of a tiled photo narrower: 0 for no segment, i + 1 for `segments[i]`."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class InstanceMasks:
    """Scored masks that may overlap, best first."""

    masks: Tensor
    """[N, H, W] bool."""
    segments: tuple[Segment, ...]
    """N entries."""


Prediction = SemanticMap | PanopticMap | InstanceMasks

"""Models as modules that take and give plain tensors, one picture at a time: what is traced.

A picture [1, 3, H, W] goes in as it is, RGB in 0..255; what lies outside its `picture_hw` is not looked at. Out come
the three tensors that `outcomes` makes results of, so that post-processing is the same code with a file as with the
model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lexiseg.clip.text import TextEncoder
from lexiseg.clip.trunk import Trunk
from lexiseg.geometry import TowerView, on_grid
from lexiseg.proposals.fcclip import FCCLIPGenerator
from lexiseg.proposals.given_masks import GivenMasks
from lexiseg.proposals.own_backbone import OwnBackbone
from lexiseg.regions.mask_adapter import MaskAdapterPool
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.regions.soft_mask_pool import SoftMaskPool
from lexiseg.system import System
from lexiseg.types import Images, Size, TextBank


class ExportError(ValueError):
    """A model that cannot be exported, or a file that did not become what was asked for. The message says why."""


@dataclass(frozen=True)
class PreparedView:
    """A tower's view of a picture that has been made already, in the place of the `TowerView` that would make it."""

    pixels: Tensor
    """[1, 3, H, W]."""
    rows: Tensor
    """[h, grid h]: see `TowerView.maps`."""
    columns: Tensor
    """[w, grid w]."""

    def __call__(self, images: Images) -> Images:
        return _filled(self.pixels)

    def masks(self, masks: Tensor, images: Images, view: Images, grid_hw: Size) -> Tensor:
        return on_grid(masks, self.rows[None], self.columns[None])


class SystemGraph(nn.Module):
    """A system without pictures or words of a type of its own.

    Words are inputs, or constants where they are given here.
    """

    mean: Tensor
    """[3, 1, 1]: the colour that is zero once it is normalised."""

    def __init__(self, system: System, words: TextBank | None = None) -> None:
        super().__init__()
        trunk = _trunk_of(system)
        self.register_buffer("mean", torch.tensor(trunk.mean)[:, None, None])
        # Its own copy of the embedder, whose view is exchanged; the parameters are the same.
        parts = (system.generator, copy.copy(system.embedder), system.scorer, system.fuse)
        self.system = System(system.encoder, *parts).eval()
        self.words = words

    def forward(
        self,
        pixels: Tensor,
        picture_hw: Tensor,
        view: Tensor | None = None,
        view_hw: Tensor | None = None,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        region: Tensor | None = None,
        query: Tensor | None = None,
        class_of: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """pixels [1, 3, H, W], picture_hw [2] -> mask logits [1, Q, h, w], class_probs [1, Q, K], void_prob [1, Q].

        For towers with a view of their own: view [1, 3, H', W'], view_hw [2], rows and columns of `TowerView.maps`.
        For words that are inputs: the fields of `TextBank`, `query` where it is not `region`.
        """
        text = self.words
        if region is not None and class_of is not None and seen is not None:
            text = TextBank(region if query is None else query, region, class_of, seen)
        assert text is not None  # for the reader of types
        if view is not None and view_hw is not None and rows is not None and columns is not None:
            prepared = PreparedView(self._outside_grey(view, view_hw), rows, columns)
            self.system.embedder.view = prepared  # type: ignore[assignment]  # a module may have any attribute
        proposals, scores = self.system(_filled(self._outside_grey(pixels, picture_hw)), text)
        return proposals.mask_logits, scores.class_probs, scores.void_prob

    def _outside_grey(self, pixels: Tensor, picture_hw: Tensor) -> Tensor:
        """The padding gets the colour that is zero once it is normalised, as `layers.normalise` leaves it."""
        height, width = pixels.shape[-2:]
        inside = (torch.arange(height)[:, None] < picture_hw[0]) & (torch.arange(width) < picture_hw[1])
        return torch.where(inside, pixels, self.mean)


class TextGraph(nn.Module):
    """A text tower: tokens [N, L] -> [N, D], not normalised."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(tokens)


def view_of(system: System) -> TowerView | None:
    """How big a tower of its own sees the picture; None for systems that look at the canvas alone."""
    return system.embedder.view if isinstance(system.embedder, SoftMaskPool) else None


def with_view(system: System, size_hw: Size | None) -> System:
    """The same system, its own view held to one size."""
    view = view_of(system)
    if view is None or size_hw is None:
        return system
    embedder = copy.copy(system.embedder)
    embedder.view = replace(view, within=size_hw)  # type: ignore[assignment]  # a module may have any attribute
    return System(system.encoder, system.generator, embedder, system.scorer, system.fuse).eval()


def check_exportable(name: str, system: System) -> None:
    """Raises ExportError with the reason where a system cannot be exported."""
    generator = system.generator
    head = generator.head if isinstance(generator, OwnBackbone) else generator
    if isinstance(head, GivenMasks):
        raise ExportError(f"{name}: cannot be exported: it draws no masks, they come with every photo")
    if not isinstance(head, FCCLIPGenerator):
        raise ExportError(
            f"{name}: cannot be exported: masks by {type(head).__name__}; only the generators of FC-CLIP, MAFT+ and "
            "their descendants are"
        )
    if not isinstance(system.embedder, MaskPool | SoftMaskPool | MaskAdapterPool):
        raise ExportError(
            f"{name}: cannot be exported: regions by {type(system.embedder).__name__}; only mask pooling in a ConvNet "
            "and Mask-Adapters are. Towers that look at a crop, or with tokens, per mask are not"
        )
    trunks = [module for module in system.modules() if isinstance(module, Trunk)]
    if len({(trunk.mean, trunk.std) for trunk in trunks}) != 1:
        raise ExportError(f"{name}: cannot be exported: its towers want pictures normalised in different ways")


def _trunk_of(system: System) -> Trunk:
    return next(module for module in system.modules() if isinstance(module, Trunk))


def _filled(pixels: Tensor) -> Images:
    """A batch whose picture has the size of the canvas."""
    size_hw = (pixels.shape[-2], pixels.shape[-1])
    return Images(pixels, (size_hw,), (size_hw,))

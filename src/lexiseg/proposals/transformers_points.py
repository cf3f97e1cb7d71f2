"""Masks of the Segment Anything family: a grid of points, each asking for the masks at its place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lexiseg.proposals.hard_masks import INSIDE_LOGIT, stack_rows
from lexiseg.proposals.point_grid import distinct, point_grid, stability_scores
from lexiseg.proposals.transformers_generator import TransformersGenerator
from lexiseg.proposals.transformers_view import Look, View
from lexiseg.types import Features, Images, Proposals, TextBank


@dataclass(frozen=True)
class PointSettings:
    """Which masks of the grid are kept. The defaults are those of SAM's automatic mask generator, without crops."""

    points_per_side: int = 32
    points_per_batch: int = 64
    """Points answered at once: memory against speed; the masks are the same."""
    min_quality: float = 0.88
    """Of the IoU with the true mask that the model predicts for its own; masks must be above it."""
    min_stability: float = 0.95
    """Of `stability_scores`; masks must be above it."""
    stability_offset: float = 1.0
    """Logits by which the threshold is moved up and down for it."""
    box_overlap: float = 0.7
    """IoU of boxes above which the worse of two masks goes."""
    mask_overlap: float = 0.9
    """IoU of the masks themselves above which the worse of two goes. SAM's own generator has no such rule: 1."""
    min_area: float = 0.0
    """Pixels of the canvas; smaller masks go."""
    stretch: bool = False
    """The picture is stretched to the square the model sees, not padded: see docs/quirks.md."""

    def __post_init__(self) -> None:
        if not isinstance(self.stretch, bool):
            raise ValueError(f"stretch is {self.stretch!r}; give true or false")
        for name, low, high in (
            ("points_per_side", 1, 256),
            ("points_per_batch", 1, 65536),
            ("min_quality", -math.inf, math.inf),
            ("min_stability", -math.inf, 1),
            ("stability_offset", 0, INSIDE_LOGIT),
            ("box_overlap", 0, 1),
            ("mask_overlap", 0, 1),
            ("min_area", 0, math.inf),
        ):
            value = getattr(self, name)
            whole = name.startswith("points_")
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                raise ValueError(f"{name} is {value!r}; give {'a whole' if whole else 'a'} number")
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be in {low}..{high}")


class PointGridGenerator(TransformersGenerator):
    """Masks from nothing but a grid of points, with SAM, SAM 2 or the tracker of SAM 3.

    Segment Anything (arXiv 2304.02643), appendix B. Every point gives three masks (part, thing, whole) with the
    model's own guess of their quality; what is kept is in `PointSettings`, best first. Masks are judged on the grid
    at stride 4 of the canvas that they are given on, where the official generator judges them on the photo.
    """

    def __init__(self, model: nn.Module, look: Look, settings: PointSettings) -> None:
        super().__init__(model, look)
        self.settings = settings

    @torch.no_grad()
    def forward(self, images: Images, features: Features | None = None, text: TextBank | None = None) -> Proposals:
        """pixels [B, 3, H, W], 0..255 -> mask_logits [B, Q, h, w] at stride 4. Features and words are not read.

        The number of masks depends on the picture; rows of empty masks follow in those with fewer, and a batch where
        nothing was found has one such row. What is good and stable is held until the whole grid is asked: [h, w]
        floats for each, at most three per point.
        """
        return Proposals(mask_logits=stack_rows([self._masks(view) for view in self.look(images)]))

    def _masks(self, view: View) -> Tensor:
        """[Q, h, w], best first."""
        settings = self.settings
        embeddings = self.model.get_image_embeddings(view.pixels.to(self.model.dtype))
        points = point_grid(settings.points_per_side).to(view.pixels) * view.pixels.new_tensor(view.shown_hw[::-1])
        found, qualities = [], []
        for asked in points.split(settings.points_per_batch):
            out = self.model(
                image_embeddings=embeddings,
                input_points=asked[None, :, None],  # [1, P, 1, 2]: one point for each answer
                input_labels=torch.ones(1, len(asked), 1, dtype=torch.long, device=asked.device),
                multimask_output=True,
            )
            quality = out.iou_scores[0].flatten().float()  # [3 P]
            good = quality > settings.min_quality
            logits = view.to_canvas(out.pred_masks[0].flatten(0, 1)[good])
            kept = stability_scores(logits, settings.stability_offset) > settings.min_stability
            area = (logits > 0).flatten(1).sum(1)
            cell = view.canvas_hw[0] * view.canvas_hw[1] / (logits.shape[-2] * logits.shape[-1])
            kept &= (area > 0) & (area * cell >= settings.min_area)
            found.append(logits[kept])
            qualities.append(quality[good][kept])
        logits, quality = torch.cat(found), torch.cat(qualities)
        return logits[distinct(logits > 0, quality, settings.box_overlap, settings.mask_overlap)]

"""Scores and masks to semantic, panoptic and instance output, one image at a time.

Knows no method. Works through the output a few rows at a time, so that memory grows neither with the
vocabulary nor with the photo. FC-CLIP's released code, which Mask2Former's post-processing stands behind; beside it
the rules for masks that nobody has told from void, and that may overlap: `panoptic_by_score` and `best_class_each`.

Masks are logits [Q, h, w] on the canvas. Hard masks, bool [Q, H, W] on the grid of the output itself, stand for
themselves everywhere here: nothing is resized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lexiseg.geometry import RowResize, resize
from lexiseg.types import InstanceMasks, PanopticMap, Prediction, Segment, SemanticMap, SigmoidAt, Size

# Floats held at once for the masks of a strip, and for the class scores of a block of its pixels.
STRIP_FLOATS = 16_000_000
BLOCK_FLOATS = 8_000_000

NO_CLASS = -1
"""The label of a pixel without a class."""

PART_SHARE = 0.9
"""Of itself that a segment has inside a larger one of the same class, to be taken for a part of it."""


@dataclass(frozen=True)
class Frame:
    """How a mask comes from its grid to the photo: grid -> canvas -> crop to the picture -> output."""

    canvas_hw: Size
    """The padded network input."""
    picture_hw: Size
    """The picture's part of the canvas."""
    output_hw: Size
    """The size of the output."""


def mask_strips(
    mask_logits: Tensor, frame: Frame, sigmoid_at: SigmoidAt, step: int | None = None
) -> Iterator[tuple[int, Tensor]]:
    """mask_logits [Q, h, w] -> (first row, mask probabilities [Q, n, W]) of successive strips of the output.

    step: rows of a strip, chosen by memory unless given.
    """
    if mask_logits.dtype == torch.bool:
        if tuple(mask_logits.shape[-2:]) != frame.output_hw:
            shown = f"{list(mask_logits.shape[-2:])} on an output of {list(frame.output_hw)}"
            raise ValueError(f"hard masks of {shown}")
        height = frame.output_hw[0]
        step = step or _strip_height(mask_logits, frame)
        for start in range(0, height, step):
            yield start, mask_logits[:, start : start + step].float()
    elif sigmoid_at == "grid":
        yield from _strips(mask_logits.sigmoid(), frame, step)
    elif sigmoid_at == "canvas":
        yield from _strips(mask_logits, frame, step, between=torch.sigmoid)
    else:
        yield from ((start, rows.sigmoid()) for start, rows in _strips(mask_logits, frame, step))


def _strips(
    maps: Tensor, frame: Frame, step: int | None = None, between: Callable[[Tensor], Tensor] = lambda rows: rows
) -> Iterator[tuple[int, Tensor]]:
    """maps [N, h, w] -> (first row, [N, n, W]) of successive strips of the output; between: applied on the canvas."""
    to_canvas = RowResize((maps.shape[-2], maps.shape[-1]), frame.canvas_hw)
    to_output = RowResize(frame.picture_hw, frame.output_hw)
    height, step = frame.output_hw[0], step or _strip_height(maps, frame)
    for start in range(0, height, step):
        stop = min(start + step, height)
        first, last = to_output.needs(start, stop)
        top, bottom = to_canvas.needs(first, last)
        rows = to_canvas(maps[:, top:bottom], first, last)[..., : frame.picture_hw[1]]
        yield start, to_output(between(rows), start, stop)


def _strip_height(maps: Tensor, frame: Frame) -> int:
    return max(1, STRIP_FLOATS // max(1, len(maps) * max(frame.output_hw[1], frame.canvas_hw[1])))


def _class_maps(mask_logits: Tensor, class_probs: Tensor, sigmoid_at: SigmoidAt) -> Tensor | None:
    """Class scores [K, h, w] on the grid of the masks, where summing up first is the same and cheaper.

    It is the same where all that follows the sigmoid is linear, and cheaper where there are fewer classes than masks:
    then no mask is ever resized.
    """
    if sigmoid_at != "grid" or mask_logits.dtype == torch.bool or class_probs.shape[1] >= len(mask_logits):
        return None
    return torch.einsum("qk,qhw->khw", class_probs, mask_logits.sigmoid())


def semantic_scores(mask_logits: Tensor, class_probs: Tensor, frame: Frame, sigmoid_at: SigmoidAt = "canvas") -> Tensor:
    """Class scores of every pixel [K, H, W]: what `semantic` takes the arg-max of, for small outputs."""
    maps = _class_maps(mask_logits, class_probs, sigmoid_at)
    if maps is not None:
        return torch.cat([scores for _, scores in _strips(maps, frame)], dim=1)
    strips = [
        torch.einsum("qk,qhw->khw", class_probs, probs) for _, probs in mask_strips(mask_logits, frame, sigmoid_at)
    ]
    return torch.cat(strips, dim=1)


def semantic(
    mask_logits: Tensor,
    class_probs: Tensor,
    frame: Frame,
    sigmoid_at: SigmoidAt = "canvas",
    least_cover: float = 0.0,
) -> SemanticMap:
    """Every pixel gets the class with the largest sum over proposals of class score times mask probability.

    mask_logits [Q, h, w], class_probs [Q, K] in 0..1. Void takes no part. `sigmoid_at` "canvas" is the order of
    the published semantic-only settings, "output" that of the settings with all three outputs. A pixel that no mask
    covers with a probability of at least `least_cover` is left without a class; where masks overlap, the sum is their
    vote. A segment's scores are its mean class scores, normalised over the classes.
    """
    num_classes = class_probs.shape[1]
    height, width = frame.output_hw
    labels = torch.empty(height * width, dtype=torch.long, device=mask_logits.device)
    maps = _class_maps(mask_logits, class_probs, sigmoid_at) if least_cover == 0 else None
    # Sums over the pixels of each class: of their class scores, or of the mask probabilities, from which the class
    # scores of a whole segment follow. Either way [K, H, W] is never held.
    sums = class_probs.new_zeros(num_classes if maps is not None else len(mask_logits), num_classes)
    weights = class_probs.t().contiguous()
    block = max(1, BLOCK_FLOATS // num_classes)
    strips = mask_strips(mask_logits, frame, sigmoid_at) if maps is None else _strips(maps, frame)
    for start, strip in strips:
        pixels = strip.flatten(1)
        for first in range(0, pixels.shape[1], block):
            part = pixels[:, first : first + block]
            best = (part if maps is not None else weights @ part).argmax(0)
            if least_cover > 0:
                covered = _most(part) >= least_cover
                best[~covered] = NO_CLASS
                sums.index_add_(1, best[covered], part[:, covered])
            else:
                sums.index_add_(1, best, part)
            labels[start * width + first : start * width + first + part.shape[1]] = best
    areas = torch.bincount(labels[labels != NO_CLASS], minlength=num_classes)
    return semantic_map(labels.view(height, width), areas, sums.t() if maps is not None else sums.t() @ class_probs)


@dataclass(frozen=True)
class SemanticView:
    """What one look at a photo says about the classes of its pixels."""

    mask_logits: Tensor
    """[Q, h, w]."""
    class_probs: Tensor
    """[Q, K]."""
    frame: Frame
    """All looks at a photo have the same output."""
    mirrored: bool = False
    """The look was at its mirror image."""


def semantic_mean(views: Sequence[SemanticView], sigmoid_at: SigmoidAt = "canvas") -> SemanticMap:
    """`semantic` on the mean of the class scores of several looks at a photo; one, or more.

    Test-time augmentation as detectron2 has it. Masks of all looks are held at once, on their small grids.
    """
    height, width = views[0].frame.output_hw
    num_classes = views[0].class_probs.shape[1]
    largest = max(max(num_classes, len(view.mask_logits)) for view in views)
    step = max(1, STRIP_FLOATS // (largest * width))
    labels = torch.empty(height, width, dtype=torch.long, device=views[0].class_probs.device)
    sums = views[0].class_probs.new_zeros(num_classes, num_classes)
    for parts in zip(*(_score_strips(view, sigmoid_at, step) for view in views), strict=True):
        total = torch.stack([scores for _, scores in parts]).mean(0)  # [K, n, W]
        start, best = parts[0][0], total.argmax(0)
        labels[start : start + len(best)] = best
        sums.index_add_(1, best.flatten(), total.flatten(1))
    return semantic_map(labels, torch.bincount(labels.flatten(), minlength=num_classes), sums.t())


def _score_strips(view: SemanticView, sigmoid_at: SigmoidAt, step: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, class scores [K, n, W]) of successive strips, the right way round."""
    maps = _class_maps(view.mask_logits, view.class_probs, sigmoid_at)
    if maps is not None:
        strips = _strips(maps, view.frame, step)
    else:
        weights = view.class_probs.t().contiguous()
        masks = mask_strips(view.mask_logits, view.frame, sigmoid_at, step)
        strips = ((start, torch.einsum("kq,qhw->khw", weights, probs)) for start, probs in masks)
    return ((start, scores.flip(-1) if view.mirrored else scores) for start, scores in strips)


def semantic_map(labels: Tensor, areas: Tensor, class_scores: Tensor) -> SemanticMap:
    """labels [H, W], areas [K] in pixels, class_scores [class of the segment, K] summed over its pixels."""
    class_scores = class_scores / class_scores.sum(-1, keepdim=True).clamp_min(1e-12)
    segments = tuple(
        Segment(k, float(class_scores[k, k]), int(areas[k]), class_scores[k])
        for k in areas.nonzero().flatten().tolist()
    )
    return SemanticMap(labels=labels, segments=segments)


def masks_that_paint(class_probs: Tensor, granularity: float = 1.0, competing: int = 0) -> Tensor:
    """class_probs [Q, K] -> bool [Q]: the masks that a picture is painted with where every word is looked for.

    OVSeg (arXiv 2210.04150), released demonstrations. A word takes its best mask, however bad, and with a granularity
    below one all masks that score more than this share of its best. The last `competing` classes choose none; they
    only take part in the vote on a pixel.
    """
    chosen = class_probs[:, : class_probs.shape[1] - competing]
    if granularity < 1:
        return (chosen > granularity * chosen.amax(0)).any(1) if len(chosen) else chosen.new_zeros(0).bool()
    rows = torch.zeros(len(chosen), dtype=torch.bool, device=chosen.device)
    if len(chosen):
        rows[chosen.argmax(0)] = True
    return rows


def painted(
    mask_logits: Tensor,
    class_probs: Tensor,
    frame: Frame,
    threshold: float = 0.5,
    granularity: float = 1.0,
    competing: int = 0,
) -> SemanticMap:
    """Every pixel that one of `masks_that_paint` lies on gets the class with the most votes there; the others none.

    mask_logits [Q, h, w], class_probs [Q, K], zero for masks that are to be left out. Masks are hard on the canvas: on
    where their probability there is above `threshold`. A mask votes for all classes, by its scores.
    """
    rows = masks_that_paint(class_probs, granularity, competing)
    masks, class_probs = mask_logits[rows], class_probs[rows]
    if masks.dtype != torch.bool:
        # Hard masks as logits, so that they come to the output like any others.
        on = resize(masks[None], frame.canvas_hw)[0].sigmoid() > threshold if len(masks) else masks > 0
        masks = torch.where(on, torch.inf, -torch.inf).to(masks)
    return semantic(masks, class_probs, frame, "canvas", least_cover=torch.finfo(torch.float32).tiny)


def _most(probs: Tensor) -> Tensor:
    """The largest probability [P] of any mask in probs [Q, P]; zero where there is no mask at all."""
    return probs.amax(0) if len(probs) else probs.new_zeros(probs.shape[1])


def panoptic(
    mask_logits: Tensor,
    class_probs: Tensor,
    void_prob: Tensor,
    is_thing: Tensor,
    frame: Frame,
    object_mask_threshold: float = 0.0,
    overlap_threshold: float = 0.8,
    sigmoid_at: SigmoidAt = "output",
) -> PanopticMap:
    """Non-overlapping segments: each pixel to the proposal with the largest score times mask probability.

    mask_logits [Q, h, w], class_probs [Q, K], void_prob [Q], is_thing [K] bool. A proposal is kept if its best
    class beats void and `object_mask_threshold`, and if the pixels it wins are at least `overlap_threshold` of
    the pixels where its mask is on (won pixels are counted before the mask is looked at, so the ratio may exceed
    one). Stuff of one class is one segment.
    """
    score, label = torch.cat([class_probs, void_prob[:, None]], dim=1).max(1)
    kept = ((label != class_probs.shape[1]) & (score > object_mask_threshold)).nonzero().flatten()
    height, width = frame.output_hw
    owner = torch.zeros(height, width, dtype=torch.long, device=mask_logits.device)
    inside = torch.zeros(height, width, dtype=torch.bool, device=mask_logits.device)
    own_area = torch.zeros(len(kept), dtype=torch.long, device=mask_logits.device)
    if len(kept) > 0:
        for start, probs in mask_strips(mask_logits[kept], frame, sigmoid_at):
            winner = (score[kept, None, None] * probs).argmax(0)
            on = probs >= 0.5
            owner[start : start + len(winner)] = winner
            inside[start : start + len(winner)] = on.gather(0, winner[None])[0]
            own_area += on.flatten(1).sum(1)
    won_area = torch.bincount(owner.flatten(), minlength=len(kept)).tolist()
    final_area = torch.bincount(owner[inside], minlength=len(kept)).tolist()
    segment_of = torch.zeros(max(len(kept), 1), dtype=torch.int32)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    for row, query in enumerate(kept.tolist()):
        on_area = int(own_area[row])
        if not (won_area[row] and on_area and final_area[row]) or won_area[row] / on_area < overlap_threshold:
            continue
        class_index = int(label[query])
        if class_index in stuff:
            earlier = stuff[class_index]
            segment_of[row] = earlier + 1
            merged = segments[earlier]
            segments[earlier] = Segment(class_index, merged.score, merged.area + final_area[row], merged.class_scores)
            continue
        if not is_thing[class_index]:
            stuff[class_index] = len(segments)
        segments.append(Segment(class_index, float(score[query]), final_area[row], class_probs[query]))
        segment_of[row] = len(segments)
    ids = torch.where(inside, segment_of.to(owner.device)[owner], 0)
    return PanopticMap(ids=ids.to(torch.int32), segments=tuple(segments))


def instances(
    mask_logits: Tensor,
    class_probs: Tensor,
    frame: Frame,
    is_thing: Tensor | None = None,
    top: int = 100,
    sigmoid_at: SigmoidAt = "output",
) -> InstanceMasks:
    """The `top` best (proposal, class) pairs as scored masks, best first; one proposal may serve several classes.

    mask_logits [Q, h, w], class_probs [Q, K]. With `is_thing` [K] bool, stuff is dropped after the selection, so
    fewer than `top` may remain. Score: class score times the mean mask probability inside the mask.
    """
    flat = class_probs.flatten()
    chosen_score, chosen = flat.topk(min(top, len(flat)), sorted=False)
    query, class_index = chosen // class_probs.shape[1], chosen % class_probs.shape[1]
    if is_thing is not None:
        keep = is_thing[class_index]
        chosen_score, query, class_index = chosen_score[keep], query[keep], class_index[keep]
    distinct, row = query.unique(return_inverse=True)
    height, width = frame.output_hw
    masks = torch.zeros(len(distinct), height, width, dtype=torch.bool, device=mask_logits.device)
    inside_sum = mask_logits.new_zeros(len(distinct))
    if len(distinct) > 0:
        for start, probs in mask_strips(mask_logits[distinct], frame, sigmoid_at):
            on = probs > 0.5
            masks[:, start : start + probs.shape[1]] = on
            inside_sum += (probs * on).flatten(1).sum(1)
    areas = masks.flatten(1).sum(1)
    scores = chosen_score * (inside_sum / (areas + 1e-6))[row]
    order = scores.argsort(descending=True, stable=True)
    segments = tuple(
        Segment(int(class_index[i]), float(scores[i]), int(areas[row[i]]), class_probs[query[i]])
        for i in order.tolist()
    )
    return InstanceMasks(masks=masks[row[order]], segments=segments)


def panoptic_by_score(
    mask_logits: Tensor,
    class_probs: Tensor,
    void_prob: Tensor,
    is_thing: Tensor,
    frame: Frame,
    object_mask_threshold: float = 0.0,
    overlap_threshold: float = 0.5,
    sigmoid_at: SigmoidAt = "output",
    part_share: float | None = PART_SHARE,
) -> PanopticMap:
    """Non-overlapping segments of masks that overlap by their nature: the best score first, each takes what is left.

    The arguments are those of `panoptic`, whose rule is for masks that compete for pixels: there a mask that has lost
    too much of itself keeps what it won from everybody, and leaves a hole. Here it gives way to the next one (Panoptic
    Segmentation, arXiv 1801.00868, section 3.3). A mask is kept when the pixels it finds free, or in the hands of the
    same class of stuff, are at least `overlap_threshold` of its own; one that finds no free pixel is not. Segments of
    the same class of things that lie inside it by `part_share` of themselves become part of it; None leaves them apart.
    """
    score, label = class_probs.max(1)
    kept = (score > void_prob) & (score > object_mask_threshold)
    order = score.argsort(descending=True, stable=True)
    ids = torch.zeros(frame.output_hw, dtype=torch.int32, device=mask_logits.device)
    laid: dict[int, Segment] = {}  # by id, in order
    stuff: dict[int, int] = {}  # class -> id
    for number, query in enumerate(order[kept[order]].tolist(), start=1):
        on = _hard_mask(mask_logits[query], frame, sigmoid_at)
        k = int(label[query])
        under = torch.bincount(ids[on], minlength=number + 1)  # pixels of it that each segment holds; 0: free ones
        free, area = int(under[0]), int(under.sum())
        own = int(under[stuff[k]]) if k in stuff else 0
        if free == 0 or (free + own) / area < overlap_threshold:
            continue
        if k in stuff:
            merged = laid[stuff[k]]
            laid[stuff[k]] = Segment(k, merged.score, merged.area + free, merged.class_scores)
            ids[on & (ids == 0)] = stuff[k]
            continue
        parts = []
        if not is_thing[k]:
            stuff[k] = number
        elif part_share is not None:
            parts = [i for i, s in laid.items() if s.class_index == k and int(under[i]) >= part_share * s.area]
        taken = on & (ids == 0)
        for part in parts:
            taken |= ids == part
        ids[taken] = number
        laid = {i: s for i, s in laid.items() if i not in parts}
        laid[number] = Segment(k, float(score[query]), int(taken.sum()), class_probs[query], query)
    numbers = torch.zeros(len(order) + 1, dtype=torch.int32)
    numbers[list(laid)] = torch.arange(1, len(laid) + 1, dtype=torch.int32)
    return PanopticMap(ids=numbers.to(ids.device)[ids.long()], segments=tuple(laid.values()))


def best_class_each(mask_logits: Tensor, class_probs: Tensor, void_prob: Tensor, frame: Frame) -> InstanceMasks:
    """Every mask with its best class, things and stuff alike, best first: for masks that somebody wants named.

    mask_logits [Q, h, w], class_probs [Q, K], void_prob [Q]. Masks that are void, or empty on the output, are left
    out. The score is that of the class.
    """
    score, label = class_probs.max(1)
    kept = score > void_prob
    order = score.argsort(descending=True, stable=True)
    masks, segments = [], []
    for query in order[kept[order]].tolist():
        on = _hard_mask(mask_logits[query], frame)
        area = int(on.sum())
        if area:
            masks.append(on)
            segments.append(Segment(int(label[query]), float(score[query]), area, class_probs[query], query))
    none = torch.zeros(0, *frame.output_hw, dtype=torch.bool, device=mask_logits.device)
    return InstanceMasks(masks=torch.stack(masks) if masks else none, segments=tuple(segments))


def _hard_mask(mask_logits: Tensor, frame: Frame, sigmoid_at: SigmoidAt = "output") -> Tensor:
    """mask_logits [h, w] -> bool [H, W]: where the mask is on."""
    if mask_logits.dtype == torch.bool:
        return mask_logits
    return torch.cat([probs[0] >= 0.5 for _, probs in mask_strips(mask_logits[None], frame, sigmoid_at)])


def without_blank(prediction: Prediction, blank: np.ndarray) -> Prediction:
    """The same, but pixels that show nothing have no class and no segment; the scores stay as they are.

    blank: bool [H, W], or what is read like it, some rows at a time. Labels of a tiled photo become wider where they
    have no room for -1.
    """
    if isinstance(prediction, InstanceMasks):
        masks = prediction.masks.clone()
        for top, band in _bands(blank, masks.shape[1]):
            masks[:, top : top + len(band)] &= ~band.to(masks.device)
        return InstanceMasks(masks, _with_areas(prediction.segments, masks.flatten(1).sum(1).tolist()))
    if isinstance(prediction, PanopticMap):
        ids = prediction.ids.clone()
        areas = _emptied(ids, blank, 0, len(prediction.segments) + 1)
        return PanopticMap(ids, _with_areas(prediction.segments, areas[1:]))
    wide = prediction.labels.dtype != torch.uint8
    labels = prediction.labels.clone() if wide else prediction.labels.to(torch.int16)
    classes = [segment.class_index for segment in prediction.segments]
    areas = _emptied(labels, blank, NO_CLASS, max(classes, default=0) + 2)
    return SemanticMap(labels, _with_areas(prediction.segments, [areas[k - NO_CLASS] for k in classes]))


def _emptied(values: Tensor, blank: np.ndarray, nothing: int, count: int) -> list[int]:
    """values [H, W] are `nothing` where a photo is blank, in place; how many there are of each, from `nothing` on."""
    areas = torch.zeros(count, dtype=torch.long, device=values.device)
    for top, band in _bands(blank, len(values)):
        rows = values[top : top + len(band)]
        rows[band.to(rows.device)] = nothing
        areas += torch.bincount(rows.flatten().long() - nothing, minlength=count)
    return areas.tolist()


def _bands(blank: np.ndarray, height: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, bool [n, W]) of successive bands."""
    step = max(1, BLOCK_FLOATS // max(1, blank.shape[1]))
    return ((top, torch.from_numpy(np.array(blank[top : top + step]))) for top in range(0, height, step))


def _with_areas(segments: Sequence[Segment], areas: Sequence[int]) -> tuple[Segment, ...]:
    return tuple(replace(segment, area=area) for segment, area in zip(segments, areas, strict=True))

"""Post-processing against plain dense computations, and hand-worked masks."""

import pytest
import torch
from torch import Tensor

from lexiseg import postprocess
from lexiseg.geometry import resize
from lexiseg.postprocess import NO_CLASS, Frame, SemanticView, masks_that_paint, painted
from lexiseg.types import SigmoidAt

FRAMES = [
    Frame((64, 96), (53, 90), (131, 217)),
    Frame((64, 64), (64, 64), (64, 64)),
    Frame((32, 64), (27, 50), (41, 33)),
    Frame((64, 96), (60, 96), (30, 48)),
]


def random_case(queries: int = 9, classes: int = 13) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    logits = 4 * torch.nn.functional.interpolate(torch.randn(1, queries, 5, 6), size=(16, 24), mode="bicubic")[0]
    return logits, torch.randn(queries, classes + 1).mul(2).softmax(-1)


def dense_probs(mask_logits: Tensor, frame: Frame, sigmoid_at: SigmoidAt) -> Tensor:
    """[Q, H, W]: the whole thing at once, with the framework's interpolation."""
    masks = mask_logits.sigmoid() if sigmoid_at == "grid" else mask_logits
    masks = resize(masks[None], frame.canvas_hw)
    masks = masks.sigmoid() if sigmoid_at == "canvas" else masks
    masks = resize(masks[..., : frame.picture_hw[0], : frame.picture_hw[1]], frame.output_hw)[0]
    return masks.sigmoid() if sigmoid_at == "output" else masks


@pytest.fixture(params=[1, 500, 16_000_000])
def strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "STRIP_FLOATS", request.param)
    monkeypatch.setattr(postprocess, "BLOCK_FLOATS", max(1, request.param // 3))


@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize(("sigmoid_at", "queries"), [("canvas", 9), ("output", 9), ("grid", 9), ("grid", 30)])
def test_semantic_in_strips_is_the_dense_arg_max(
    strips: None, frame: Frame, sigmoid_at: SigmoidAt, queries: int
) -> None:
    """With more masks than classes, classes are summed up before anything is resized, where that is the same."""
    mask_logits, probs = random_case(queries)
    class_probs = probs[:, :-1]
    scores = torch.einsum("qk,qhw->khw", class_probs, dense_probs(mask_logits, frame, sigmoid_at))
    result = postprocess.semantic(mask_logits, class_probs, frame, sigmoid_at)
    torch.testing.assert_close(postprocess.semantic_scores(mask_logits, class_probs, frame, sigmoid_at), scores)
    margin = scores.topk(2, dim=0).values.diff(dim=0).abs()[0]
    assert torch.equal(result.labels[margin > 1e-5], scores.argmax(0)[margin > 1e-5])
    assert (margin > 1e-5).float().mean() > 0.99
    assert [segment.class_index for segment in result.segments] == result.labels.unique().tolist()
    for segment in result.segments:
        region = result.labels == segment.class_index
        assert segment.area == int(region.sum())
        mean = scores[:, region].mean(1)
        torch.testing.assert_close(segment.class_scores, mean / mean.sum(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("sigmoid_at", "queries"), [("canvas", 9), ("grid", 9), ("grid", 30)])
def test_the_mean_of_several_looks(strips: None, sigmoid_at: SigmoidAt, queries: int) -> None:
    output = FRAMES[0].output_hw
    frames = [FRAMES[0], Frame((96, 64), (80, 64), output), Frame((32, 32), (32, 20), output)]
    looks, scores = [], []
    for number, frame in enumerate(frames):
        mask_logits, probs = random_case(queries + number)
        looks.append(SemanticView(mask_logits, probs[:, :-1], frame, mirrored=number == 1))
        dense = torch.einsum("qk,qhw->khw", probs[:, :-1], dense_probs(mask_logits, frame, sigmoid_at))
        scores.append(dense.flip(-1) if number == 1 else dense)
    mean = torch.stack(scores).mean(0)
    result = postprocess.semantic_mean(looks, sigmoid_at)
    margin = mean.topk(2, dim=0).values.diff(dim=0).abs()[0]
    assert torch.equal(result.labels[margin > 1e-5], mean.argmax(0)[margin > 1e-5])
    for segment in result.segments:
        inside = mean[:, result.labels == segment.class_index].mean(1)
        torch.testing.assert_close(segment.class_scores, inside / inside.sum(), rtol=1e-3, atol=1e-5)


def test_one_look_is_the_plain_result() -> None:
    mask_logits, probs = random_case()
    alone = postprocess.semantic_mean([SemanticView(mask_logits, probs[:, :-1], FRAMES[0])])
    assert torch.equal(alone.labels, postprocess.semantic(mask_logits, probs[:, :-1], FRAMES[0]).labels)


def dense_panoptic(
    masks: Tensor, probs: Tensor, is_thing: list[bool], object_threshold: float, overlap: float
) -> tuple[Tensor, list[int]]:
    """The rule written out query by query."""
    num_classes = probs.shape[1] - 1
    score, label = probs.max(-1)
    kept = [q for q in range(len(probs)) if label[q] != num_classes and score[q] > object_threshold]
    ids = torch.zeros(masks.shape[-2:], dtype=torch.int32)
    classes: list[int] = []
    stuff: dict[int, int] = {}
    if not kept:
        return ids, classes
    owner = torch.stack([score[q] * masks[q] for q in kept]).argmax(0)
    for i, q in enumerate(kept):
        won, on = owner == i, masks[q] >= 0.5
        if not won.any() or not on.any() or not (won & on).any() or won.sum() / on.sum() < overlap:
            continue
        k = int(label[q])
        if k in stuff:
            ids[won & on] = stuff[k]
            continue
        classes.append(k)
        ids[won & on] = len(classes)
        if not is_thing[k]:
            stuff[k] = len(classes)
    return ids, classes


@pytest.mark.parametrize("thresholds", [(0.0, 0.8), (0.0, 0.3), (0.3, 0.5), (2.0, 0.8)])
@pytest.mark.parametrize("sigmoid_at", ["output", "grid"])
def test_panoptic_in_strips_is_the_rule_query_by_query(
    strips: None, thresholds: tuple[float, float], sigmoid_at: SigmoidAt
) -> None:
    mask_logits, probs = random_case(queries=14, classes=4)
    is_thing = [True, False, True, False]
    frame = FRAMES[0]
    result = postprocess.panoptic(
        mask_logits, probs[:, :-1], probs[:, -1], torch.tensor(is_thing), frame, *thresholds, sigmoid_at
    )
    ids, classes = dense_panoptic(dense_probs(mask_logits, frame, sigmoid_at), probs, is_thing, *thresholds)
    assert [segment.class_index for segment in result.segments] == classes
    assert (result.ids == ids).float().mean() > 0.999
    assert [segment.area for segment in result.segments] == [
        int((result.ids == i + 1).sum()) for i in range(len(classes))
    ]


def test_panoptic_joins_stuff_and_keeps_things_apart() -> None:
    left = torch.full((1, 4, 8), -9.0)
    left[..., :4] = 9.0
    masks = torch.cat([left, -left])
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.8, 0.1, 0.1]])
    frame = Frame((4, 8), (4, 8), (4, 8))
    joined = postprocess.panoptic(masks, probs[:, :2], probs[:, 2], torch.tensor([False, False]), frame)
    apart = postprocess.panoptic(masks, probs[:, :2], probs[:, 2], torch.tensor([True, True]), frame)
    assert joined.ids.unique().tolist() == [1] and [s.area for s in joined.segments] == [32]
    assert apart.ids[0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [s.score for s in apart.segments] == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("sigmoid_at", ["output", "grid"])
def test_instances_rank_pairs_and_drop_stuff_after_the_selection(strips: None, sigmoid_at: SigmoidAt) -> None:
    mask_logits, probs = random_case(queries=6, classes=3)
    frame = FRAMES[2]
    masks = dense_probs(mask_logits, frame, sigmoid_at)
    everything = postprocess.instances(mask_logits, probs[:, :-1], frame, top=10, sigmoid_at=sigmoid_at)
    scores = [segment.score for segment in everything.segments]
    assert scores == sorted(scores, reverse=True) and len(scores) == 10
    chosen = probs[:, :-1].flatten().topk(10).indices.tolist()
    expected = []
    for index in chosen:
        on = masks[index // 3] > 0.5
        expected.append(float(probs[index // 3, index % 3] * (masks[index // 3] * on).sum() / (on.sum() + 1e-6)))
    assert scores == pytest.approx(sorted(expected, reverse=True), rel=1e-4)
    only_things = postprocess.instances(
        mask_logits, probs[:, :-1], frame, is_thing=torch.tensor([True, False, False]), top=10
    )
    assert len(only_things.segments) == sum(index % 3 == 0 for index in chosen)
    assert only_things.masks.shape == (len(only_things.segments), *frame.output_hw)


def test_instances_clamp_the_number_of_pairs() -> None:
    mask_logits, probs = random_case(queries=2, classes=2)
    assert len(postprocess.instances(mask_logits, probs[:, :-1], FRAMES[1], top=100).segments) == 4


def blocks(*columns: tuple[int, int]) -> Tensor:
    """Hard masks on a grid of 4 x 10: those columns, from the first to before the second."""
    masks = torch.zeros(len(columns), 4, 10, dtype=torch.bool)
    for mask, (first, last) in zip(masks, columns, strict=True):
        mask[:, first:last] = True
    return masks


GRID = Frame((4, 10), (4, 10), (4, 10))


def test_hard_masks_stand_for_themselves(strips: None) -> None:
    masks, probs = blocks((0, 3), (3, 4), (6, 10)), torch.eye(3)
    labels = postprocess.semantic(masks, probs, GRID, least_cover=0.5).labels
    assert labels[0].tolist() == [0, 0, 0, 1, -1, -1, 2, 2, 2, 2]
    for segment, mask in zip(postprocess.semantic(masks, probs, GRID, least_cover=0.5).segments, masks, strict=True):
        assert (segment.area, segment.score) == (int(mask.sum()), 1.0)
    with pytest.raises(ValueError, match=r"hard masks of \[4, 10\] on an output of \[8, 20\]"):
        postprocess.semantic(masks, probs, Frame((4, 10), (4, 10), (8, 20)))


def test_a_pixel_far_from_every_mask_has_no_class(strips: None) -> None:
    logits = torch.tensor([9.0, 9, 9, -2, -9, -9, -9, -9, -1, 9]).expand(1, 4, 10)
    probs = torch.tensor([[0.3, 0.7]])
    assert (
        postprocess.semantic(logits, probs, GRID, least_cover=0.05).labels[2].tolist() == [1] * 4 + [-1] * 4 + [1] * 2
    )
    assert postprocess.semantic(logits, probs, GRID).labels.unique().tolist() == [1]
    nothing = postprocess.semantic(logits[:0], probs[:0], GRID, least_cover=0.05)
    assert nothing.labels.unique().tolist() == [-1] and nothing.segments == ()


def by_score(
    masks: Tensor,
    probs: list[list[float]],
    is_thing: list[bool],
    overlap: float = 0.5,
    part_share: float | None = 0.9,
) -> list[list[int | None]]:
    """The first row of the map, and the proposal, class and area of every segment."""
    scores = torch.tensor(probs)
    found = postprocess.panoptic_by_score(
        masks,
        scores,
        1 - scores.sum(1),
        torch.tensor(is_thing),
        GRID,
        overlap_threshold=overlap,
        part_share=part_share,
    )
    assert [s.area for s in found.segments] == [int((found.ids == i + 1).sum()) for i in range(len(found.segments))]
    return [found.ids[0].tolist(), *[[s.proposal, s.class_index, s.area] for s in found.segments]]


def test_overlapping_masks_are_laid_down_by_score() -> None:
    window, house, street = (2, 5), (0, 8), (7, 10)
    masks = blocks(house, window, street)
    probs = [[0.8, 0.1, 0.1], [0.05, 0.95, 0.0], [0.2, 0.1, 0.7]]
    assert by_score(masks, probs, [True] * 3) == [[2, 2, 1, 1, 1, 2, 2, 2, 3, 3], [1, 1, 12], [0, 0, 20], [2, 2, 8]]
    # The rule for competing masks leaves a hole where the house was: it lost more than a fifth to its window.
    scores = torch.tensor(probs)
    rivals = postprocess.panoptic(masks, scores, 1 - scores.sum(1), torch.tensor([True] * 3), GRID)
    assert rivals.ids[0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]


def test_a_mask_that_keeps_too_little_gives_way_to_the_next() -> None:
    masks = blocks((0, 6), (1, 8), (6, 10))  # the second is most of the first again
    probs = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]
    assert by_score(masks, probs, [True, True]) == [[1] * 6 + [2] * 4, [0, 0, 24], [2, 1, 16]]
    assert by_score(masks, probs, [True, True], overlap=0.0)[0] == [1] * 6 + [2] * 2 + [3] * 2
    assert by_score(blocks((0, 6), (2, 4)), [[0.9, 0.1], [0.8, 0.2]], [True, True], overlap=0.0)[1:] == [[0, 0, 24]]


def test_stuff_of_one_class_is_one_segment_and_its_parts_lose_nothing_to_each_other() -> None:
    masks = blocks((0, 6), (1, 8))
    probs = [[0.9, 0.1], [0.8, 0.2]]
    assert by_score(masks, probs, [False, True], overlap=0.9) == [[1] * 8 + [0] * 2, [None, 0, 32]]


def test_parts_of_a_thing_are_not_things_of_their_own() -> None:
    door, wheel, car, bus = (1, 3), (4, 6), (0, 8), (5, 10)
    masks = blocks(door, wheel, car, bus)
    probs = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]
    both = [True, True]
    # The door and the wheel join the car; of the bus too little is left.
    assert by_score(masks, probs, both, overlap=0.5) == [[1] * 8 + [0] * 2, [2, 0, 32]]
    assert by_score(masks, probs, both, overlap=0.5, part_share=None) == [
        [3, 1, 1, 3, 2, 2, 3, 3, 0, 0],
        [0, 0, 8],
        [1, 0, 8],
        [2, 0, 16],
    ]
    # A driver is no part of it, nor is a car that only touches it.
    other = [[0.1, 0.9], *probs[1:]]
    assert by_score(masks, other, both, overlap=0.5)[0] == [2, 1, 1, 2, 2, 2, 2, 2, 0, 0]
    beside = blocks((0, 4), (3, 10))
    assert by_score(beside, [[0.9, 0.1], [0.8, 0.2]], both, overlap=0.5)[0] == [1] * 4 + [2] * 6
    # Five people are more than half of their group: they stay, and it goes.
    group = blocks((0, 3), (3, 6), (0, 10))
    assert len(by_score(group, [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], both)) == 3


def test_void_and_weak_masks_are_not_laid_down() -> None:
    masks, probs = blocks((0, 5), (5, 10)), torch.tensor([[0.4], [0.7]])
    ids = postprocess.panoptic_by_score(masks, probs, 1 - probs[:, 0], torch.tensor([True]), GRID).ids
    assert ids[0].tolist() == [0] * 5 + [1] * 5
    strict = postprocess.panoptic_by_score(masks, probs, torch.zeros(2), torch.tensor([True]), GRID, 0.5)
    assert strict.ids[0].tolist() == [0] * 5 + [1] * 5
    assert postprocess.panoptic_by_score(masks[:0], probs[:0], probs[:0, 0], torch.tensor([True]), GRID).segments == ()


def test_soft_masks_are_laid_down_as_panoptic_reads_them() -> None:
    mask_logits, probs = random_case(queries=3, classes=4)
    frame, is_thing = FRAMES[0], torch.tensor([True] * 4)
    on = dense_probs(mask_logits, frame, "output") >= 0.5
    found = postprocess.panoptic_by_score(mask_logits, probs[:, :-1], torch.zeros(3), is_thing, frame, 0.0, 0.0)
    best = found.segments[0].proposal
    assert torch.equal(found.ids == 1, on[best]) and torch.equal(found.ids > 0, on.any(0))


def test_every_mask_is_named_once() -> None:
    masks = blocks((0, 6), (1, 8), (2, 2), (9, 10))
    probs = torch.tensor([[0.6, 0.4], [0.2, 0.8], [0.5, 0.5], [0.0, 0.0]])
    found = postprocess.best_class_each(masks, probs, 1 - probs.sum(1), GRID)
    assert [(s.proposal, s.class_index, s.area) for s in found.segments] == [(1, 1, 28), (0, 0, 24)]
    assert torch.equal(found.masks, masks[[1, 0]])
    assert [s.score for s in found.segments] == pytest.approx([0.8, 0.6])
    assert postprocess.best_class_each(masks[2:], probs[2:], torch.ones(2), GRID).masks.shape == (0, 4, 10)


def test_which_masks_paint() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.2, 0.6], [0.0, 0.0]])
    assert masks_that_paint(probs).tolist() == [True, False, True, False, False]
    # Above 0.8 times the best: 0.72 for the first word, 0.56 for the second.
    assert masks_that_paint(probs, 0.8).tolist() == [True, True, True, True, False]
    assert masks_that_paint(probs, 0.88).tolist() == [True, True, True, False, False]
    assert masks_that_paint(probs, competing=1).tolist() == [True, False, False, False, False]
    assert masks_that_paint(probs[:0]).shape == (0,) and masks_that_paint(probs[:0], 0.5).shape == (0,)


def test_painted_pixels_have_the_class_with_most_votes_and_the_others_none() -> None:
    frame = Frame((1, 4), (1, 4), (1, 4))
    # The first two are the best of a word each, and meet on the second pixel; the third is nobody's best.
    logits = torch.tensor([[[0.5, 0.5, -9.0, -9.0]], [[-9.0, 9.0, -0.5, -9.0]], [[9.0, 9.0, 9.0, 9.0]]])
    probs = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    assert painted(logits, probs, frame).labels.tolist() == [[0, 0, NO_CLASS, NO_CLASS]]
    assert painted(logits, probs, frame, threshold=0.35).labels.tolist() == [[0, 0, 1, NO_CLASS]]
    assert painted(logits, probs, frame, threshold=0.7).labels.tolist() == [[NO_CLASS, 1, NO_CLASS, NO_CLASS]]
    # A word that only competes paints nothing, but wins pixels.
    weak = torch.tensor([[0.4, 0.6], [0.3, 0.7], [0.1, 0.9]])
    assert painted(logits, weak, frame, competing=1).labels.tolist() == [[1, 1, NO_CLASS, NO_CLASS]]
    nothing = painted(logits, torch.zeros(3, 2), frame, threshold=1.0)
    assert nothing.segments == () and (nothing.labels == NO_CLASS).all()


def test_painted_masks_are_hard_before_they_are_resized() -> None:
    # Canvas 2, output 4: a hard edge between the pixels spreads over the two in the middle.
    logits = torch.tensor([[[9.0, -0.1]]])
    labels = painted(logits, torch.ones(1, 1), Frame((1, 2), (1, 2), (1, 4))).labels
    assert labels.tolist() == [[0, 0, 0, NO_CLASS]]
    hard = torch.tensor([[[True, False, False, False]]])
    assert painted(hard, torch.ones(1, 1), Frame((1, 2), (1, 2), (1, 4))).labels.tolist() == [[0, -1, -1, -1]]

"""Post-processing against plain dense computations, and hand-worked masks."""

import pytest
import torch
from torch import Tensor

from lexiseg import postprocess
from lexiseg.geometry import resize
from lexiseg.postprocess import Frame

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


def dense_probs(mask_logits: Tensor, frame: Frame, probs_at_canvas: bool) -> Tensor:
    """[Q, H, W]: the whole thing at once, with the framework's interpolation."""
    masks = resize(mask_logits[None], frame.canvas_hw)
    masks = masks.sigmoid() if probs_at_canvas else masks
    masks = resize(masks[..., : frame.picture_hw[0], : frame.picture_hw[1]], frame.output_hw)[0]
    return masks if probs_at_canvas else masks.sigmoid()


@pytest.fixture(params=[1, 500, 16_000_000])
def strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postprocess, "STRIP_FLOATS", request.param)
    monkeypatch.setattr(postprocess, "BLOCK_FLOATS", max(1, request.param // 3))


@pytest.mark.parametrize("frame", FRAMES, ids=str)
@pytest.mark.parametrize("probs_at_canvas", [True, False])
def test_semantic_in_strips_is_the_dense_arg_max(strips: None, frame: Frame, probs_at_canvas: bool) -> None:
    mask_logits, probs = random_case()
    class_probs = probs[:, :-1]
    scores = torch.einsum("qk,qhw->khw", class_probs, dense_probs(mask_logits, frame, probs_at_canvas))
    result = postprocess.semantic(mask_logits, class_probs, frame, probs_at_canvas)
    torch.testing.assert_close(postprocess.semantic_scores(mask_logits, class_probs, frame, probs_at_canvas), scores)
    margin = scores.topk(2, dim=0).values.diff(dim=0).abs()[0]
    assert torch.equal(result.labels[margin > 1e-5], scores.argmax(0)[margin > 1e-5])
    assert (margin > 1e-5).float().mean() > 0.99
    assert [segment.class_index for segment in result.segments] == result.labels.unique().tolist()
    for segment in result.segments:
        region = result.labels == segment.class_index
        assert segment.area == int(region.sum())
        mean = scores[:, region].mean(1)
        torch.testing.assert_close(segment.class_scores, mean / mean.sum(), rtol=1e-3, atol=1e-5)


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
def test_panoptic_in_strips_is_the_rule_query_by_query(strips: None, thresholds: tuple[float, float]) -> None:
    mask_logits, probs = random_case(queries=14, classes=4)
    is_thing = [True, False, True, False]
    frame = FRAMES[0]
    result = postprocess.panoptic(mask_logits, probs[:, :-1], probs[:, -1], torch.tensor(is_thing), frame, *thresholds)
    ids, classes = dense_panoptic(dense_probs(mask_logits, frame, False), probs, is_thing, *thresholds)
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


def test_instances_rank_pairs_and_drop_stuff_after_the_selection(strips: None) -> None:
    mask_logits, probs = random_case(queries=6, classes=3)
    frame = FRAMES[2]
    masks = dense_probs(mask_logits, frame, False)
    everything = postprocess.instances(mask_logits, probs[:, :-1], frame, top=10)
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

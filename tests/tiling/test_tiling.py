"""Large photos in tiles: the same answers as in one piece, and no seams."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from lexiseg import tiling
from lexiseg.postprocess import Frame, SemanticView, semantic_scores
from lexiseg.segmenter import Segmenter
from lexiseg.tiling import PanopticView, Span, Tiling
from lexiseg.tiling.looking import Tile, ramp
from lexiseg.types import PanopticMap, Segment, SigmoidAt
from lexiseg.vocabulary import Vocabulary, VocabularyClass
from tests.colour_model import colour_model

REPOSITORY = Path(__file__).resolve().parent.parent.parent
WORDS = "red, green, blue"

Look = Callable[[Span, Span], PanopticView]


def three_bands(height: int, width: int) -> np.ndarray:
    """Red, green and blue thirds, side by side."""
    rgb = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        rgb[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 200
    return rgb


def expected_bands(height: int, width: int) -> np.ndarray:
    return three_bands(height, width).argmax(2)


@pytest.mark.parametrize(("length", "side", "overlap"), [(100, 100, 30), (101, 100, 30), (1000, 96, 32), (999, 64, 0)])
def test_tiles_cover_an_axis_and_share_the_overlap(length: int, side: int, overlap: int) -> None:
    spans = Tiling(side, overlap).along(length)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert max(stop - start for start, stop in spans) <= side
    assert len({stop - start for start, stop in spans}) <= 2
    assert [a[1] - b[0] for a, b in itertools.pairwise(spans)] == [overlap] * (len(spans) - 1)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[2:], strict=False))


def test_weights_of_all_tiles_are_one() -> None:
    spans = Tiling(100, 33).along(371)
    places = torch.arange(371) + 0.5
    total = sum(ramp(places, span, 33, 371) for span in spans)
    assert torch.allclose(torch.as_tensor(total), torch.ones(371))


@pytest.mark.parametrize(("side", "overlap"), [(10, 2), (96, 40), (96, -1)])
def test_bad_tiles_are_refused(side: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=r"too small to see|does not fit tiles of 96: use 0 to 32"):
        Tiling(side, overlap)


@pytest.mark.parametrize("sigmoid_at", ["grid", "canvas", "output"])
def test_parts_read_what_the_whole_reads(sigmoid_at: SigmoidAt) -> None:
    generator = torch.Generator().manual_seed(1)
    frame = Frame((64, 96), (60, 90), (81, 122))
    view = SemanticView(torch.randn(7, 16, 24, generator=generator), torch.rand(7, 5, generator=generator), frame)
    whole = semantic_scores(view.mask_logits, view.class_probs, frame, sigmoid_at)
    rows, columns = (200, 281), (1000, 1122)
    tile = Tile.seen(view, sigmoid_at, rows, columns, 20, (5000, 5000))
    torch.testing.assert_close(tile.scores(rows, columns), whole)
    part = tile.cut((261, 281), (1000, 1122))
    assert part.maps.shape[1] < 8
    torch.testing.assert_close(part.scores((265, 270), (1050, 1100)), whole[:, 65:70, 50:100])
    assert part.covers((265, 281), (1000, 1010))
    assert not part.covers((260, 281), (1000, 1010))


def test_scores_are_mixed_in_the_overlap() -> None:
    """Two tiles of opposite opinions: the border is where their weights meet, wherever the blocks are cut."""

    def look(rows: tuple[int, int], columns: tuple[int, int]) -> SemanticView:
        size = (rows[1] - rows[0], columns[1] - columns[0])
        probs = torch.tensor([[0.9, 0.1]]) if columns[0] == 0 else torch.tensor([[0.1, 0.5]])
        return SemanticView(torch.full((1, *size), 20.0), probs, Frame(size, size, size))

    found = tiling.semantic((64, 160), Tiling(96, 32, context=0), look)
    labels = found.labels.numpy()
    assert (labels == labels[0]).all()
    # 0.9 (1 - w) + 1/6 w against 0.1 (1 - w) + 5/6 w: equal at w = 6/11, which a raised cosine has after 0.529 of the
    # 32 pixels from 64 to 96
    assert int((labels[0] == 0).sum()) == 64 + 17
    assert [segment.area for segment in found.segments] == [64 * 81, 64 * 79]


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_photo_smaller_than_a_tile_is_not_cut(task: str) -> None:
    rgb = three_bands(60, 90)
    whole = Segmenter(colour_model(), "cpu")(rgb, WORDS, task)  # type: ignore[call-overload]
    tiled = Segmenter(colour_model(), "cpu", tiles=Tiling(96, 32))(rgb, WORDS, task)  # type: ignore[call-overload]
    assert np.array_equal(whole.label_map, tiled.label_map)
    assert whole.to_dict() == tiled.to_dict()


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_a_large_photo_has_no_seams(task: str) -> None:
    """Segments that go through many tiles are one, and the colours end where they end."""
    height, width = 500, 700
    segmenter = Segmenter(colour_model(), "cpu", tiles=Tiling(128, 24))
    result = segmenter(three_bands(height, width), WORDS, task)  # type: ignore[call-overload]
    assert result.label_map.dtype == np.uint8
    assert [segment.label for segment in sorted(result.segments, key=lambda s: s.label_index)] == [
        "red",
        "green",
        "blue",
    ]
    named = np.full(len(result.segments) + 1, -1)
    for segment in result.segments:
        named[segment.id] = segment.label_index
        assert segment.area == (result.label_map == segment.id).sum()
    wrong = named[result.label_map] != expected_bands(height, width)
    border = np.zeros(width, bool)
    for edge in (width // 3, 2 * width // 3):
        border[edge - 3 : edge + 3] = True
    assert not wrong[:, ~border].any()
    assert sum(result.shares.values()) == pytest.approx(1, abs=0.01)
    assert result.overlay().size == (width, height)


def true_look(truth: np.ndarray, classes: dict[int, int], count: int, blind: Callable[[int, int], bool]) -> Look:
    """A look that sees the truth on the grid of its tile, but for segments of which blind(side, value) is true."""

    def look(rows: Span, columns: Span) -> PanopticView:
        part = truth[slice(*rows), slice(*columns)].copy()
        side = columns[1] - columns[0]
        part[np.isin(part, [v for v in classes if blind(side, v)])] = 0
        present = [int(v) for v in np.unique(part) if v]
        masks = torch.from_numpy(np.stack([part == v for v in present] or [part < 0]).astype(np.float32) * 20 - 10)
        probs = torch.zeros(len(masks), count)
        for row, value in enumerate(present):
            probs[row, classes[value]] = 0.9
        ids = np.searchsorted([0, *present], part)
        segments = tuple(
            Segment(classes[v], 0.5 + columns[0] / 1000, int((part == v).sum()), torch.eye(count)[classes[v]])
            for v in present
        )
        view = SemanticView(masks, probs, Frame(part.shape, part.shape, part.shape))
        void = torch.zeros(len(masks))
        return PanopticView(tiling.with_void(view, void, 0.0), PanopticMap(torch.from_numpy(ids), segments))

    return look


@pytest.mark.parametrize("context", [0.0, 0.8])
def test_things_join_by_shape_and_stuff_by_class(context: float) -> None:
    """One long thing through three tiles, one in the second tile alone, stuff in the first and the last."""
    truth = np.zeros((64, 224), np.int32)
    truth[10:30, 20:200] = 1
    truth[40:60, 100:120] = 2
    truth[40:60, :30] = 3
    truth[40:60, 200:] = 3
    classes = {1: 0, 2: 0, 3: 1}
    look = true_look(truth, classes, 2, lambda side, value: False)
    found = tiling.panoptic(truth.shape, Tiling(96, 32, context), look, [True, False])
    ids = found.ids.numpy()
    assert sorted((s.class_index, s.area) for s in found.segments) == sorted(
        (classes[v], int((truth == v).sum())) for v in (1, 2, 3)
    )
    for value in (1, 2, 3):
        assert len(np.unique(ids[truth == value])) == 1
    assert not ids[truth == 0].any()
    (long,) = [s for s in found.segments if s.area == 20 * 180]
    assert 0.5 < long.score < 0.7
    torch.testing.assert_close(long.class_scores, torch.tensor([1.0, 0.0]))


def test_a_thing_that_the_whole_look_sees_is_one_though_tiles_see_parts_of_it() -> None:
    """Tiles see the two ends of a bus, with nothing in common that could join them; a coarse look sees all of it."""
    truth = np.zeros((64, 224), np.int32)
    truth[10:40, 10:80] = 1
    truth[10:40, 130:220] = 2
    classes = {1: 0, 2: 0}
    bus = (truth > 0).astype(np.int32)
    bus[10:40, 80:130] = 1

    def look(rows: Span, columns: Span) -> PanopticView:
        seen = bus if columns == (0, 224) else truth
        return true_look(seen, classes, 1, lambda side, value: False)(rows, columns)

    assert len(tiling.panoptic(truth.shape, Tiling(96, 16, context=0), look, [True]).segments) == 2
    found = tiling.panoptic(truth.shape, Tiling(96, 16, context=1), look, [True])
    assert len(found.segments) == 1


def test_small_things_that_only_tiles_see_are_there_and_keep_apart() -> None:
    truth = np.zeros((96, 400), np.int32)
    truth[:] = 3
    truth[40:50, 30:40] = 1
    truth[40:50, 44:54] = 2
    classes = {1: 0, 2: 0, 3: 1}
    look = true_look(truth, classes, 2, lambda side, value: side == 400 and value < 3)
    found = tiling.panoptic(truth.shape, Tiling(96, 16), look, [True, False])
    assert sorted((s.class_index, s.area) for s in found.segments) == [(0, 100), (0, 100), (1, 96 * 400 - 200)]


def test_pixels_that_no_mask_is_on_have_no_segment() -> None:
    truth = np.zeros((64, 224), np.int32)
    truth[20:40, 50:150] = 1
    look = true_look(truth, {1: 0}, 1, lambda side, value: False)
    found = tiling.panoptic(truth.shape, Tiling(96, 16), look, [False])
    assert np.array_equal(found.ids.numpy() > 0, truth > 0)


def opinions(seed: int) -> Callable[[Span, Span], SemanticView]:
    """All looks see the same discs; every tile has, besides, an opinion of its own on all that it shows."""
    height, width = 512, 768
    y, x = np.mgrid[:height, :width]
    discs = ((x % 96 - 48) ** 2 + (y % 96 - 48) ** 2 < 30**2).astype(np.float32)

    def look(rows: Span, columns: Span) -> SemanticView:
        size = (rows[1] - rows[0], columns[1] - columns[0])
        inside = torch.from_numpy(discs[slice(*rows), slice(*columns)]) * 20 - 10
        own = torch.rand(1, 3, generator=torch.Generator().manual_seed(seed + rows[0] * 1000 + columns[0]))
        own *= size != (height, width)
        probs = torch.cat([torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.4, 0.5]]), own])
        masks = torch.stack([inside, -inside, torch.full(size, 10.0)])
        return SemanticView(masks, probs, Frame(size, size, size))

    return look


def seam_index(labels: np.ndarray, tiling: Tiling) -> float:
    """How much denser label changes are in the middles of the overlaps than elsewhere; one where there are no seams."""
    near, far = [], []
    for axis, change in ((1, labels[:, 1:] != labels[:, :-1]), (0, labels[1:] != labels[:-1])):
        spans = tiling.along(labels.shape[axis])
        middles = [(a[1] + b[0]) / 2 for a, b in itertools.pairwise(spans)]
        at = np.arange(change.shape[axis])
        band = np.any([abs(at - middle) < tiling.overlap / 4 for middle in middles], axis=0)
        density = change.mean(1 - axis)
        near.append(density[band].mean())
        far.append(density[~band].mean())
    return float(np.mean(near) / max(np.mean(far), 1e-6))


def test_tiles_that_disagree_leave_no_seams() -> None:
    """Of plain tiles the borders are the first thing one sees; with coarser looks there are none to be measured."""
    alone, around = Tiling(128, 24, context=0), Tiling(128, 24)
    plain, mixed = (tiling.semantic((512, 768), one, opinions(seed=1)).labels.numpy() for one in (alone, around))
    whole = opinions(seed=1)((0, 512), (0, 768))
    true = (whole.mask_logits[0] < 0).numpy() + 1
    assert seam_index(plain, alone) > 3
    assert seam_index(mixed, around) < 1.15
    assert (plain != true).mean() > 0.2
    assert (mixed != true).mean() < 0.02


def wall(seed: int) -> Look:
    """A wall with windows. What coarse looks see; small tiles see the windows, and of the wall what they like: all of
    it, nothing, or a part that ends in the middle of the tile or at its border.
    """
    height, width = 512, 768
    y, x = np.mgrid[:height, :width]
    windows = (x % 96 - 48) ** 2 + (y % 96 - 48) ** 2 < 20**2
    of_window = ndimage.label(windows)[0]

    def look(rows: Span, columns: Span) -> PanopticView:
        part = (slice(*rows), slice(*columns))
        size = (rows[1] - rows[0], columns[1] - columns[0])
        rng = np.random.default_rng([seed, *rows, *columns])
        ends = rng.integers(size[1] // 2, size[1]) if columns[1] - columns[0] < 200 else size[1]
        found = (~windows[part]) & (np.arange(size[1]) < ends)
        seen = bool(rng.random() < 0.6) or size[1] >= 200
        masks = torch.from_numpy(np.stack([windows[part], found]).astype(np.float32) * 20 - 10)
        probs, void = torch.tensor([[0.1, 0.8], [0.6, 0.1]]), torch.tensor([0.1, 0.3 if seen else 0.7])
        view = SemanticView(masks, probs, Frame(size, size, size))
        ids, segments = np.zeros(size, np.int32), []
        if seen:
            ids[found] = 1
            segments.append(Segment(0, 0.6, int(found.sum()), probs[1]))
        for window in np.unique(of_window[part])[1:]:
            inside = of_window[part] == window
            segments.append(Segment(1, 0.8, int(inside.sum()), probs[0]))
            ids[inside] = len(segments)
        return PanopticView(tiling.with_void(view, void, 0.0), PanopticMap(torch.from_numpy(ids), tuple(segments)))

    return look


@pytest.mark.parametrize("seed", range(4))
def test_segments_end_where_no_tile_does(seed: int) -> None:
    """Neither where one of two neighbours finds nothing, nor where each takes a piece of the wall for a thing."""
    size, one = (512, 768), Tiling(128, 24)
    found = tiling.panoptic(size, one, wall(seed), [True, True])
    ids = found.ids.numpy()
    assert seam_index(ids, one) < 1.1
    assert (ids == 0).mean() < 0.01
    assert sorted(segment.class_index for segment in found.segments) == [0] + [1] * 48


def test_pieces_that_meet_at_the_border_of_a_tile_are_one_thing() -> None:
    """The left tile sees a thing end early, the right one another shape: they are not alike, but go on in each other.

    Two that do not reach each other are apart.
    """

    def look(rows: Span, columns: Span) -> PanopticView:
        truth = np.zeros((96, 160), np.int32)
        if columns[0] == 0:
            truth[10:50, 20:90] = 1
            truth[10:20, 70:96] = 1
            truth[60:90, 20:76] = 2
        else:
            truth[14:50, 76:150] = 1
            truth[52:90, 84:150] = 2
        return true_look(truth, {1: 0, 2: 0}, 1, lambda side, value: False)(rows, columns)

    found = tiling.panoptic((96, 160), Tiling(96, 32, context=0), look, [True])
    assert len(found.segments) == 3
    ids = found.ids.numpy()
    assert ids[30, 30] == ids[30, 140]
    assert ids[70, 30] != ids[70, 140]


@pytest.mark.parametrize(("ends", "begins", "things"), [(222, 226, 1), (204, 244, 2)])
def test_masks_may_end_a_little_before_their_tile(ends: int, begins: int, things: int) -> None:
    """What two tiles show ends by a pixel of a mask before the line that parts them, or really before it."""

    def look(rows: Span, columns: Span) -> PanopticView:
        truth = np.zeros((96, 448), np.int32)
        if columns[0] == 0:
            truth[20:70, 20:ends] = 1
        else:
            truth[20:70, begins:430] = 1
        return true_look(truth, {1: 0}, 1, lambda side, value: False)(rows, columns)

    assert len(tiling.panoptic((96, 448), Tiling(256, 64, context=0), look, [True]).segments) == things


def test_connected_pixels_belong_to_the_thing_beside_them_however_far() -> None:
    """Small tiles see a wall at its left end only; the rest has its class, and no tile's border in it."""
    truth = np.zeros((96, 600), np.int32)
    truth[20:80, 10:590] = 1

    def look(rows: Span, columns: Span) -> PanopticView:
        view = true_look(truth, {1: 0}, 1, lambda side, value: False)(rows, columns)
        if columns[0] > 0 or columns[1] - columns[0] > 96:
            return PanopticView(view.scores, PanopticMap(torch.zeros_like(view.segments.ids), ()))
        return view

    found = tiling.panoptic(truth.shape, Tiling(96, 16), look, [True])
    assert [segment.area for segment in found.segments] == [int((found.ids > 0).sum())]
    assert (found.ids.numpy() > 0)[truth > 0].mean() > 0.95


def test_what_no_look_shows_in_one_piece_is_a_thing_if_it_is_large() -> None:
    truth = np.zeros((96, 400), np.int32)
    truth[20:80, 10:390] = 1
    view = true_look(truth, {1: 0}, 1, lambda side, value: False)

    def look(rows: Span, columns: Span) -> PanopticView:
        seen = view(rows, columns)
        return PanopticView(seen.scores, PanopticMap(torch.zeros_like(seen.segments.ids), ()))

    (thing,) = tiling.panoptic(truth.shape, Tiling(96, 16), look, [True]).segments
    assert thing.area > 0.99 * 60 * 380
    assert thing.score == pytest.approx(1, abs=0.01)


def test_what_tiles_cannot_do_is_said() -> None:
    segmenter = Segmenter(colour_model(), "cpu", tiles=Tiling(96, 32))
    rgb = three_bands(200, 200)
    with pytest.raises(ValueError, match="not joined across tiles"):
        segmenter(rgb, WORDS, "instance")
    with pytest.raises(ValueError, match="given masks are of the whole photo"):
        segmenter(rgb, WORDS, masks=np.ones((1, 200, 200), bool))
    with pytest.raises(ValueError, match="a single whole look"):
        Segmenter(colour_model(), "cpu", augmented=True, tiles=Tiling())


def test_stuff_of_distant_tiles_is_one_segment() -> None:
    vocabulary = Vocabulary((VocabularyClass(("red",), is_thing=False), VocabularyClass(("blue",), is_thing=False)))
    rgb = np.zeros((100, 400, 3), np.uint8)
    rgb[..., 2] = 200
    rgb[:, :60] = rgb[:, -60:] = (200, 0, 0)
    result = Segmenter(colour_model(), "cpu", tiles=Tiling(96, 24))(rgb, vocabulary, "panoptic")
    assert sorted(segment.label for segment in result.segments) == ["blue", "red"]


_LARGE = """
import json, resource, sys
import numpy as np
from PIL import Image
from lexiseg.segmenter import Segmenter
from lexiseg.tiling import PanopticView, Span, Tiling
from tests.colour_model import colour_model

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

folder, before = sys.argv[1], peak()
bands = Image.new("RGB", (3, 1))
bands.putdata([(200, 0, 0), (0, 200, 0), (0, 0, 200)])
bands.resize((8000, 6000), Image.Resampling.NEAREST).save(f"{folder}/large.png", compress_level=1)
result = Segmenter(colour_model(), "cpu", tiles=Tiling(2048, 256))(f"{folder}/large.png", "red, green, blue")
result.save(folder)
wrong = result.label_map[:, [1000, 4000, 7000]] != [0, 1, 2]
print(json.dumps({"more_mb": peak() - before, "wrong": int(wrong.sum()), "shares": result.shares}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its Python does not tell the peak memory")
def test_48_megapixels_take_little_more_than_the_photo_itself(tmp_path: Path) -> None:
    """Read, segmented and saved: the photo is 144 MB, the labels are 48, a picture of Pillow is 192."""
    command = [sys.executable, "-c", _LARGE, str(tmp_path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == 0
    assert all(share == pytest.approx(1 / 3, abs=0.01) for share in told["shares"].values())
    assert told["more_mb"] < 600, told

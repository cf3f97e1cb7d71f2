"""Large photos in tiles: the same answers as in one piece, and no seams."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg import tiling
from lexiseg.postprocess import Frame, SemanticView, semantic_scores
from lexiseg.segmenter import Segmenter
from lexiseg.tiling import Tiling
from lexiseg.types import PanopticMap, Segment, SigmoidAt
from lexiseg.vocabulary import Vocabulary, VocabularyClass
from tests.colour_model import colour_model

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = "red, green, blue"


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
    total = sum(torch.nn.functional.pad(tiling._ramp(span, span, 33, 371), (span[0], 371 - span[1])) for span in spans)
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
    tile = tiling._Tile.seen(view, sigmoid_at, rows, columns, 20, (5000, 5000))
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

    found = tiling.semantic((64, 160), Tiling(96, 32), look)
    labels = found.labels.numpy()
    assert (labels == labels[0]).all()
    # 0.9 (1 - w) + 0.1 w against 0.1 (1 - w) + 0.5 w: equal at w = 2 / 3 of the 32 pixels from 64 to 96
    assert int((labels[0] == 0).sum()) == 64 + 21
    assert [segment.area for segment in found.segments] == [64 * 85, 64 * 75]


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
    assert result.label_map.dtype == (np.uint8 if task == "semantic" else np.int16)
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


def test_things_join_by_shape_and_stuff_by_class() -> None:
    """One long thing through three tiles, one in the second tile alone, stuff in the first and the last."""
    truth = np.zeros((64, 224), np.int32)
    truth[10:30, 20:200] = 1
    truth[40:60, 100:120] = 2
    truth[40:60, :30] = 3
    truth[40:60, 200:] = 3
    classes = {1: 0, 2: 0, 3: 1}

    def look(rows: tuple[int, int], columns: tuple[int, int]) -> PanopticMap:
        part = truth[slice(*rows), slice(*columns)]
        present = [int(v) for v in np.unique(part) if v]
        ids = np.zeros_like(part)
        segments = []
        for number, value in enumerate(present, start=1):
            ids[part == value] = number
            area = int((part == value).sum())
            segments.append(Segment(classes[value], 0.5 + columns[0] / 1000, area, torch.eye(2)[classes[value]]))
        return PanopticMap(torch.from_numpy(ids), tuple(segments))

    found = tiling.panoptic(truth.shape, Tiling(96, 32), look, [True, False])
    ids = found.ids.numpy()
    assert len(found.segments) == 3
    assert sorted((s.class_index, s.area) for s in found.segments) == sorted(
        (classes[v], int((truth == v).sum())) for v in (1, 2, 3)
    )
    for value in (1, 2, 3):
        assert len(np.unique(ids[truth == value])) == 1
    assert not ids[truth == 0].any()
    (long,) = [s for s in found.segments if s.area == 20 * 180]
    assert 0.5 < long.score < 0.7
    torch.testing.assert_close(long.class_scores, torch.tensor([1.0, 0.0]))


def test_where_a_tile_finds_nothing_its_neighbour_counts() -> None:
    def look(rows: tuple[int, int], columns: tuple[int, int]) -> PanopticMap:
        ids = torch.full((rows[1] - rows[0], columns[1] - columns[0]), int(columns[0] == 0), dtype=torch.int32)
        return PanopticMap(ids, (Segment(0, 0.9, ids.numel(), torch.ones(1)),) if columns[0] == 0 else ())

    found = tiling.panoptic((64, 160), Tiling(96, 32), look, [True])
    assert found.segments[0].area == 64 * 96


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
from lexiseg.tiling import Tiling
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

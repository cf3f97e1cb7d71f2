"""Results and the files made of them, read back by the tools they are for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from lexiseg.results import PackedMask, Result, file_stem, make_result
from lexiseg.types import InstanceMasks, PanopticMap, Segment, SemanticMap
from lexiseg.vocabulary import Vocabulary, VocabularyClass

WORDS = Vocabulary(
    (
        VocabularyClass(("sky", "heavens"), is_thing=False),
        VocabularyClass(("car", "automobile")),
        VocabularyClass(("tree",), is_thing=False, color=(0, 200, 0)),
    )
)


def photo(height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def segment(class_index: int, score: float, area: int) -> Segment:
    scores = torch.full((3,), 0.05)
    scores[class_index] = score
    return Segment(class_index, score, area, scores)


def semantic() -> Result:
    labels = torch.zeros(12, 16, dtype=torch.long)
    labels[6:, 4:9] = 2
    return make_result(SemanticMap(labels, (segment(0, 0.9, 162), segment(2, 0.7, 30))), WORDS, photo(), "a/b c.jpg")


def panoptic(min_score: float = 0.0) -> Result:
    ids = torch.zeros(12, 16, dtype=torch.int32)
    ids[:4] = 1
    ids[6:9, 2:5] = 2
    ids[6:9, 8:12] = 3
    segments = (segment(0, 0.9, 64), segment(1, 0.2, 9), segment(1, 0.6, 12))
    return make_result(PanopticMap(ids, segments), WORDS, photo(), "b.png", min_score=min_score)


def instances() -> Result:
    masks = torch.zeros(4, 12, 16, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    masks[1, 0:8, 0:8] = True
    masks[2, 3:5, 3:5] = True  # wholly under the first
    found = (segment(1, 0.9, 16), segment(1, 0.8, 64), segment(2, 0.7, 4), segment(1, 0.6, 0))
    return make_result(InstanceMasks(masks, found), WORDS, photo(), "c")


def test_semantic_result() -> None:
    result = semantic()
    assert result.task == "semantic"
    assert result.label_map.dtype == np.int32
    assert [s.label for s in result.segments] == ["sky", "tree"]
    tree = result.segments[1]
    assert (tree.id, tree.label_index, tree.area, tree.box_xyxy, tree.is_thing) == (2, 2, 30, (4, 6, 9, 12), False)
    assert tree.share == 30 / 192
    assert tree.mask.sum() == 30
    assert tree.mask[6:, 4:9].all()
    assert sorted(word for word, _ in tree.top) == ["car", "sky", "tree"]
    assert tree.top[0] == ("tree", pytest.approx(0.7))
    assert result.shares == {"sky": 162 / 192, "tree": 30 / 192}


def test_panoptic_result() -> None:
    result = panoptic()
    assert [s.id for s in result.segments] == [1, 2, 3]
    assert [s.box_xyxy for s in result.segments] == [(0, 0, 16, 4), (2, 6, 5, 9), (8, 6, 12, 9)]
    assert result.shares["car"] == 21 / 192
    assert sum(result.shares.values()) < 1  # nobody claims the rest


def test_low_scores_are_left_out_and_ids_stay_dense() -> None:
    result = panoptic(min_score=0.5)
    assert [(s.id, s.label, s.area) for s in result.segments] == [(1, "sky", 64), (2, "car", 12)]
    for entry in result.segments:
        assert entry.mask.sum() == entry.area
    assert sorted(np.unique(result.label_map)) == [0, 1, 2]
    assert result.label_map[7, 3] == 0


def test_instance_result_keeps_overlapping_masks() -> None:
    result = instances()
    assert [s.area for s in result.segments] == [16, 64, 4]  # the empty one is gone
    assert [int(s.mask.sum()) for s in result.segments] == [16, 64, 4]
    assert result.segments[1].box_xyxy == (0, 0, 8, 8)
    assert result.label_map[3, 3] == 1
    assert result.label_map[0, 0] == 2
    assert result.shares == {"car": 64 / 192}


@pytest.mark.parametrize("make", [semantic, panoptic, instances])
def test_save(tmp_path: Path, make: object) -> None:
    result = make()
    paths = result.save(tmp_path / "new" / "folder")
    stem = file_stem(result.photo)
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        f"{stem}.json",
        f"{stem}.labels.png",
        f"{stem}.overlay.png",
    ]
    with Image.open(paths["labels"]) as labels:
        assert labels.mode == "L"
        assert np.array_equal(np.array(labels), result.label_map)
    written = json.loads(paths["json"].read_text(encoding="utf-8"))
    assert (written["height"], written["width"], written["task"]) == (12, 16, result.task)
    assert [s["label"] for s in written["segments"]] == [s.label for s in result.segments]
    assert written["words"][1] == {"index": 1, "label": "car", "synonyms": ["automobile"], "is_thing": True}
    with Image.open(paths["overlay"]) as overlay:
        assert overlay.width * 12 == overlay.height * 16
    assert result.save(tmp_path, stem="other")["json"] == tmp_path / "other.json"


def test_labels_have_sixteen_bits_above_255_classes(tmp_path: Path) -> None:
    def result(count: int) -> Result:
        words = Vocabulary(tuple(VocabularyClass((f"w{i}",)) for i in range(count)))
        labels = torch.full((4, 4), count - 1)
        return make_result(
            SemanticMap(labels, (Segment(count - 1, 0.5, 16, torch.ones(count) / count),)), words, photo(4, 4), "a"
        )

    for count, mode in ((255, "L"), (256, "I;16"), (847, "I;16")):
        paths = result(count).save(tmp_path / str(count))
        with Image.open(paths["labels"]) as labels:
            assert labels.mode == mode
            assert np.array(labels).max() == count - 1


# pycocotools 2.0 asks numpy for copies in an old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("make", [semantic, panoptic, instances])
def test_coco_form_is_read_by_pycocotools(tmp_path: Path, make: object, capsys: pytest.CaptureFixture[str]) -> None:
    result = make()
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(result.to_coco(image_id=7)))
    coco = COCO(str(path))
    capsys.readouterr()
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[7]))
    assert len(annotations) == len(result.segments)
    for annotation, entry in zip(annotations, result.segments, strict=True):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), entry.mask)
        assert annotation["area"] == entry.area == rle_tools.area(annotation["segmentation"])
        left, top, width, height = annotation["bbox"]
        assert (left, top, left + width, top + height) == entry.box_xyxy
        assert coco.loadCats([annotation["category_id"]])[0]["name"] == entry.label
    assert coco.loadImgs([7])[0]["file_name"] == Path(result.photo).name


@pytest.mark.parametrize("make", [semantic, panoptic, instances])
def test_panoptic_png(make: object) -> None:
    result = make()
    picture, info = result.to_panoptic_png()
    rgb = np.array(picture).astype(int)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    assert {entry["id"] for entry in info} == set(np.unique(ids)) - {0}
    for entry in info:
        here = ids == entry["id"]
        assert entry["area"] == here.sum()
        left, top, width, height = entry["bbox"]
        assert here[top : top + height, left : left + width].sum() == entry["area"]
    json.dumps(info)


def test_label_pictures_end_at_sixteen_bits() -> None:
    ids = torch.arange(1, 90_001, dtype=torch.int32).view(300, 300)
    result = make_result(PanopticMap(ids, (segment(1, 0.5, 1),)), WORDS, photo(300, 300), "a")
    with pytest.raises(ValueError, match="16-bit"):
        result.labels_png()


def test_transformers_form() -> None:
    form = panoptic().to_transformers()
    assert form["segmentation"].shape == (12, 16)
    assert form["segmentation"].dtype == torch.int32
    assert [(s["id"], s["label_id"], s["was_fused"]) for s in form["segments_info"]] == [
        (1, 0, True),
        (2, 1, False),
        (3, 1, False),
    ]


def test_file_stem() -> None:
    assert file_stem("a/b c.tar.jpg") == "b c.tar"
    assert file_stem("image 3") == "image 3"
    assert file_stem("a?b*.png") == "a_b_"
    assert file_stem("") == "photo"
    assert file_stem("..") == "photo"


def test_photo_with_nothing_found() -> None:
    result = make_result(PanopticMap(torch.zeros(9, 9, dtype=torch.int32), ()), WORDS, photo(9, 9), "a")
    assert result.segments == ()
    assert result.shares == {}
    assert result.to_coco()["annotations"] == []
    assert result.to_panoptic_png()[1] == []
    result.overlay()
    none = make_result(InstanceMasks(torch.zeros(0, 9, 9, dtype=torch.bool), ()), WORDS, photo(9, 9), "a")
    assert none.label_map.shape == (9, 9)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_packed_masks(share: float) -> None:
    mask = np.random.default_rng(1).random((9, 13)) < share
    assert np.array_equal(PackedMask.pack(mask).unpack(), mask)


def test_pixels_without_a_class(tmp_path: Path) -> None:
    labels = torch.full((12, 16), -1)
    labels[6:, 4:9] = 2
    result = make_result(SemanticMap(labels, (segment(2, 0.7, 30),)), WORDS, photo(), "a.jpg")
    assert result.shares == {"tree": 30 / 192}
    assert set(np.unique(result.labels_png())) == {2, 255}
    picture, info = result.to_panoptic_png()
    assert set(np.unique(np.array(picture)[..., 0])) == {0, 3} and [entry["id"] for entry in info] == [3]
    # Drawn as the photo itself, where a result that gives every pixel a class is drawn all over.
    drawn = np.array(result.overlay().resize((16, 12), Image.Resampling.NEAREST))
    plain = np.array(result.overlay(opacity=0).resize((16, 12), Image.Resampling.NEAREST))
    assert np.array_equal(drawn[:4], plain[:4]) and not np.array_equal(drawn[7:11, 5:8], plain[7:11, 5:8])
    result.save(tmp_path)
    with Image.open(tmp_path / "a.labels.png") as saved:
        assert saved.getextrema() == (2, 255)


def test_segments_tell_which_of_the_given_masks_they_are() -> None:
    masks = torch.ones(2, 12, 16, dtype=torch.bool)
    scores = torch.tensor([0.1, 0.8, 0.1])
    found = (Segment(1, 0.8, 192, scores, 1), Segment(1, 0.7, 192, scores))
    result = make_result(InstanceMasks(masks, found), WORDS, photo(), "a.jpg", mask_ids=(70, 12))
    assert [segment.mask_id for segment in result.segments] == [12, None]
    assert [entry.get("mask_id") for entry in result.to_dict()["segments"]] == [12, None]
    assert all(segment.mask_id is None for segment in panoptic().segments)

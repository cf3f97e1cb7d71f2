"""Objects of other libraries, made of results: supervision's, FiftyOne's, transformers'."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.results import Result
from tests.formats.some_photos import HEIGHT, RESULTS, WIDTH, instances, nothing, panoptic, semantic, shapes


@pytest.mark.parametrize("make", RESULTS)
def test_supervision(make: object) -> None:
    supervision = pytest.importorskip("supervision")
    result: Result = make()
    found = result.to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == len(result.segments)
    assert np.array_equal(found.mask, np.stack([segment.mask for segment in result.segments]))
    assert found.area.tolist() == [segment.area for segment in result.segments]
    assert found.xyxy.tolist() == [list(segment.box_xyxy) for segment in result.segments]
    assert found["class_name"].tolist() == [segment.label for segment in result.segments]
    assert found.confidence == pytest.approx([segment.score for segment in result.segments])
    drawn = supervision.MaskAnnotator().annotate(result.rgb.copy(), found)
    assert (drawn != result.rgb).any(-1)[found.mask.any(0)].mean() > 0.9


def test_supervision_of_nothing() -> None:
    pytest.importorskip("supervision")
    assert len(nothing().to_supervision()) == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools 2.0
def test_supervision_reads_our_coco(tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision")
    result = panoptic("b.png")
    Image.fromarray(result.rgb).save(tmp_path / "b.png")
    (tmp_path / "coco.json").write_text(json.dumps(result.to_coco()))
    read = supervision.DetectionDataset.from_coco(str(tmp_path), str(tmp_path / "coco.json"), force_masks=True)
    found = read.annotations[str(tmp_path / "b.png")]
    assert np.array_equal(found.mask, np.stack([segment.mask for segment in result.segments]))
    assert [read.classes[index] for index in found.class_id] == [segment.label for segment in result.segments]


def test_transformers() -> None:
    """The same keys and values as its own post-processing gives for the same masks."""
    processing = pytest.importorskip("transformers.models.mask2former.image_processing_mask2former")
    outputs = processing.Mask2FormerImageProcessor()

    class Made:
        class_queries_logits = torch.full((1, 3, 4), -20.0)
        masks_queries_logits = torch.where(shapes(), 20.0, -20.0)[None]

    for query, index in enumerate((1, 1, 2)):
        Made.class_queries_logits[0, query, index] = 20.0
    (theirs,) = outputs.post_process_panoptic_segmentation(
        Made, label_ids_to_fuse={0, 2}, target_sizes=[(HEIGHT, WIDTH)], mask_threshold=0.5
    )
    ours = panoptic().to_transformers()
    assert ours.keys() == theirs.keys()
    assert ours["segmentation"].shape == theirs["segmentation"].shape
    found = ours["segmentation"] > 0  # it leaves no pixel without a segment, and resizes masks
    assert (ours["segmentation"] == theirs["segmentation"])[found].float().mean() > 0.9
    for mine, other in zip(ours["segments_info"], theirs["segments_info"], strict=True):
        assert mine.keys() - other.keys() == {"label"}
        assert {key: mine[key] for key in ("id", "label_id", "was_fused")} == {
            key: other[key] for key in ("id", "label_id", "was_fused")
        }
        assert type(mine["score"]) is type(other["score"])


def test_fiftyone() -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed")
    found = instances().to_fiftyone()
    assert isinstance(found, fiftyone.Detections)
    for detection, segment in zip(found.detections, instances().segments, strict=True):
        assert (detection.label, detection.confidence) == (segment.label, segment.score)
        whole = detection.to_segmentation(frame_size=(WIDTH, HEIGHT), target=255)
        assert np.array_equal(whole.mask > 0, segment.mask)
    values = semantic().to_fiftyone()
    assert isinstance(values, fiftyone.Segmentation)
    assert np.array_equal(values.mask, semantic().label_map + 1)

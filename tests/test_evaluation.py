import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import Evaluation, evaluate, evaluate_model
from lexiseg.images import Canvas
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.clustered import clustered
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import save_model_folder

CLASSES = ["sky", "road", "traffic sign"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Six photos whose grey level tells the class: left half sky, right half road, one pixel not labelled."""
    folder = tmp_path / "tiny"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    ids = [f"p{number}" for number in range(6)]
    labels = np.zeros((8, 12), np.uint8)
    labels[:, 6:] = 1
    for id in ids:
        Image.fromarray(np.stack([labels * 100] * 3, -1)).save(folder / "images" / f"{id}.jpg", quality=95)
        labels[0, 0] = 255
        Image.fromarray(labels).save(folder / "labels" / f"{id}.png")
        labels[0, 0] = 0
    description = {"name": "tiny", "classes": CLASSES, "ignore": 255, "splits": {"train": ids[:1], "test": ids[1:]}}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def by_grey_level(image: np.ndarray, words: Vocabulary) -> torch.Tensor:
    """Right everywhere but in the lowest row, which it calls a traffic sign."""
    labels = torch.from_numpy((image[..., 0] > 50).astype(np.int64))
    labels[-1] = 2
    return labels


def run(data: Path, **options: object) -> Evaluation:
    return evaluate(by_grey_level, LabelledPhotos(data), name="grey", progress=False, **options)  # type: ignore[arg-type]


def test_scores(package: Path) -> None:
    result = run(package, training_phrases=["sky", "street"])
    assert (result.split, result.photos, result.photos_in_split) == ("test", 5, 5)
    assert [c.iou for c in result.classes] == pytest.approx([41 / 47, 42 / 48, math.nan], nan_ok=True)
    assert [c.seen for c in result.classes] == [True, False, False]
    assert result.classes[2].predicted_share == pytest.approx(12 / 95)
    assert result.miou["gt"] == pytest.approx((41 / 47 + 42 / 48) / 2)
    assert result.miou["gt_or_pred"] == pytest.approx((41 / 47 + 42 / 48) / 3)
    assert result.miou_interval["gt"] == pytest.approx((result.miou["gt"],) * 2), "all photos are alike"
    assert result.miou_seen == pytest.approx(41 / 47)
    assert result.miou_unseen == pytest.approx(42 / 48)
    assert result.pixel_accuracy == pytest.approx(83 / 95)
    assert result.seconds_per_photo > 0
    assert result.peak_memory_mb > 10
    assert result.peak_gpu_memory_mb is None


def test_files(package: Path, tmp_path: Path) -> None:
    result = run(package)
    as_json, as_markdown = result.save(tmp_path / "out")
    assert as_json.name == "grey.tiny.test.json"
    read = json.loads(as_json.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert read["miou"] == {"gt": 87.367, "gt_or_pred": 58.245}
    assert read["hiou"] is None
    assert read["classes"][2]["iou"] is None
    text = as_markdown.read_text()
    assert "# grey on tiny, test" in text
    assert "| mIoU, rule `gt`: classes that occur in the labels | 87.4 (95 %: 87.4 to 87.4) |" in text
    assert "| traffic sign | traffic sign | - | - | 0.0 | 12.6 |" in text


def test_zip_is_the_same(package: Path, tmp_path: Path) -> None:
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*.*")):
            archive.write(file, file.relative_to(package.parent))
    assert run(path).miou == run(package).miou


def test_own_words(package: Path) -> None:
    asked: list[Vocabulary] = []

    def remember(image: np.ndarray, words: Vocabulary) -> torch.Tensor:
        asked.append(words)
        return by_grey_level(image, words)

    result = evaluate(
        remember, LabelledPhotos(package), name="grey", words="heavens, roadway | street, board", progress=False
    )
    assert asked[0].names == ("heavens", "roadway", "board")
    assert [c.phrases for c in result.classes] == [("heavens",), ("roadway", "street"), ("board",)]
    assert [c.name for c in result.classes] == CLASSES


def test_limit_spreads_over_the_split(package: Path) -> None:
    result = run(package, limit=2)
    assert (result.photos, result.photos_in_split) == (2, 5)
    assert "2 photos of 5, evenly spread" in result.to_markdown()
    assert run(package, limit=50, split="train").photos == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "sky, road"}, "3 classes .* but 2 words were given"),
        ({"split": "val"}, "no split 'val'"),
        ({"limit": 0}, "a limit of 0 photos"),
    ],
)
def test_wrong_calls(package: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(package, **options)


def test_a_model_that_forgets_the_size_is_named_with_its_photo(package: Path) -> None:
    with pytest.raises(ValueError, match="tiny/p1: prediction .* differ in size"):
        evaluate(lambda image, words: torch.zeros(4, 4), LabelledPhotos(package), name="small", progress=False)


def test_a_model_by_its_folder(package: Path, tmp_path: Path) -> None:
    """Untrained, so only the way is tested: folder and package in, numbers that add up out."""
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    arguments = {"tower": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "clusters": 4}
    torch.manual_seed(0)
    folder = save_model_folder(
        tmp_path / "toy",
        clustered(**arguments, device="cpu"),
        text_encoder(arguments["tower"], device="cpu"),
        builder="clustered",
        arguments=arguments,
        templates="bare",
        canvas=Canvas(64, 96),
        training_phrases=["road"],
    )
    result = evaluate_model(folder, package, device="cpu", progress=False)
    assert (result.model, result.data, result.photos) == ("toy", "tiny", 5)
    assert [c.seen for c in result.classes] == [False, True, False]
    assert sum(c.predicted_share for c in result.classes) == pytest.approx(1)
    assert sum(c.true_share for c in result.classes) == pytest.approx(1)
    assert evaluate_model(folder, package, device="cpu", progress=False).miou == pytest.approx(result.miou, nan_ok=True)

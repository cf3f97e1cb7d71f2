"""How much a verdict weighs is chosen on validation photos."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.evaluation import evaluate_model
from lexiseg.miniature.tuning import CANVAS, JUDGES, WEIGHTS, validation_miou
from lexiseg.train.recipes.embedded import OUTPUTS
from lexiseg.zoo.loading import compose_folder
from tests.zoo.toy_folders import toy_model

PHOTOS = 2


@pytest.fixture
def material(colours: Path, tmp_path: Path) -> Path:
    """Both judges: the same photos, upside down for the second."""
    for judge in JUDGES:
        shutil.copytree(colours, tmp_path / "material" / judge)
    for path in (tmp_path / "material" / JUDGES[1] / "labels").iterdir():
        Image.fromarray(np.flipud(np.asarray(Image.open(path)))).save(path)
    return tmp_path / "material"


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [toy_model(tmp_path / name, "fcclip", seed=seed) for seed, name in enumerate(("generator", "tuned"))]


def test_photos_read_once_give_what_each_weight_gives_by_itself(
    material: Path, pair: list[Path], tmp_path: Path
) -> None:
    found = validation_miou(material, *pair, PHOTOS)
    assert len(set(found.values())) > 1  # weights matter here
    for weight in WEIGHTS:
        model = tmp_path / str(weight)
        compose_folder(model, *pair, alpha=weight, beta=weight, canvas=CANVAS, outputs=OUTPUTS)
        answers = [
            evaluate_model(model, material / judge, limit=PHOTOS, measures=("miou",), device="cpu", progress=False)
            for judge in JUDGES
        ]
        alone = [answer.semantic.miou["gt"] for answer in answers if answer.semantic is not None]
        assert found[weight] == pytest.approx(sum(alone) / len(JUDGES), abs=1e-12)


def test_photos_without_classes_do_not_choose(material: Path, pair: list[Path]) -> None:
    for path in (material / JUDGES[1] / "labels").iterdir():
        Image.fromarray(np.full((64, 96), 255, np.uint8)).save(path)
    with pytest.raises(ValueError, match="2 of its validation photos show no class"):
        validation_miou(material, *pair, PHOTOS)

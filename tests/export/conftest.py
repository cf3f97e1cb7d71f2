"""Files that several tests look at, each written once: an export takes seconds."""

from pathlib import Path

import pytest

from lexiseg.export import Exported, export_model
from lexiseg.export.checking import photos_to_check
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model

WORDS = "sky, tree, building | house | temple, lake | water, person"
FIXED_HW = (384, 544)
"""The canvas of china.jpg."""


@pytest.fixture(scope="session")
def model(street_tiny: Path) -> Model:
    return load("street-tiny")


@pytest.fixture(scope="session")
def any_words(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The embedded model for any words and any size."""
    return export_model(model, tmp_path_factory.mktemp("any") / "tiny.onnx", photos=photos_to_check(None)[:1])


@pytest.fixture(scope="session")
def fixed_words(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The same for `WORDS` on the canvas of china.jpg, in half precision."""
    words = Vocabulary.parse(WORDS)
    return export_model(
        model,
        tmp_path_factory.mktemp("fixed") / "tiny.onnx",
        vocabulary=words,
        sizes=[FIXED_HW],
        precision="float16",
        photos=photos_to_check(None)[:1],
        least_agreement=0.999,
    )

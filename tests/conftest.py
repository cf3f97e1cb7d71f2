"""What several tests need: the sample photo, and the reference data where a checkout has it."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sklearn
import torch

from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model
from tests.colour_model import colour_model
from tests.proposals.tiny_transformers import TINY

REPOSITORY = Path(__file__).resolve().parent.parent

# The models of the tests are tiny, and the tests run in several processes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the caches of the person who runs it."""
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def colours_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--model colours` is the model of the tests; every other name is looked up as usual."""

    def find(model: str | Path, device: torch.device) -> Model:
        return colour_model() if str(model) == "colours" else load(model, device)

    monkeypatch.setattr("lexiseg.segmenter.load", find)


@pytest.fixture(scope="session")
def china_photo() -> Path:
    """A real outdoor photo, 640 x 427, that scikit-learn carries (danielbuechele, CC BY 2.0)."""
    return Path(sklearn.__file__).parent / "datasets" / "images" / "china.jpg"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the checkout (or where LEXISEG_SHARED says); tests that need it skip without."""
    folder = Path(os.environ.get("LEXISEG_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("the reference data is not beside this checkout (LEXISEG_SHARED may say where it is)")
    return folder


@pytest.fixture(scope="session")
def street_tiny() -> Path:
    """The folder of the embedded model."""
    folder = REPOSITORY / "src" / "lexiseg" / "zoo" / "embedded" / "street-tiny"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("this checkout carries no embedded model")
    return folder


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of transformers, by its `model_type`; made when it is first asked for."""
    pytest.importorskip("transformers")
    return cache(lambda model_type: TINY[model_type](tmp_path_factory.mktemp(model_type)))

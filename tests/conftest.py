"""What several tests need: the sample photo, and the reference data where a checkout has it."""

import os
from pathlib import Path

import pytest
import sklearn
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# The models of the tests are tiny, and the tests run in several processes.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def private_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the caches of the person who runs it."""
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


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

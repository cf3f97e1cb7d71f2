"""Mask-based open-vocabulary image segmentation: an image and a list of words in, masks out."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lexiseg.images import ImageError, ImageLimits
    from lexiseg.results import NamedSegment, Result
    from lexiseg.segmenter import Segmenter
    from lexiseg.vocabulary import Vocabulary, VocabularyClass, VocabularyError
    from lexiseg.zoo.composition import CompositionError
    from lexiseg.zoo.loading import compose_folder

__all__ = [
    "CompositionError",
    "ImageError",
    "ImageLimits",
    "NamedSegment",
    "Result",
    "Segmenter",
    "Vocabulary",
    "VocabularyClass",
    "VocabularyError",
    "compose_folder",
]

_HOME = {
    "CompositionError": "zoo.composition",
    "ImageError": "images",
    "ImageLimits": "images",
    "NamedSegment": "results",
    "Result": "results",
    "Segmenter": "segmenter",
    "Vocabulary": "vocabulary",
    "VocabularyClass": "vocabulary",
    "VocabularyError": "vocabulary",
    "compose_folder": "zoo.loading",
}


def __getattr__(name: str) -> Any:
    """The public names, each loaded when it is first used: `import lexiseg` itself takes no time."""
    if name in _HOME:
        return getattr(import_module(f"lexiseg.{_HOME[name]}"), name)
    if name == "__version__":
        return version("lexiseg")
    raise AttributeError(f"module 'lexiseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

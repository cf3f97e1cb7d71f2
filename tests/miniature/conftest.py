"""The photos of the tests of evaluation."""

from tests.evaluation.conftest import package

__all__ = ["package"]

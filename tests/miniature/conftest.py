"""The photos of the tests of evaluation."""

from tests.evaluation.conftest import colours, package

__all__ = ["colours", "package"]

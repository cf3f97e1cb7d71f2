"""A mark for tests that start a Ray in their own process."""

from collections.abc import Callable
from typing import TypeVar

import pytest

_Test = TypeVar("_Test", bound=Callable[..., object])


def quiet_ray(test: _Test) -> _Test:
    """Ray speaks of its own settings as deprecated, and leaves sockets to its other processes."""
    for kind in ("DeprecationWarning", "ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
        test = pytest.mark.filterwarnings(f"ignore::{kind}")(test)
    return test

"""What files of annotation tools may hold, whatever the tool."""

import pytest

from lexiseg.formats.annotations import is_id, is_inside, is_number

INSIDE = ["a.jpg", "a/b.jpg", "a\\b.jpg", "2026-11-20T12:30.jpg", "..a/b..jpg"]
OUTSIDE = ["", ".", "..", "a/../../b.jpg", "..\\a.jpg", "/a.jpg", "\\a.jpg", "C:a.jpg", "C:\\a.jpg", "a\0.jpg", 5, None]


@pytest.mark.parametrize("name", [*INSIDE, *OUTSIDE])
def test_names_below_a_folder(name: object) -> None:
    assert is_inside(name) == (name in INSIDE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 10**400, True, "1", None, [1]])
def test_what_is_no_number(value: object) -> None:
    assert not is_number(value)


def test_numbers_and_ids() -> None:
    assert is_number(0) and is_number(-2.5)
    assert is_id(7) and is_id("seven")
    assert not any(map(is_id, (None, True, [7], {})))

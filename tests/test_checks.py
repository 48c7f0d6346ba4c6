"""Checks of arguments: what they take, and what their errors say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lpips_fast._checks import check_choice, check_flags, check_path, checked_count, some
from tests.support.raises import raises


@pytest.mark.parametrize("accepted", (("red", "blue"), ["red", "blue"], {"red": 1, "blue": 2}), ids=repr)
def test_choices(accepted):
    check_choice("color", "blue", accepted)
    for given in ("Blue", "", None, 1, ["red"]):
        with raises(ValueError, f"color must be one of 'red', 'blue', got {given!r}"):
            check_choice("color", given, accepted)


def test_flags():
    """Anything has a truth value; of a string it is not the one meant."""
    check_flags(a=True, b=False, c=0, d=None, e=np.True_)
    for given in ("False", "", "no"):
        with raises(TypeError, f"b must be True or False, got the string {given!r}"):
            check_flags(a=True, b=given)


@pytest.mark.parametrize("given", (1, 7, np.int64(7), np.uint8(7)))
def test_counts(given):
    found = checked_count("k", given, "a number of images")
    assert type(found) is int
    assert found == given


@pytest.mark.parametrize("given", (0, -1, np.int64(0), True, False, np.True_, 2.0, np.float32(2), "2", None, [2]))
def test_counts_that_are_none(given):
    with raises(ValueError, f"k must be a number of images from 1, got {given!r}"):
        checked_count("k", given, "a number of images")


def test_paths():
    check_path("weights", "w.pth")
    check_path("weights", Path("w.pth"))
    for given in (b"w.pth", 3, None, ["w.pth"]):
        with raises(TypeError, f"weights must be the path of a file, got {type(given).__name__}"):
            check_path("weights", given)


def test_some_names():
    assert some([]) == ""
    assert some({"b", "a"}) == "'a', 'b'"
    assert some(name for name in "edcba") == "'a', 'b', 'c', 'd', 'e'"
    assert some("gfedcba") == "'a', 'b', 'c', 'd', 'e' and 2 more"
    assert some(["line\nbreak"]) == r"'line\nbreak'"
    assert len(some("x" * 1000 + str(i) for i in range(1000))) < 600

"""Which image of one folder belongs to which of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.folders import match


def matched(a: list[str], b: list[str], pattern: str = "{name}"):
    found = match([Path(p) for p in a], [Path(p) for p in b], pattern)
    pairs = {name: path.as_posix() for name, _, path in found.pairs}
    return pairs, [p.as_posix() for p in found.only_a], [p.as_posix() for p in found.only_b]


@pytest.mark.parametrize(
    "pattern, b",
    [
        ("{name}", "sub/01.v1.png"),
        ("{name}_x4", "sub/01.v1_x4.png"),
        ("sr_{name}", "sub/sr_01.v1.png"),
        ("{name}.sr", "sub/01.v1.sr.png"),
        ("{name}/{name}", "sub/01.v1/01.v1.png"),
        ("{name}_x4", "sub/01.v1_x4.jpg"),
    ],
)
def test_pattern(pattern, b):
    assert matched(["sub/01.v1.png"], ["other.png", b], pattern) == ({"sub/01.v1.png": b}, [], ["other.png"])


def test_the_suffix_of_a_file_decides_and_what_is_ambiguous_is_left():
    a = ["1.jpg", "1.png", "2.bmp", "3.bmp", "4.bmp", "4.jpg", "5.bmp"]
    b = ["1_x4.png", "2_x4.png", "3_x4.jpg", "3_x4.png", "4_x4.png", "5.bmp"]
    pairs, only_a, only_b = matched(a, b, "{name}_x4")
    assert pairs == {"1.png": "1_x4.png", "2.bmp": "2_x4.png"}
    assert only_a == ["1.jpg", "3.bmp", "4.bmp", "4.jpg", "5.bmp"]
    assert only_b == ["3_x4.jpg", "3_x4.png", "4_x4.png", "5.bmp"]


def test_names_that_have_the_pattern_already():
    pairs, only_a, only_b = matched(["1.png", "1_x4.png"], ["1.png", "1_x4.png"], "{name}_x4")
    assert (pairs, only_a, only_b) == ({"1.png": "1_x4.png"}, ["1_x4.png"], ["1.png"])


@pytest.mark.parametrize("pattern", ["", "_x4", "{}_x4", "{Name}", "name"])
def test_pattern_without_name(pattern):
    with pytest.raises(UsageError, match=r"--pattern must have \{name\} in it, for A's name without suffix, got "):
        matched(["1.png"], ["1.png"], pattern)

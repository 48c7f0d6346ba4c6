"""Options that several commands take."""

from __future__ import annotations

from lpips_fast.cli.options import parse_size


def test_sizes_that_no_image_has(mistake):
    assert "--size must be WIDTHxHEIGHT" in mistake("matrix", ".", "--size", "64x99999999999999999999")
    assert parse_size("100000x100000") == (100000, 100000)

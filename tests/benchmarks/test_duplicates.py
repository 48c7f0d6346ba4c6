"""What is measured of near-duplicates, on a few small patches, and the tables of it."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

from benchmarks import duplicates
from lpips_fast.bench.records import Run

RUN = Run(torch.device("cpu"))
ARGUMENTS = {"images": 12, "sketch": 256, "seeds": 3, "rounds": 1}


def measured(name, fn):
    """The records of a part, as `main` makes them."""
    found = duplicates.PARTS[name][0](fn, 64, Namespace(**ARGUMENTS))
    return [{"benchmark": name, "net": "alex", "size": 64, "images": 12, **r, **RUN.context} for r in found]


def test_changes(make_ours):
    pytest.importorskip("skimage")
    records = {record["provider"]: record for record in measured("changes", make_ours())}
    median = {name: record["median"] for name, record in records.items()}
    assert 0 < median["JPEG, quality 75"] < median["JPEG, quality 50"] < median["JPEG, quality 30"]
    assert max(median, key=median.get) == "another patch"
    assert all(r["low"] <= r["median"] <= r["high"] for r in records.values())
    head, *rows = duplicates.tables(list(records.values())).splitlines()[2:]
    assert head == "| net | images |  | 5 % | median | 95 % | below 0.1 |"
    assert rows[1].startswith("| alex | 12 of 64 x 64 | JPEG, quality 75 | ")


def test_estimates(make_ours):
    pytest.importorskip("skimage")
    whole, folded = measured("estimates", make_ours())
    assert (whole["provider"], folded["provider"]) == ("sketches of 256", "sketches of 128")
    assert whole["pairs"] == 3 * 12 * 7
    assert 0 < whole["spread"] < 1.5 * whole["bound"] < 1.5 * folded["bound"]
    assert whole["above"] == 0


def test_pairs(make_ours):
    (record,) = measured("pairs", make_ours())
    assert record["pairs_per_s"] > 0
    assert duplicates.tables([record]).count("random sketches") == 1

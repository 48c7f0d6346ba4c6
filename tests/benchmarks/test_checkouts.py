"""Two checkouts against each other: here this one against itself."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks import checkouts
from lpips_fast.bench.cases import Case
from tests.support.processes import ROOT, run


def test_each_case_has_a_record(tmp_path):
    """With agreement, both times and the ratio."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    file = tmp_path / "checkouts.jsonl"
    command = [sys.executable, "-m", "benchmarks.checkouts", ".", ".", "--case", "alex:1:32", "--images", "flat"]
    modes = ("forward", "step", "construct", "import")
    run(*command, "--mode", *modes, "--processes", 2, "--rounds", 1, "--json", file)
    records = {record["mode"]: record for record in map(json.loads, file.read_text().splitlines())}
    assert tuple(records) == modes
    for mode, record in records.items():
        assert record["before_ms"] > 0
        assert record["after_ms"] > 0
        assert record["ratio_q20"] <= record["ratio"] <= record["ratio_q80"]
        assert record["before"] == record["after"]
        assert {"torch", "threads", "device", "commit"} <= set(record)
        assert record.get("difference", 0) == 0
        assert ("difference" in record) == (mode not in checkouts.IMPORTS)
        assert record.get("cosine") == (pytest.approx(1) if mode == "step" else None)


def test_import_is_timed(tmp_path):
    checkout = SimpleNamespace(folder=tmp_path, environment={**os.environ, "PYTHONPATH": str(ROOT)})
    assert 0 < checkouts.Checkout.seconds(checkout, {"mode": "import_LPIPS"}) < 60


def test_cases():
    shapes = [Case("alex", 1, 64), Case("vgg", 1, 64), Case("vgg", 4, 256)]
    found = list(checkouts.cases(shapes, ("noise", "flat"), ("step", "construct", "import")))
    assert len(found) == 3 * 2 + 2 + 1
    assert found[-3:] == [
        {"net": "alex", "mode": "construct"},
        {"net": "vgg", "mode": "construct"},
        {"mode": "import"},
    ]


def test_other_values_are_not_timed():
    def checkout(factor):
        return SimpleNamespace(results=lambda case: (factor * torch.ones(2), None), seconds=pytest.fail)

    with pytest.raises(SystemExit, match=r"differ by 1\.0e-03: nothing was timed"):
        checkouts.compare({"mode": "forward"}, lambda: nullcontext([checkout(1.0), checkout(1.001)]), 1, 3)

"""The Triton kernels spill no registers, and take no more than is recorded. They are compiled ahead of time, for GPUs
that need not be here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cost import records
from benchmarks.cost.program import TARGETS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

HEAD_ONLY = ("cuda 70 32",)  # the oldest GPU on which the head runs, without a record


def compile_for(target, folder, *options):
    """The records of benchmarks/cost/triton.py. It runs in a process of its own: this one may have the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, "-m", "benchmarks.cost.triton", *target.split(), *options]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("target", (*HEAD_ONLY, *TARGETS))
def test_no_spills_no_fused_differences_and_no_more_than_recorded(target, tmp_path):
    """No kernel spills, and none that subtracts normalised features contracts the difference with a product."""
    found = compile_for(target, tmp_path)
    assert len(found) == len({record["variant"] for record in found}) > (20 if target in HEAD_ONLY else 40)
    assert all(record["registers"] > 0 for record in found)
    assert [record for record in found if record["spills"]] == []
    if target in TARGETS:
        assert records.worse(found, records.read("triton")) == []
    subtracting = [r for r in found if r["variant"].split()[0] in ("fwd", "maps", "bwd", "head_tap_bwd")]
    assert len(subtracting) == len(found) if target in HEAD_ONLY else len(subtracting) > 25
    assert [record for record in subtracting if record["fused"]] == []


@pytest.mark.parametrize("target", ("cuda 90 32", "hip gfx942 64"))
def test_spills_of_a_tile_too_large_are_seen(target, tmp_path):
    (record,) = compile_for(target, tmp_path, "--tile", "131072")
    assert record["spills"] > 0

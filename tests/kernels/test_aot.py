"""The Triton kernels spill no registers. They are compiled ahead of time, for GPUs that need not be here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

HEAD_ONLY = ("cuda 70 32",)
TARGETS = (*HEAD_ONLY, "cuda 80 32", "cuda 90 32", "cuda 100 32", "hip gfx942 64")


def compile_for(target, folder, *tile):
    """The records of aot.py. It runs in a process of its own: this one may have Triton's interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    command = [sys.executable, str(Path(__file__).with_name("aot.py")), *target.split(), *tile]
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.parametrize("target", TARGETS)
def test_no_spills_and_no_fused_differences(target, tmp_path):
    """No kernel spills, and none that subtracts normalised features contracts the difference with a product."""
    records = compile_for(target, tmp_path)
    assert len(records) == len({record["variant"] for record in records}) > (20 if target in HEAD_ONLY else 40)
    assert all(record["registers"] > 0 for record in records)
    assert [record for record in records if record["spills"]] == []
    subtracting = [r for r in records if r["variant"].split()[0] in ("fwd", "maps", "bwd", "head_tap_bwd")]
    assert len(subtracting) == len(records) if target in HEAD_ONLY else len(subtracting) > 25
    assert [record for record in subtracting if record["fused"]] == []


@pytest.mark.parametrize("target", ("cuda 90 32", "hip gfx942 64"))
def test_spills_of_a_tile_too_large_are_seen(target, tmp_path):
    (record,) = compile_for(target, tmp_path, "131072")
    assert record["spills"] > 0

"""A run, for records; and a clock that goes by what a test says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lpips_fast.bench import timing
from lpips_fast.bench.records import Run


@pytest.fixture
def run():
    return Run(torch.device("cpu"))


@pytest.fixture
def elapse(monkeypatch):
    """A function that lets seconds elapse. By itself the clock goes on by a millisecond each time it is read."""
    now = 0.0

    def elapse(seconds):
        nonlocal now
        now += seconds
        return now

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: elapse(1e-3)))
    return elapse

"""A run, for records; and a clock of small calls that goes by what a test says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lpips_fast.bench import patience
from lpips_fast.bench.records import Run


@pytest.fixture
def run():
    return Run(torch.device("cpu"))


@pytest.fixture
def elapse(monkeypatch):
    """Lets seconds elapse on all threads. By itself the clock goes on by a millisecond each time it is read."""
    now = 0.0

    def elapse(seconds):
        nonlocal now
        now += seconds
        return now

    clock = SimpleNamespace(process_time=lambda: torch.get_num_threads() * elapse(1e-3))
    monkeypatch.setattr(patience, "time", clock)
    return elapse

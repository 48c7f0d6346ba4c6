"""Turns, quantiles and memory."""

from __future__ import annotations

import functools
import mmap
import time

import torch

from lpips_fast.bench import timing

CPU = torch.device("cpu")


def test_turns_and_quantiles():
    order = []
    setups = {name: functools.partial(lambda name: functools.partial(order.append, name), name) for name in "ab"}
    setups["broken"] = lambda: functools.partial(int, "x")
    times, failures = timing.interleaved(setups, timing.Clock(CPU), rounds=7)
    turns = {("a", "b"), ("b", "a")}
    assert {tuple(order[i : i + 2]) for i in range(0, 16, 2)} == turns  # each once a round, in changing order
    assert len(order) == 16
    assert set(times) == {"a", "b"}
    assert failures == {"broken": "ValueError: invalid literal for int() with base 10: 'x'"}
    assert timing.Quantiles.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)
    assert timing.Quantiles.of([7.0]) == (7.0, 7.0, 7.0)


def test_kept_bytes():
    x, weight = torch.rand(10, 10, requires_grad=True), torch.rand(10, 10)
    assert timing.kept_bytes(lambda: (x * weight).sum()) == 0  # an input and a weight
    assert timing.kept_bytes(lambda: (x * weight).exp().exp().sum()) == 2 * 400


def test_resident_peak():
    """Of memory that is given back, too. It is mapped anew: what an allocator keeps of earlier tests is resident."""
    n_bytes = 64 << 20

    def call():
        with mmap.mmap(-1, n_bytes) as memory:
            memory[:: mmap.PAGESIZE] = bytes(n_bytes // mmap.PAGESIZE)
            time.sleep(0.1)

    found = timing.resident_peak_bytes(call)
    assert 0.9 * n_bytes < found < 1.5 * n_bytes  # other pages may come and go

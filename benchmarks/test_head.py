"""The head under pytest-benchmark: providers, layouts and modes, on VGG16's taps for a pair of 256 x 256.

    pytest benchmarks/test_head.py [--benchmark-json FILE]

A provider is timed only after it agrees with the reference in float64. `extra_info` has the GB/s of the median and its
share of the bandwidth of a copy. Providers do not take turns here; in `lpips-fast bench head` they do.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from lpips_fast.bench import ceilings, head
from lpips_fast.bench.cases import Case
from lpips_fast.bench.timing import Clock

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASE = Case("vgg", 1, 256)
PROVIDERS = head.providers(DEVICE, compile=True)


@functools.cache
def copy_bandwidth() -> float:
    return ceilings.of_records(list(ceilings.measure(DEVICE, [], rounds=9))).bytes_per_s


@functools.lru_cache(maxsize=1)
def sets_and_oracle(layout: str, mode: str):
    sets = [head.features(CASE, torch.float32, layout, mode, DEVICE, seed) for seed in range(2)]
    return sets, head.oracle(sets[0])


@pytest.mark.parametrize("layout", head.LAYOUTS)
@pytest.mark.parametrize("mode", head.MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_head(benchmark, provider, mode, layout):
    sets, expected = sets_and_oracle(layout, mode)
    benchmark.group = f"{mode}, {layout}"
    benchmark.extra_info["largest_error"] = head.check(PROVIDERS[provider], sets[0], expected)
    turns, synchronize = itertools.cycle(sets), Clock(DEVICE).synchronize

    def set_up():
        return (head.set_up(PROVIDERS[provider], next(turns)),), {}

    def call(timed):
        timed()
        synchronize()

    benchmark.pedantic(call, setup=set_up, rounds=9, warmup_rounds=2)
    if benchmark.stats is not None:  # None under --benchmark-disable
        bandwidth = sets[0].bytes_moved / benchmark.stats.stats.median
        share = bandwidth / copy_bandwidth()
        benchmark.extra_info.update(gb_per_s=bandwidth / 1e9, share_of_copy=share)
        print(f"\n{provider}, {mode}, {layout}: {bandwidth / 1e9:.2f} GB/s, {share:.0%} of a copy")

"""The head under pytest-benchmark: providers, layouts, forward and forward+backward, VGG16's taps at 256 x 256.

    pytest benchmarks/test_head.py [--benchmark-json FILE]

A provider is timed only once it agrees with the reference in float64. `extra_info` has the GB/s of the median and its
share of the bandwidth of a copy. Providers do not take turns here; `python -m benchmarks.head` has them do so.
"""

from __future__ import annotations

import functools

import pytest
import torch

from . import common

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROVIDERS = common.head_providers(DEVICE)


@functools.cache
def copy_bandwidth() -> float:
    copy, n_bytes = common.copy_call(DEVICE)
    return n_bytes / common.quantiles(common.interleaved({"copy": copy}, DEVICE, 9)["copy"])[1]


@functools.lru_cache(maxsize=1)
def case_and_oracle(layout: str, mode: str) -> tuple[common.HeadCase, list[torch.Tensor]]:
    case = common.head_case(layout, mode, batch=1, device=DEVICE)
    return case, common.head_oracle(case)


@pytest.mark.parametrize("layout", common.LAYOUTS)
@pytest.mark.parametrize("mode", common.MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_head(benchmark, provider, mode, layout):
    head = PROVIDERS[provider]
    benchmark.group = f"{mode}, {layout}"
    benchmark.extra_info["largest_error"] = common.check_head(head, *case_and_oracle(layout, mode))
    cases = common.head_cases(layout, mode, batch=1, device=DEVICE)

    def call():
        common.run_head(head, next(cases))
        common.synchronize(DEVICE)

    benchmark.pedantic(call, rounds=9, warmup_rounds=2)
    if benchmark.stats is not None:  # None under --benchmark-disable
        bandwidth = next(cases).bytes_moved() / benchmark.stats.stats.median
        share = bandwidth / copy_bandwidth()
        benchmark.extra_info.update(gb_per_s=bandwidth / 1e9, share_of_copy=share)
        print(f"\n{provider}, {mode}, {layout}: {bandwidth / 1e9:.2f} GB/s, {share:.0%} of a copy")

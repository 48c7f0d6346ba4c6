"""Records of benchmarks, for what reads and shows them."""

from __future__ import annotations

TIMES = {"q20_s": 0.01, "median_s": 0.02, "q80_s": 0.04}
WHOLE = {"net": "vgg", "pairs": 4, "size": 64, "mode": "forward", "precision": "float32"}


def whole(provider, seconds=0.02, **fields):
    return {**WHOLE, "provider": provider, "q20_s": seconds / 2, "median_s": seconds, "q80_s": 2 * seconds, **fields}

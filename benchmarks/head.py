"""The fused head against the reference and torch.compile of the reference, on VGG16's five taps at 256 x 256.

    python -m benchmarks.head [--batch 1 4 --dtype float32 --device cpu --rounds 15 --output FILE]

Providers take turns within a round, over two sets of features past the cache; each is first held to the reference in
float64. Times are medians with the 20 % and 80 % quantiles. GB/s counts what must cross the memory bus (both images in
either pass, in the backward one image's gradient too); its limit is the bandwidth of a copy measured in the same
rounds. One JSON line a provider is added to the output.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from . import common

DEFAULT_OUTPUT = Path(__file__).parent / "results" / "cpu-2core" / "head.jsonl"


def measure(layout: str, mode: str, batch: int, dtype: torch.dtype, device: str, rounds: int) -> Iterator[dict]:
    providers = common.head_providers(device)
    cases = common.head_cases(layout, mode, batch=batch, dtype=dtype, device=device)
    case = next(cases)
    oracle = common.head_oracle(case)
    errors = {name: common.check_head(head, case, oracle) for name, head in providers.items()}
    del oracle

    calls = {name: lambda head=head: common.run_head(head, next(cases)) for name, head in providers.items()}
    copy, copy_bytes = common.copy_call(device)
    seconds = common.interleaved({**calls, "copy": copy}, device, rounds)
    copy_bandwidth = copy_bytes / common.quantiles(seconds["copy"])[1]
    reference = common.quantiles(seconds["reference"])[1]
    for name in providers:
        q20, median, q80 = common.quantiles(seconds[name])
        bandwidth = case.bytes_moved() / median
        yield {
            "benchmark": "head",
            "provider": name,
            "mode": mode,
            "layout": layout,
            "dtype": str(dtype).removeprefix("torch."),
            "shape": [[batch, *tap] for tap in common.VGG_TAPS],
            "ms": round(1e3 * median, 3),
            "ms_20_80": [round(1e3 * q20, 3), round(1e3 * q80, 3)],
            "rounds": rounds,
            "speedup_over_reference": round(reference / median, 2),
            "gb_per_s": round(bandwidth / 1e9, 2),
            "copy_gb_per_s": round(copy_bandwidth / 1e9, 2),
            "share_of_copy": round(bandwidth / copy_bandwidth, 3),
            "largest_error": errors[name],
            **common.context(device),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--layout", nargs="+", default=list(common.LAYOUTS), choices=common.LAYOUTS)
    parser.add_argument("--mode", nargs="+", default=list(common.MODES), choices=common.MODES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    args = parser.parse_args()

    args.output.parent.mkdir(parents=True, exist_ok=True)
    print(f"{common.device_name(args.device)}, torch {torch.__version__}")
    for dtype, batch, mode, layout in itertools.product(args.dtype, args.batch, args.mode, args.layout):
        print(f"\n{dtype}, batch {batch}, {mode}, {layout}")
        print(f"{'provider':<16}{'ms':>10}{'20 %':>10}{'80 %':>10}{'x reference':>14}{'GB/s':>9}{'of copy':>10}")
        for record in measure(layout, mode, batch, getattr(torch, dtype), args.device, args.rounds):
            low, high = record["ms_20_80"]
            print(
                f"{record['provider']:<16}{record['ms']:>10.2f}{low:>10.2f}{high:>10.2f}"
                f"{record['speedup_over_reference']:>14.2f}{record['gb_per_s']:>9.2f}{record['share_of_copy']:>10.1%}"
            )
            with args.output.open("a") as file:
                file.write(json.dumps(record) + "\n")
        print(f"{'(copy)':<16}{'':>44}{record['copy_gb_per_s']:>9.2f}{1:>10.1%}", flush=True)


if __name__ == "__main__":
    main()

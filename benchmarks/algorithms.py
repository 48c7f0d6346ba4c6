"""One convolution on the CPU by each algorithm that `trunk/cpu_filters.py` chooses from, and by torch.

    python -m benchmarks.algorithms [--threads 1 --rounds 9 --json algorithms.jsonl]
    python -m benchmarks.algorithms --table benchmarks/results/cpu-1thread/algorithms.jsonl

The convolutions have the channels of the nets' layers, and numbers of tiles around those from which Winograd's
algorithm pays. `forward` is y = relu(conv(x)), `gradient` the gradient to x from y's. `torch` is torch's convolution,
channels-last, without the ReLU. `transposed` is Winograd's algorithm with the filters of the forward. The algorithms
take turns, and nothing is timed unless the results agree with float64.
"""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path

import torch
import torch.nn.functional as F

from lpips_fast.bench.records import Run, append
from lpips_fast.bench.tables import context, table
from lpips_fast.bench.timing import Clock, interleaved
from lpips_fast.trunk.cpu_filters import filters_of, panels
from lpips_fast.trunk.operators import Algorithm, CpuConv

# kernel, cin, cout; and images and the side of each
SHAPES = {
    (3, 16, 64): ((2, 7), (2, 15), (8, 63)),
    (3, 64, 256): ((2, 3), (4, 3), (8, 15)),
    (3, 192, 384): ((2, 3), (4, 3), (2, 7), (8, 15)),
    (3, 64, 64): ((4, 2), (1, 8), (2, 64), (2, 256)),
    (3, 256, 256): ((2, 4), (4, 4), (2, 16), (2, 64)),
    (3, 512, 512): ((4, 2), (1, 8), (2, 8), (2, 16), (2, 32)),
    (5, 64, 192): ((2, 3), (4, 3), (2, 7), (8, 31)),
}
TOLERANCE = 1e-5  # of the error's norm to the result's
REPEATS = 10  # calls that are timed as one
ALGORITHMS = {
    "forward": (Algorithm.DIRECT, Algorithm.WINOGRAD),
    "gradient": (Algorithm.DIRECT, Algorithm.WINOGRAD, Algorithm.TRANSPOSED),
}


def calls(mode, kernel, x, weight, bias):
    """The call of each algorithm, by name, and the result in float64."""
    cout, cin, *_ = weight.shape
    size = x.shape[2:]
    y = F.conv2d(x, weight, bias, padding=kernel // 2).relu_()
    found = {}
    if mode == "forward":
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2).relu()
        found["torch"] = functools.partial(F.conv2d, x, weight, bias, padding=kernel // 2)
    else:
        exact = torch.nn.grad.conv2d_input(x.shape, weight.double(), y.double(), padding=kernel // 2)
        found["torch"] = functools.partial(torch.nn.grad.conv2d_input, x.shape, weight, y, padding=kernel // 2)
    for algorithm in ALGORITHMS[mode]:
        if algorithm == Algorithm.TRANSPOSED and (kernel != 3 or cin % 16 or cout % 16):
            continue
        other = Algorithm.WINOGRAD if algorithm == Algorithm.TRANSPOSED else algorithm
        program = list(map(int, CpuConv(other, algorithm, cin, cout, kernel, 1, kernel // 2, 0, 1)))
        filters = filters_of(algorithm, weight, 1, turned=mode == "gradient")
        if mode == "forward":
            call = functools.partial(
                torch.ops.lpips_fast.trunk_fwd_cpu, [x], None, None, [filters, panels(bias).flatten()], program, False
            )
        else:
            call = functools.partial(torch.ops.lpips_fast.trunk_bwd_cpu, [y], [], [y], None, [filters], program, *size)
        found[algorithm.name.lower()] = call
    return found, exact


def measure(args):
    generator = torch.Generator().manual_seed(0)
    for (kernel, cin, cout), sizes in SHAPES.items():
        weight = torch.randn(cout, cin, kernel, kernel, generator=generator) * (2 / (cin * kernel**2)) ** 0.5
        weight, bias = weight.contiguous(memory_format=torch.channels_last), torch.zeros(cout)
        for images, side in sizes:
            x = torch.randn(images, cin, side, side, generator=generator).relu_()
            x = x.contiguous(memory_format=torch.channels_last)
            for mode in ALGORITHMS:
                found, exact = calls(mode, kernel, x, weight, bias)
                for name, call in found.items():
                    result = call()
                    result = result[0] if isinstance(result, list) else result
                    result = result.relu() if (name, mode) == ("torch", "forward") else result
                    if not (result - exact).norm() <= TOLERANCE * exact.norm():
                        raise SystemExit(f"{name}, {mode}: wrong; nothing was timed")
                setups = {name: functools.partial(_repeated, call) for name, call in found.items()}
                times, failures = interleaved(setups, Clock(torch.device("cpu")), args.rounds)
                if failures:
                    raise SystemExit(f"failed: {failures}")
                shape = {"kernel": kernel, "cin": cin, "cout": cout, "images": images, "size": side, "mode": mode}
                for name, seconds in times.items():
                    yield {"benchmark": "algorithms", **shape, "provider": name, **_per_call(seconds.record())}


def _repeated(call):
    return lambda: [call() for _ in range(REPEATS)]


def _per_call(record):
    return {name: seconds / REPEATS for name, seconds in record.items()}


def printed_table(path):
    """The last run's times, and Winograd's speed beside direct convolution's."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [record for record in records if record["run"] == records[-1]["run"]]
    rows = {}
    for r in records:
        key = r["kernel"], r["cin"], r["cout"], r["images"], r["size"], r["mode"]
        rows.setdefault(key, {})[r["provider"]] = 1e3 * r["median_s"]
    cells = []
    for (kernel, cin, cout, images, side, mode), ms in rows.items():
        shape = f"{kernel} x {kernel}, {cin} to {cout}", f"{images} of {side} x {side}", images * (-(-side // 4)) ** 2
        named = (f"{ms[name]:.3g}" if name in ms else "" for name in ("torch", "direct", "winograd", "transposed"))
        cells.append([*map(str, shape), mode, *named, f"{ms['direct'] / ms['winograd']:.2f}"])
    head = ("convolution", "images", "tiles", "", "torch, ms", "direct", "Winograd", "transposed", "direct / Winograd")
    return "\n".join([context(records), "", table(head, cells)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--table", type=Path, help="measure nothing; print the table of the records in this file")
    args = parser.parse_args()
    if args.table:
        print(printed_table(args.table))
        return
    torch.set_num_threads(args.threads)
    run = Run(torch.device("cpu"))
    for record in measure(args):
        print("  ".join(f"{key} {value}" for key, value in record.items() if key != "benchmark"), flush=True)
        if args.json:
            append(args.json, {"dtype": "float32", **record, **run.context})


if __name__ == "__main__":
    main()

"""All pairs of N images: `LPIPS.pairwise` against the script of lpips 0.1.4, which runs the trunk on every pair.

    python -m benchmarks.matrix [--net alex --size 64 --images 32 --threads 2 --json matrix.jsonl]

`loop` is the loop of lpips_1dir_allpairs.py: N (N - 1) / 2 calls, one pair at a time, with a graph. `loop, no_grad` is
the same without a graph. No time includes reading files. The three take turns, and nothing is timed unless the results
agree to 1e-5.

Then the memory of 200 images is measured at several sizes of `block`: how far the resident memory of a process of its
own rises during the call, with the images loaded and the network warm. Beside it stand the limits: the size of the
embeddings of two blocks, and of all images. The weights are ImageNet's or, without them, random.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from pathlib import Path

import torch

import lpips_fast
from lpips_fast.bench.providers import lpips_eager
from lpips_fast.bench.records import Run, append
from lpips_fast.bench.timing import Clock, interleaved

TOLERANCE = 1e-5
MEMORY_SIZE = 128  # of the images whose memory is measured


def make_images(n, size):
    gen = torch.Generator().manual_seed(0)
    coarse = torch.nn.functional.interpolate(torch.rand(n, 3, 8, 8, generator=gen), size=size, mode="bilinear")
    return (0.7 * coarse + 0.3 * torch.rand(n, 3, size, size, generator=gen)) * 2 - 1


def make_ours(net):
    try:
        return lpips_fast.LPIPS(net=net, verbose=False)
    except RuntimeError:
        return lpips_fast.LPIPS(net=net, pnet_rand=True)


def loop(fn, images):
    distances = torch.zeros(len(images), len(images))
    for i in range(len(images)):
        for j in range(i + 1, len(images)):
            distances[i, j] = distances[j, i] = fn(images[i : i + 1], images[j : j + 1]).item()
    return distances


def loop_no_grad(fn, images):
    with torch.no_grad():
        return loop(fn, images)


def measure_time(args):
    ours = make_ours(args.net)
    images = make_images(args.images, args.size)
    theirs = lpips_eager(ours, (images, images))
    providers = {
        "lpips 0.1.4 loop": (loop, theirs),
        "lpips 0.1.4 loop, no_grad": (loop_no_grad, theirs),
        "lpips_fast pairwise": (lambda fn, x: fn.pairwise(x), ours),
    }
    results = {name: call(fn, images) for name, (call, fn) in providers.items()}
    error = max((found - results["lpips 0.1.4 loop"]).abs().max().item() for found in results.values())
    if not error <= TOLERANCE:
        raise SystemExit(f"the results differ by {error:.2e}, more than {TOLERANCE}: nothing was timed")
    setups = {name: functools.partial(functools.partial, call, fn, images) for name, (call, fn) in providers.items()}
    times, failures = interleaved(setups, Clock(torch.device("cpu")), args.repeats)
    if failures:
        raise SystemExit(f"failed: {failures}")
    fast = times["lpips_fast pairwise"].median
    for name, seconds in times.items():
        yield {
            "benchmark": "matrix",
            "provider": name,
            "images": args.images,
            "size": args.size,
            **seconds.record(),
            "speedup_of_pairwise": round(seconds.median / fast, 2),
            "largest_difference": error,
        }


def resident_memory(which):
    """The resident memory of this process in bytes: 'VmRSS' is the present, 'VmHWM' the highest."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(which))


def memory_of(args):
    """In a process of its own: prints how far resident memory rises during one call."""
    fn, images = make_ours(args.net), make_images(args.images, args.size)
    fn.pairwise(images[:2])
    Path("/proc/self/clear_refs").write_text("5")  # so that the highest starts from now
    before = resident_memory("VmRSS")
    seconds = Clock(torch.device("cpu"))(functools.partial(fn.pairwise, images, block=args.block))
    print(json.dumps({"rise": resident_memory("VmHWM") - before, "seconds": seconds}))


def measure_memory(args):
    size = make_ours(args.net).embed(make_images(1, MEMORY_SIZE)).nbytes
    n = args.memory_images
    for block in args.blocks:
        command = [
            sys.executable,
            "-m",
            "benchmarks.matrix",
            "--block",
            block,
            "--net",
            args.net,
            "--images",
            n,
            "--size",
            MEMORY_SIZE,
        ]
        command += ["--threads", args.threads]
        done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])  # torch announces downloads
        yield {
            "benchmark": "matrix memory",
            "provider": "lpips_fast pairwise",
            "images": n,
            "size": MEMORY_SIZE,
            "block": block,
            "MiB": round(measured["rise"] / 2**20, 1),
            "MiB_two_blocks": round(2 * min(block, n) * size / 2**20, 1),
            "MiB_all_embeddings": round(n * size / 2**20, 1),
            "ms": round(1e3 * measured["seconds"], 1),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="alex", choices=("alex", "vgg", "squeeze"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-images", type=int, default=200)
    parser.add_argument("--blocks", type=int, nargs="+", default=(10, 25, 50, 100))
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--block", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.block:
        memory_of(args)
        return
    run = Run(torch.device("cpu"))
    for measure in (measure_time, measure_memory):
        for record in measure(args):
            print("  ".join(f"{key} {value}" for key, value in record.items() if key != "benchmark"), flush=True)
            if args.json:
                append(args.json, {"net": args.net, "dtype": "float32", **record, **run.context})


if __name__ == "__main__":
    main()

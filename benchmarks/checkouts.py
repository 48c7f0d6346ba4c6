"""Two checkouts of this repository against each other: what a change costs, or brings, on the CPU.

    python -m benchmarks.checkouts BEFORE AFTER [--threads 1 --rounds 15 --json checkouts.jsonl]
    python -m benchmarks.checkouts BEFORE AFTER --net vgg --pairs 1 4 --size 256 --images flat --mode step

Each checkout, built in place, runs in a process of its own with the same random weights and images; the two take turns,
and the ratio is taken round by round. `noise` images have no two equal pixels, `flat` ones an object before a white
ground. Values must agree to 2e-5; the cosine between the gradients is shown, as they may differ where pools tie.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

TOLERANCE = 2e-5
CALLS_FOR = 0.05  # seconds, of calls that are timed as one
NETS, IMAGES, MODES = ("alex", "squeeze", "vgg"), ("noise", "flat"), ("forward", "step", "grad_in_forward")


def make_images(kind, pairs, size):
    gen = torch.Generator().manual_seed(0)
    images = [torch.rand(pairs, 3, size, size, generator=gen) * 2 - 1 for _ in range(2)]
    if kind == "flat":
        row, col = torch.linspace(-1, 1, size)[:, None], torch.linspace(-1, 1, size)
        images = [torch.where(row**2 + col**2 < 0.3, image, 1.0) for image in images]
    return images


class Case:
    """One case in the process of a checkout."""

    def __init__(self, net, pairs, size, images, mode):
        from lpips_fast import LPIPS

        torch.manual_seed(0)
        self.fn = LPIPS(net=net, pnet_rand=True, verbose=False, grad_in_forward=mode == "grad_in_forward")
        self.in0, self.in1 = make_images(images, pairs, size)
        self.mode = mode

    def __call__(self):
        if self.mode == "forward":
            with torch.no_grad():
                return self.fn(self.in0, self.in1), None
        in0 = self.in0.detach().requires_grad_()
        value = self.fn(in0, self.in1)
        return value.detach(), torch.autograd.grad(value.sum(), in0)[0]


def work(threads, folder):
    """Answers lines with a case: at first with its value and gradient, as a file, then with its time."""
    torch.set_num_threads(threads)
    cases = {}
    for line in sys.stdin:
        if line not in cases:
            cases[line] = Case(**json.loads(line))
            torch.save(cases[line](), folder / f"{os.getpid()}.pt")
            print(os.getpid(), flush=True)
            continue
        calls, start = 0, time.perf_counter()
        while not calls or time.perf_counter() - start < CALLS_FOR:
            cases[line]()
            calls += 1
        print((time.perf_counter() - start) / calls, flush=True)


class Checkout:
    def __init__(self, path, threads, folder):
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", folder, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, case):
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of a checkout ended: {case}")
        return float(answer)

    def results(self, case, folder):
        return torch.load(Path(folder) / f"{int(self.ask(case))}.pt")


def commit_of(path):
    described = ["git", "-C", path, "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()


def compare(case, checkouts, rounds, folder):
    (value0, grad0), (value1, grad1) = (checkout.results(case, folder) for checkout in checkouts)
    difference = ((value1 - value0).abs() / value0.abs()).max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"the values of {case} differ by {difference:.1e}: nothing was timed")
    for checkout in checkouts:
        checkout.ask(case)  # to warm up
    order, times = [0, 1], []
    for _ in range(rounds):
        random.shuffle(order)
        times.append(dict(sorted((which, checkouts[which].ask(case)) for which in order)))
    ratios = [after / before for before, after in (t.values() for t in times)]
    q20, _, _, q80 = statistics.quantiles(ratios, n=5, method="inclusive")
    cosine = {} if grad0 is None else {"cosine": torch.cosine_similarity(grad0.flatten(), grad1.flatten(), 0).item()}
    return {
        "before_ms": 1e3 * statistics.median(t[0] for t in times),
        "after_ms": 1e3 * statistics.median(t[1] for t in times),
        "ratio": statistics.median(ratios),
        "ratio_q20": q20,
        "ratio_q80": q80,
        "difference": difference,
        **cosine,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="BEFORE AFTER")
    parser.add_argument("--net", nargs="+", default=NETS, choices=NETS)
    parser.add_argument("--pairs", type=int, nargs="+", default=(1,))
    parser.add_argument("--size", type=int, nargs="+", default=(64, 256))
    parser.add_argument("--images", nargs="+", default=IMAGES, choices=IMAGES)
    parser.add_argument("--mode", nargs="+", default=MODES[:2], choices=MODES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.threads, args.worker)
        return
    if len(args.checkouts) != 2:
        parser.error("two checkouts are needed, BEFORE and AFTER")
    from lpips_fast.bench.records import (
        Run,  # not in a worker, which is to have a checkout's
        append,
    )

    torch.set_num_threads(args.threads)
    run = Run(torch.device("cpu"))
    commits = dict(zip(("before", "after"), map(commit_of, args.checkouts), strict=True))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        checkouts = [Checkout(path.resolve(), args.threads, folder) for path in args.checkouts]
        for checkout in checkouts:
            stack.callback(checkout.process.kill)
        for net, pairs, size, images, mode in itertools.product(
            args.net, args.pairs, args.size, args.images, args.mode
        ):
            case = {"net": net, "pairs": pairs, "size": size, "images": images, "mode": mode}
            found = compare(case, checkouts, args.rounds, folder)
            print(*case.values(), *(f"{key} {value:.4g}" for key, value in found.items()), sep="  ", flush=True)
            if args.json:
                append(args.json, {"benchmark": "checkouts", **commits, **case, **found, **run.context})


if __name__ == "__main__":
    main()

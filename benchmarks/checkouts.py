"""Two checkouts of this repository against each other: what a change costs, or brings, on the CPU.

    python -m benchmarks.checkouts BEFORE AFTER [--threads 1 --processes 3 --rounds 5 --json checkouts.jsonl]
    python -m benchmarks.checkouts BEFORE AFTER --case vgg:1:256 vgg:4:256 --images flat --mode step

Both checkouts are built in place. Each runs in processes of its own, with the same random weights and images. The two
take turns in random order, and the ratio after / before is taken round by round. Where the system places a process's
memory can change its time by a third, so each case is timed in several pairs of processes, and the rounds of all count.
A mode says what is timed:

    forward, step     the metric, and the loss with its gradient to the first image
    grad_in_forward   the step of an LPIPS with grad_in_forward=True
    construct         LPIPS(net=..., trunk_weights=...), with the weights in memory
    import            `import lpips_fast` in a new process
    import_LPIPS      `from lpips_fast import LPIPS` in a new process that has imported torch

`noise` images have no two equal pixels; `flat` images show an object before a white ground. The values of both must
agree to 2e-5, or nothing is timed. The cosine between their gradients is shown: they may differ where pools tie.
"""

from __future__ import annotations

import argparse
import compileall
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
NETS, IMAGES = ("alex", "squeeze", "vgg"), ("noise", "flat")
CASES = tuple(f"{net}:{shape}" for net in NETS for shape in ("1:64", "4:256"))
IMPORTS = {"import": ("time", "import lpips_fast"), "import_LPIPS": ("time, torch", "from lpips_fast import LPIPS")}
MODES = ("forward", "step", "grad_in_forward", "construct", *IMPORTS)


def make_images(kind, pairs, size):
    gen = torch.Generator().manual_seed(0)
    images = [torch.rand(pairs, 3, size, size, generator=gen) * 2 - 1 for _ in range(2)]
    if kind == "flat":
        row, col = torch.linspace(-1, 1, size)[:, None], torch.linspace(-1, 1, size)
        images = [torch.where(row**2 + col**2 < 0.3, image, 1.0) for image in images]
    return images


class Call:
    """What is timed, in the process of a checkout: `forward`, `step` or `grad_in_forward`."""

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

    def result(self):
        """The value and its gradient, or None without one."""
        return self()


class Construct:
    """What is timed, in the process of a checkout: `construct`."""

    def __init__(self, net, mode):
        self.of_random = Call(net, 1, 64, "noise", "forward")
        self.trunk = {name.partition(".")[2]: t for name, t in self.of_random.fn.net.state_dict().items()}
        self.net = net

    def __call__(self):
        from lpips_fast import LPIPS

        return LPIPS(net=self.net, trunk_weights=self.trunk, verbose=False)

    def result(self):
        self.of_random.fn = self()
        return self.of_random()


def work(threads, folder):
    """Answers a line that has a new case with its value and gradient, as a file, and the same line with its time."""
    import lpips_fast

    if not Path(lpips_fast.__file__).is_relative_to(os.environ["PYTHONPATH"]):
        raise SystemExit(f"{lpips_fast.__file__} is not of the checkout {os.environ['PYTHONPATH']}")
    torch.set_num_threads(threads)
    last = call = None
    for line in sys.stdin:
        if line != last:
            last, case = line, json.loads(line)
            call = (Construct if case["mode"] == "construct" else Call)(**case)
            torch.save(call.result(), folder / f"{os.getpid()}.pt")
            print(os.getpid(), flush=True)
            continue
        n, start = 0, time.perf_counter()
        while not n or time.perf_counter() - start < CALLS_FOR:
            call()
            n += 1
        print((time.perf_counter() - start) / n, flush=True)


class Checkout:
    """A checkout's process; and new ones for what is imported."""

    def __init__(self, path, threads, folder):
        self.folder = folder
        self.environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--worker", folder, "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, case):
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process of a checkout ended: {case}")
        return float(answer)

    def results(self, case):
        return torch.load(Path(self.folder) / f"{int(self.ask(case))}.pt")

    def seconds(self, case):
        if case["mode"] not in IMPORTS:
            return self.ask(case)
        before, timed = IMPORTS[case["mode"]]
        script = f"import {before}\nstart = time.perf_counter()\n{timed}\nprint(time.perf_counter() - start)"
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.PIPE)
        return float(done.stdout)


def commit_of(path):
    described = ["git", "-C", path, "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()


def agreement(case, checkouts):
    """The largest relative difference of the values, and the cosine between the gradients where there are any."""
    (value0, grad0), (value1, grad1) = (checkout.results(case) for checkout in checkouts)
    difference = ((value1 - value0).abs() / value0.abs()).max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"the values of {case} differ by {difference:.1e}: nothing was timed")
    cosine = {} if grad0 is None else {"cosine": torch.cosine_similarity(grad0.flatten(), grad1.flatten(), 0).item()}
    return {"difference": difference, **cosine}


def compare(case, started, processes, rounds):
    """Both checkouts' times in so many rounds in each of several pairs of processes, which `started` starts."""
    order, times, agree = [0, 1], [], {}
    for _ in range(processes):
        with started() as checkouts:
            if case["mode"] not in IMPORTS:
                agree = agreement(case, checkouts)
            for checkout in checkouts:
                checkout.seconds(case)  # to warm up
            for _ in range(rounds):
                random.shuffle(order)
                times.append(dict(sorted((which, checkouts[which].seconds(case)) for which in order)))
    ratios = [after / before for before, after in (t.values() for t in times)]
    q20, _, _, q80 = statistics.quantiles(ratios, n=5, method="inclusive")
    return {
        "before_ms": 1e3 * statistics.median(t[0] for t in times),
        "after_ms": 1e3 * statistics.median(t[1] for t in times),
        "ratio": statistics.median(ratios),
        "ratio_q20": q20,
        "ratio_q80": q80,
        **agree,
    }


def cases(shapes, images, modes):
    """Each mode with each shape and kind of images; then `construct`, by net, and the imports, which have neither."""
    for shape, kind, mode in itertools.product(shapes, images, modes):
        if mode not in ("construct", *IMPORTS):
            yield {**shape._asdict(), "images": kind, "mode": mode}
    if "construct" in modes:
        yield from ({"net": net, "mode": "construct"} for net in dict.fromkeys(shape.net for shape in shapes))
    yield from ({"mode": mode} for mode in modes if mode in IMPORTS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, nargs="*", metavar="BEFORE AFTER")
    shown = f"default: {' '.join(CASES)}"
    parser.add_argument("--case", nargs="+", default=CASES, metavar="NET:PAIRS:SIZE", help=shown)
    parser.add_argument("--images", nargs="+", default=IMAGES, choices=IMAGES)
    parser.add_argument("--mode", nargs="+", default=("forward", "step", "construct", *IMPORTS), choices=MODES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=3, help="pairs of processes a case")
    parser.add_argument("--rounds", type=int, default=5, help="in each of them")
    parser.add_argument("--json", type=Path, help="append records here, one a line")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.threads, args.worker)
        return
    if len(args.checkouts) != 2:
        parser.error("two checkouts are needed, BEFORE and AFTER")
    # Not in a worker, which imports its checkout's lpips_fast.
    from lpips_fast.bench.cases import Case
    from lpips_fast.bench.records import Run, append

    try:
        shapes = [Case.parse(text) for text in args.case]
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(args.threads)
    run = Run(torch.device("cpu"))
    commits = dict(zip(("before", "after"), map(commit_of, args.checkouts), strict=True))
    for path in args.checkouts:  # else the first import of a fresh checkout would compile it each time
        compileall.compile_dir(path / "lpips_fast", quiet=1)
    with tempfile.TemporaryDirectory() as folder:

        @contextlib.contextmanager
        def started():
            checkouts = [Checkout(path.resolve(), args.threads, folder) for path in args.checkouts]
            try:
                yield checkouts
            finally:
                for checkout in checkouts:
                    checkout.process.kill()
                    checkout.process.wait()

        for case in cases(shapes, args.images, args.mode):
            found = compare(case, started, args.processes, args.rounds)
            print(*case.values(), *(f"{key} {value:.4g}" for key, value in found.items()), sep="  ", flush=True)
            if args.json:
                append(args.json, {"benchmark": "checkouts", **commits, **case, **found, **run.context})


if __name__ == "__main__":
    main()

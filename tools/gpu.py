"""Everything that needs a GPU, in one command and under nine minutes, without network: `make gpu`.

    python tools/gpu.py [--output FOLDER] [--only STEP ...] [--limit SECONDS]
    python tools/gpu.py --backends

Builds the extension into the environment it runs in, which must have torch, and fails where a backend is then missing
or wrong; runs the tests on the device and the kernels under compute-sanitizer; measures the machine's limits and the
benchmarks; and writes records, table.md and plots to benchmarks/results/<device>/. A step that fails or runs out of its
time does not keep the others from running; the summary names it, and the exit status is then 1. The limits of all steps
together are more than there is: where some take all of theirs, the last are left out, and `--only` runs them. Without a
CUDA device the tests are left to `make test` and the benchmarks are rehearsed on the CPU, small, and thrown away.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu"
LIMIT = 520  # seconds for everything but this process's own start, which imports torch
REPORT = 20  # of these kept for the last step
BACKENDS = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}  # compiled, and the device that each is tried on
PACKAGES = ("lpips", "torchmetrics", "piq", "pytest", "xdist", "matplotlib")
EAGER = ("lpips 0.1.4", "ours", "ours, gradient in forward, chunks", "ours, bfloat16")
EAGER += ("ours, bfloat16, gradient in forward, chunks",)
SWEEP = [f"vgg:{pairs}:256" for pairs in (1, 4, 16, 64)] + [f"vgg:8:{size}" for size in (64, 128, 256, 512, 1024)]
SWEEP += ["alex:32:256", "squeeze:32:256"]


class Step(NamedTuple):
    name: str
    limit: int  # seconds
    command: list[str]
    left_out: str | None = None  # why, where it cannot run


def check_backends() -> None:
    """Ends with status 1 and the reason unless every backend is there and has the reference's numbers.

    A build in which nvcc fails installs all the same, and the tests of a backend that is missing are skipped.
    """
    import lpips_fast
    from lpips_fast.functional import lpips_head

    missing = [f"{name}: {reason}" for name, reason in lpips_fast.backends().items() if reason is not None]
    if missing:
        sys.exit(f"backends are missing: {'; '.join(missing)}")
    torch.manual_seed(0)
    feats = [torch.rand(2, 65, 9, 7) for _ in range(2)]
    weight = torch.rand(65)
    expected = lpips_head(*([f.double()] for f in feats), [weight.double()], backend="reference")
    for name, device in BACKENDS.items():
        found = lpips_head(*([f.to(device)] for f in feats), [weight.to(device)], backend=name)
        error = ((found.double().cpu() - expected) / expected).abs().max().item()
        if not error <= 2e-5:
            sys.exit(f"backend {name!r} is wrong: by {error:.1e}")
        print(f"{name}: right to {error:.1e}")


def options(name: str, values: list[str] | tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (f"--{name}", value)]


def steps(results: Path, gpu: bool) -> Iterator[Step]:
    python = sys.executable
    install = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-input", "--editable", "."]
    yield Step("build", 150, install)

    no_tests = None if gpu else "no CUDA device; `make test` runs what needs none"
    yield Step("backends", 40, [python, str(Path(__file__).resolve()), "--backends"], no_tests)

    pytest = [python, "-m", "pytest", "-q", "--no-header", "-rsfE", "-p", "no:cacheprovider"]
    if gpu and importlib.util.find_spec("pytest") is None:
        no_tests = "pytest is not installed"
    xdist = importlib.util.find_spec("xdist") is not None
    most = max(1, min(12, (os.cpu_count() or 1) - 2))
    several, two = (["-n", str(n), "--dist", "worksteal"] if xdist else [] for n in (most, 2))
    sanitizer = "tests/head/test_cuda_build.py::test_sanitizer"
    yield Step("tests of the head", 160, [*pytest, *several, "tests/head/test_head.py"], no_tests)
    no_sanitizer = None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed"
    yield Step("sanitizer", 60, [*pytest, *two, sanitizer], no_tests or no_sanitizer)
    rest = [*pytest, *several, "--ignore", "tests/head/test_head.py", "--deselect", sanitizer, "tests"]
    no_suite = None if xdist else "pytest-xdist is not installed, and one process would take too long"
    yield Step("all other tests", 110, rest, no_tests or no_suite)

    bench = [python, "-m", "lpips_fast", "bench", "--output", str(results)]
    if gpu:
        floats = options("precision", ("float32", "bfloat16"))
        yield Step("bench head", 100, [*bench, "head", "--case", "vgg:32:256", *floats])
        yield Step("bench end-to-end", 150, [*bench, "end-to-end", "--case", "vgg:32:256"])
        yield Step("bench latency", 30, [*bench, "end-to-end", "--case", "vgg:1:64", "--no-compile", "--rounds", "100"])
        yield Step("bench layers", 50, [*bench, "layers", "--case", "vgg:32:256", "--rounds", "10"])
        sweep = [*options("case", SWEEP), *options("provider", EAGER), "--rounds", "7"]
        yield Step("bench sizes", 110, [*bench, "end-to-end", *sweep])
    else:
        small = [*bench, "--rounds", "1", "--threads", "1", "--precision", "float32"]  # others are slow on some CPUs
        yield Step("bench head", 100, [*small, "head", "--case", "alex:1:64"])
        cases = options("case", ("alex:1:64", "alex:2:64", "alex:1:96"))
        yield Step("bench end-to-end", 150, [*small, "end-to-end", *cases, "--no-memory"])
        yield Step("bench layers", 100, [*small, "layers", "--case", "alex:1:64"])
    yield Step("report", REPORT, [python, "-m", "lpips_fast", "bench", "--report", str(results)])


def run(step: Step, seconds: float) -> str:
    """Runs a step, its output in a log, and says how it went."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{step.name.replace(' ', '-')}.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if "pytest" in step.command:
        environment["OMP_NUM_THREADS"] = "2"  # there are many processes
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    took = f"{time.monotonic() - start:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-3 if status == 0 else -40 :]), flush=True)
    if status == 0:
        if "pytest" in step.command and not any(re.search(r"\b\d+ passed\b.* in [\d.]+s", line) for line in lines):
            return f"not available here: all was skipped, {took}; see {log.relative_to(ROOT)}"
        return f"ok, {took}"
    return f"FAILED: {'stopped' if status is None else f'status {status}'} after {took}; see {log.relative_to(ROOT)}"


def device_folder() -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "benchmarks" / "results" / name


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder of results (default: benchmarks/results/<device>)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="only these steps, named as in the summary")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for everything (default: %(default)s)")
    parser.add_argument("--backends", action="store_true", help="only check that each backend is there and right")
    args = parser.parse_args()
    if args.backends:
        check_backends()
        return 0
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else "NO CUDA DEVICE: nothing here is measured on a GPU"
    print(f"{device}; torch {torch.__version__}, Python {sys.version.split()[0]}")
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        print(f"not installed, and left out: {', '.join(absent)}")
    with tempfile.TemporaryDirectory() as rehearsal:
        results = (args.output or device_folder()) if gpu else Path(rehearsal)
        planned = list(steps(results.resolve(), gpu))
        unknown = set(args.only or ()) - {step.name for step in planned}
        if unknown:
            parser.error(
                f"no step {', '.join(map(repr, sorted(unknown)))}; there are {[step.name for step in planned]}"
            )
        outcomes: dict[str, str] = {}
        for step in planned:
            left = args.limit - (time.monotonic() - started) - (REPORT if step.name != "report" else 0)
            if args.only and step.name not in args.only:
                continue
            if step.left_out is not None or left <= 0:
                outcomes[step.name] = f"left out: {step.left_out or 'no time is left'}"
                continue
            print(f"\n== {step.name}", flush=True)
            outcomes[step.name] = run(step, min(step.limit, left))
        table = results / "table.md"
        if table.exists():
            print(f"\n{table.read_text()}")
    print(f"\n== summary, {time.monotonic() - started:.0f} s")
    for name, outcome in outcomes.items():
        print(f"{name:20}{outcome}")
    if gpu:
        print(f"results: {results}")
    else:
        print("No CUDA device: nothing was measured on a GPU; the benchmarks were rehearsed on the CPU.")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())

"""Everything that needs a GPU, in one command and under nine minutes, without network: `make gpu`.

    python tools/gpu.py [--prebuilt] [--output FOLDER] [--logs FOLDER] [--run NAME] [--only STEP ...] [--limit SECONDS]
    python tools/gpu.py --backends

The steps:

1. Build the extension into the environment that runs this, which must have torch. Fail if a backend is then missing or
   wrong.
2. Measure the machine's limits and the head.
3. Run the tests on the device, and the kernels under compute-sanitizer.
4. Measure the rest, and write records, table.md and plots to benchmarks/results/<device>/.

The most important steps come first. A step that fails or runs out of time does not stop the others and loses no record
that it has measured; the summary names it, and the exit status is then 1. The time limits of the steps add up to more
than the time there is. If some steps take all of theirs, the last steps are left out, and `--only` runs them. Steps
that test run beside each other; a step that measures runs alone. Without a CUDA device the tests are left to `make
test`, and the benchmarks are rehearsed on the CPU with small cases, whose records are thrown away.

The folder of logs has a log of each step, and all of them in log.txt. `--prebuilt` compiles nothing and takes the
lpips_fast/_C.abi3.so in the checkout, which may come from another machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "lpips_fast" / "_C.abi3.so"
LIMIT = 520  # seconds for everything except the start of this process, which imports torch
REPORT = 20  # seconds of LIMIT that are kept for the last step
BACKENDS = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}  # compiled backends, and the device to try each on
PACKAGES = ("lpips", "torchmetrics", "piq", "pytest", "xdist", "matplotlib")

BASELINE, OURS, OURS_BFLOAT16 = "lpips 0.1.4", "ours", "ours, bfloat16"
CHUNKS = ("ours, gradient in forward, chunks", "ours, bfloat16, gradient in forward, chunks")
EAGER = (BASELINE, OURS, OURS_BFLOAT16, *CHUNKS)
OTHERS = (BASELINE, "torchmetrics", "piq", "plain torch", "ours, float32", "ours, float16")
OTHERS += ("ours, gradient in forward", "ours, bfloat16, gradient in forward")
GRAPHS = ("ours, CUDA graph", "ours, bfloat16, CUDA graph")
BEST_TUNED = "lpips 0.1.4, bfloat16 autocast, channels-last, torch.compile"
COMPILED = ("lpips 0.1.4, torch.compile", "ours, torch.compile")
SWEEP = ["alex:32:256", "squeeze:32:256", *(f"vgg:{pairs}:256" for pairs in (1, 4, 16, 64))]
SWEEP += [f"vgg:8:{size}" for size in (64, 128, 256, 512, 1024)]

ON_DEVICE = "cuda-cuda or triton-cuda"  # selects the head's tests of a backend on the GPU
SANITIZER = "tests/csrc/head/test_cuda.py::test_sanitizer"
MODES = [f"tests/{name}.py" for name in ("kernels/test_trunk", "trunk/test_convolution", "test_metric")]
MODES += [f"tests/lpips/test_{name}.py" for name in ("backward", "compile", "devices", "export", "func", "gpu")]
MODES += [f"tests/lpips/test_{name}.py" for name in ("precision", "processes", "torch_modes")]
TAIL = 2500  # characters of a failing step's log that are printed, so that all of the output can be read


class Step(NamedTuple):
    name: str
    limit: int  # seconds
    command: list[str]
    left_out: str | None = None  # the reason why it cannot run, if there is one
    together: bool = False  # whether it may run while its neighbours with together=True do
    environment: Mapping[str, str] = MappingProxyType({})
    note: str = ""  # for the summary


def check_backends() -> None:
    """Ends with status 1 and the reason unless every backend is there and gives the reference's numbers.

    Otherwise nothing would show that nvcc failed: the package is installed without the CUDA kernels, and the tests of a
    missing backend are skipped.
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


def built_with_cuda(library: Path) -> bool:
    """Whether it exists and names the CUDA backend's operators. Later steps show whether it loads and is right."""
    return library.exists() and b"head_fwd_cuda" in library.read_bytes()


def steps(results: Path, run_name: str, gpu: bool, prebuilt: bool) -> Iterator[Step]:
    python = sys.executable
    install = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-input", "--editable", "."]
    if prebuilt and built_with_cuda(LIBRARY):
        yield Step("build", 60, install, environment={"LPIPS_FAST_NO_BUILD": "1"}, note="nothing compiled: prebuilt")
    else:
        yield Step("build", 150, install)

    no_tests = None if gpu else "no CUDA device; `make test` runs what needs none"
    yield Step("backends", 40, [python, str(Path(__file__).resolve()), "--backends"], no_tests)

    bench = [python, "-m", "lpips_fast", "bench", "--output", str(results), "--run", run_name]
    end_to_end, case = [*bench, "end-to-end"], ["--case", "vgg:32:256"]
    if gpu:
        floats = options("precision", ("float32", "bfloat16"))
        yield Step("bench head", 90, [*bench, "ceilings", "head", *case, *floats, "--no-compile"])
    else:
        small = ["--rounds", "1", "--threads", "1", "--precision", "float32"]  # other precisions are slow on some CPUs
        yield Step("bench head", 90, [*bench, "head", "--case", "alex:1:64", *small])

    pytest = [python, "-m", "pytest", "-v", "--tb=short", "--no-header", "-rsfE", "-p", "no:cacheprovider"]
    if gpu and importlib.util.find_spec("pytest") is None:
        no_tests = "pytest is not installed"
    xdist = importlib.util.find_spec("xdist") is not None

    def several(share: float) -> list[str]:
        """Options for a process of tests on each of a share of the processors."""
        return ["-n", str(max(1, int(share * (os.cpu_count() or 1)))), "--dist", "worksteal"] if xdist else []

    head = [*pytest, *several(0.55), "-k", ON_DEVICE, "tests/head/test_operators.py"]
    yield Step("tests of the head", 130, head, no_tests, together=True)
    no_sanitizer = None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed"
    yield Step("sanitizer", 130, [*pytest, *several(0.13), SANITIZER], no_tests or no_sanitizer, together=True)
    yield Step("tests of modes", 130, [*pytest, *several(0.32), *MODES], no_tests, together=True)

    if gpu:
        eager, graphs = options("provider", EAGER), options("provider", (BASELINE, OURS, OURS_BFLOAT16, *GRAPHS))
        tuned = options("provider", (BASELINE, BEST_TUNED, OURS_BFLOAT16, "ours, bfloat16, torch.compile"))
        yield Step("bench end-to-end", 60, [*end_to_end, *case, *eager])
        yield Step("bench graphs", 40, [*end_to_end, *case, *graphs])
        latency = ["--case", "vgg:1:64", *eager, *options("provider", GRAPHS), "--rounds", "100"]
        yield Step("bench latency", 40, [*end_to_end, *latency])
        profile = [python, "-m", "benchmarks.kernels", "--provider", BASELINE, OURS, OURS_BFLOAT16]
        yield Step("profile", 60, [*profile, "--json", str(results / "kernels.jsonl")])
        yield Step("bench compiled", 90, [*end_to_end, *case, *tuned])
        sweep = [*options("case", SWEEP), *options("provider", (BASELINE, OURS, OURS_BFLOAT16, *CHUNKS))]
        yield Step("bench sizes", 110, [*end_to_end, *sweep, "--rounds", "7"])
        yield Step("bench layers", 50, [*bench, "layers", *case, "--rounds", "10"])
        yield Step("bench others", 90, [*end_to_end, *case, *options("provider", OTHERS), "--rounds", "5"])
    else:
        cases = options("case", ("alex:1:64", "alex:2:64", "alex:1:96"))
        yield Step("bench end-to-end", 150, [*end_to_end, *cases, *small, "--no-memory"])
        yield Step("bench layers", 100, [*bench, "layers", "--case", "alex:1:64", *small])

    ignored = [f"--ignore={path}" for path in MODES]
    rest = [*pytest, *several(0.75), *ignored, "--deselect", SANITIZER, "-k", f"not ({ON_DEVICE})", "tests"]
    no_suite = None if xdist else "pytest-xdist is not installed, and one process would take too long"
    yield Step("all other tests", 240, rest, no_tests or no_suite)
    if gpu:
        more = options("provider", (BASELINE, OURS, *COMPILED))
        yield Step("bench more compiled", 90, [*end_to_end, *case, *more])
        yield Step("bench head compiled", 150, [*bench, "head", *case, *floats])
    yield Step("report", REPORT, [python, "-m", "lpips_fast", "bench", "--report", str(results)])


def run(steps: Sequence[Step], seconds: float, logs: Path) -> dict[str, str]:
    """Runs steps beside each other, with the output of each in a log. Returns the outcome of each by name, in order."""
    start = time.monotonic()
    outcomes: dict[str, str] = {}
    running: list[tuple[Step, Path, subprocess.Popen[bytes]]] = []
    try:
        for step in steps:
            log = logs / f"{re.sub(r'[^a-z]+', '-', step.name).strip('-')}.log"
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
            if "pytest" in step.command:
                environment["OMP_NUM_THREADS"] = "2"  # there are many processes
            with log.open("w") as output:
                process = subprocess.Popen(
                    step.command,
                    cwd=ROOT,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            running.append((step, log, process))
        while running:
            for entry in tuple(running):
                step, log, process = entry
                stopped = process.poll() is None and time.monotonic() - start > min(step.limit, seconds)
                if stopped:
                    kill(process)
                elif process.poll() is None:
                    continue
                running.remove(entry)
                status = None if stopped else process.returncode
                outcomes[step.name] = report(step, status, time.monotonic() - start, log, logs / "log.txt")
            time.sleep(0.05)
    finally:
        for _, _, process in running:
            kill(process)
    return {step.name: outcomes[step.name] for step in steps}


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it has started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def report(step: Step, status: int | None, seconds: float, log: Path, logs: Path) -> str:
    """Prints the outcome of a step, adds its log to the file of all logs, and returns the outcome.

    Args:
        status: the exit status of the process, or None if it was stopped.
    """
    text = log.read_text(errors="replace")
    lines = text.splitlines()
    if status != 0:
        outcome = f"FAILED: {'stopped' if status is None else f'status {status}'} after {seconds:.0f} s; see {log.name}"
    elif "pytest" in step.command and not any(re.search(r"\b\d+ passed\b.* in [\d.]+s", line) for line in lines):
        outcome = f"not available here: all was skipped, {seconds:.0f} s; see {log.name}"
    else:
        outcome = f"ok, {seconds:.0f} s{'; ' if step.note else ''}{step.note}"
    print(f"\n== {step.name}: {outcome}\n{excerpt(lines) if status != 0 else ''.join(lines[-1:])[:200]}", flush=True)
    with logs.open("a") as all_logs:
        all_logs.write(f"== {step.name}: {outcome}\n{text}\n")
    return outcome


def excerpt(lines: list[str]) -> str:
    """From the log of a failing step: the last lines that name a failure, and the end."""
    failures = [line[:200] for line in lines if re.search(r"(^|\s)(FAILED|ERROR)(\s|$)", line)]
    end = "\n".join(line[:200] for line in lines[-15:])[-TAIL // 2 :]
    named = "\n".join(failures)[-TAIL // 2 :]
    return f"{named}\n...\n{end}" if failures else end


def device_folder() -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT / "benchmarks" / "results" / name


def main() -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder of results (default: benchmarks/results/<device>)")
    parser.add_argument("--prebuilt", action="store_true", help="compile nothing: take the library that is there")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "gpu", help="folder of logs (default: build/gpu)")
    parser.add_argument("--run", help="count the records as part of the run of this name (default: a run of its own)")
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
        planned = list(steps(results.resolve(), args.run or secrets.token_hex(4), gpu, args.prebuilt))
        unknown = set(args.only or ()) - {step.name for step in planned}
        if unknown:
            parser.error(
                f"no step {', '.join(map(repr, sorted(unknown)))}; there are {[step.name for step in planned]}"
            )
        chosen = [step for step in planned if not args.only or step.name in args.only]
        args.logs.mkdir(parents=True, exist_ok=True)
        (args.logs / "log.txt").unlink(missing_ok=True)
        outcomes: dict[str, str] = {}
        for _, group in groupby(chosen, lambda step: "tests" if step.together else step.name):
            ready = []
            for step in group:
                left = args.limit - (time.monotonic() - started) - (REPORT if step.name != "report" else 0)
                if step.left_out is not None or left <= 0:
                    outcomes[step.name] = f"left out: {step.left_out or 'no time is left'}"
                else:
                    ready.append(step)
            outcomes |= run(ready, left, args.logs)
    print(f"\n== summary, {time.monotonic() - started:.0f} s")
    for name, outcome in outcomes.items():
        print(f"{name:21}{outcome}")
    if gpu:
        print(f"results: {results}; logs: {args.logs}")
    else:
        print("No CUDA device: nothing was measured on a GPU; the benchmarks were rehearsed on the CPU.")
    return int(any(outcome.startswith("FAILED") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())

"""The compiled kernels under sanitizers, and which lines of them the tests execute: `make sanitize`.

    python tools/sanitize.py [address | thread | coverage] [ARGUMENTS OF PYTEST]

address     The CPU library, and the CUDA kernels in their emulator, with AddressSanitizer and
            UndefinedBehaviorSanitizer: the tests of the head, of the CPU's convolutions and of sketches, with each
            instruction set of the processor. The first wrong access to memory (also past the end of a tensor) or
            undefined arithmetic stops them with a report.
thread      The CUDA kernels in their emulator, with ThreadSanitizer: the tests of the head. The first two accesses of a
            block's threads to the same memory, one of them a write, that no barrier separates, stop them with a report.
            Before that a kernel without a barrier must be reported.
coverage    The lines of csrc/head that the tests of the head execute in the emulator, counted by gcov. It prints those
            that they do not execute, and fails if these are more than 5%.

Without a name all three run. They need Linux, g++ (address also runs with clang++), and torch as in `make test`. What
they build is in a temporary folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAD = ("tests/head/test_operators.py", "tests/head/test_backends.py", "tests/csrc/head/cuda/test_emulated.py")
TESTS = (
    *HEAD,
    "tests/head/test_emulator.py",
    "tests/csrc/head/test_cpu.py",
    "tests/csrc/common/test_isa.py",
    "tests/trunk/test_operators.py",
    "tests/test_sketch.py",
    "tests/test_functional.py",
    "tests/test_fuzz.py",
)
# Left out: tests of other backends, tests that compile, tests that need terabytes of address space, and one that tells
# instruction sets apart by fused multiply-adds, which the compiler does not make at -O1.
LEFT_OUT = "not triton and not 2_31 and not compiled and not opcheck and not choice_reaches"
EMULATED = f"{LEFT_OUT} and emulat and not barrier"  # a barrier that is left out is a race on purpose
EXECUTED = 0.95
RACE = 66  # the exit status of a process with a race


def main() -> int:
    steps = {"address": address, "thread": thread, "coverage": coverage}
    name, *arguments = sys.argv[1:] or [""]
    if name not in steps:
        if name and not name.startswith(("-", "tests")):
            sys.exit(f"the first argument is {', '.join(steps)}, a test or an option of pytest, not {name!r}")
        arguments = sys.argv[1:]
    for step in [steps[name]] if name in steps else steps.values():
        with tempfile.TemporaryDirectory(prefix="lpips_fast-sanitize-") as folder:
            for part in ("tests", "csrc"):
                shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
            print(f"{step.__name__}:", flush=True)
            if status := step(Path(folder), arguments):
                return status
    return 0


def address(folder: Path, arguments: list[str]) -> int:
    build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder / "build")]
    switches = {"LPIPS_FAST_SANITIZE": "1", "LPIPS_FAST_NO_CUDA": "1"}
    subprocess.run([*build, "--build-lib", str(folder)], cwd=ROOT, env={**os.environ, **switches}, check=True)
    libraries = list((folder / "lpips_fast").glob("_C*.so"))
    if not libraries:
        raise SystemExit("the library was not built; see above")
    options = {
        "LD_PRELOAD": " ".join(runtimes(libraries[0])),
        # The interpreter frees much of its memory only by ending, so leaks are not reported.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return pytest(folder, {**switches, **options}, "-k", LEFT_OUT, *(arguments or TESTS))


def runtimes(library: Path) -> list[str]:
    """The sanitizers' own libraries. A process must load them before any other."""
    linked = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in linked.splitlines() if "libasan" in line or "libubsan" in line]
    return sorted(words[2] for words in found)  # libasan first, as it demands


def thread(folder: Path, arguments: list[str]) -> int:
    find = ["g++", "-print-file-name=libtsan.so"]
    options = {
        "LPIPS_FAST_SANITIZE": "thread",
        "LD_PRELOAD": subprocess.run(find, capture_output=True, text=True, check=True).stdout.strip(),
        # Python and torch are not built for it; only what the kernels access is of interest.
        "TSAN_OPTIONS": f"halt_on_error=1 exitcode={RACE} ignore_noninstrumented_modules=1",
    }
    if pytest(folder, options, "-k", "no and barrier", "tests/head/test_emulator.py", quiet=True) != RACE:
        raise SystemExit("ThreadSanitizer does not report a kernel without a barrier")
    return pytest(folder, options, "-k", EMULATED, *(arguments or HEAD))


def coverage(folder: Path, arguments: list[str]) -> int:
    status = pytest(folder, {"LPIPS_FAST_SANITIZE": "coverage"}, "-k", EMULATED, *(arguments or HEAD))
    if status:
        return status
    (counts,) = (folder / "build" / "emulator").glob("*/operators.gcda")
    command = ["gcov", "--json-format", "--stdout", counts.name]
    report = subprocess.run(command, cwd=counts.parent, capture_output=True, text=True, check=True).stdout
    lines = executions(json.loads(report)["files"], folder / "csrc" / "head")
    missed = [f"{file}:{line}" for (file, line), count in lines.items() if count == 0]
    executed = 1 - len(missed) / len(lines)
    print(f"{executed:.1%} of {len(lines)} lines are executed; not executed: {', '.join(missed) or 'none'}")
    return int(executed < EXECUTED)


def executions(files: Iterable[dict], folder: Path) -> dict[tuple[str, int], int]:
    """How often each line of the files in the folder is executed, in all instances of its template together."""
    found: dict[tuple[str, int], int] = {}
    for file in files:
        path = Path(file["file"]).resolve()
        if path.is_relative_to(folder.resolve()):
            for line in file["lines"]:
                key = (path.name, line["line_number"])
                found[key] = found.get(key, 0) + line["count"]
    return found


def pytest(folder: Path, options: dict[str, str], *arguments: str, quiet: bool = False) -> int:
    # A report goes to the process's own stderr, and the process ends with it: pytest must not hold it back.
    options_of_pytest = ["-q", "-x", "-p", "no:cacheprovider", "--capture=sys"]
    command = [sys.executable, "-m", "pytest", *options_of_pytest, *arguments]
    output = subprocess.DEVNULL if quiet else None
    environment = {**os.environ, **options}
    return subprocess.run(command, cwd=folder, env=environment, stdout=output, stderr=output).returncode


if __name__ == "__main__":
    sys.exit(main())

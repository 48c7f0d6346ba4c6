"""The CPU library under AddressSanitizer and UndefinedBehaviorSanitizer: `make sanitize`.

    python tools/sanitize.py [ARGUMENTS OF PYTEST]

Builds the package with both sanitizers and without CUDA in a temporary folder. There it runs the tests of the head and
of the CPU's convolutions, with each instruction set of the processor. The first wrong access to memory (also past the
end of a tensor) or undefined arithmetic stops them with a report. This needs Linux, g++ or clang++, and torch as in
`make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/head/test_operators.py",
    "tests/csrc/head/test_cpu.py",
    "tests/csrc/common/test_isa.py",
    "tests/trunk/test_operators.py",
    "tests/test_functional.py",
    "tests/test_fuzz.py",
)
# Left out: tests of other backends, tests that compile, tests that need terabytes of address space, and one that tells
# instruction sets apart by fused multiply-adds, which the compiler does not make at -O1.
LEFT_OUT = "not triton and not 2_31 and not compiled and not opcheck and not choice_reaches"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="lpips_fast-sanitize-") as name:
        folder = Path(name)
        build = [sys.executable, "setup.py", "-q", "build", "--build-base", str(folder / "build")]
        switches = {"LPIPS_FAST_SANITIZE": "1", "LPIPS_FAST_NO_CUDA": "1"}
        subprocess.run([*build, "--build-lib", name], cwd=ROOT, env={**os.environ, **switches}, check=True)
        libraries = list((folder / "lpips_fast").glob("_C*.so"))
        if not libraries:
            raise SystemExit("the library was not built; see above")
        shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        environment = {
            **os.environ,
            "LD_PRELOAD": " ".join(runtimes(libraries[0])),
            # The interpreter frees much of its memory only by ending, so leaks are not reported.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", LEFT_OUT]
        return subprocess.run([*pytest, *(sys.argv[1:] or TESTS)], cwd=folder, env=environment).returncode


def runtimes(library: Path) -> list[str]:
    """The sanitizers' own libraries. A process must load them before any other."""
    linked = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in linked.splitlines() if "libasan" in line or "libubsan" in line]
    return sorted(words[2] for words in found)  # libasan first, as it demands


if __name__ == "__main__":
    sys.exit(main())

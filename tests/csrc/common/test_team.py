"""The threads of an operator, by a program that runs many of them; ThreadSanitizer watches if it is there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
@pytest.mark.parametrize("sanitizer", ("thread", "address,undefined"))
def test_loops_and_exceptions(tmp_path, sanitizer):
    program = tmp_path / "team"
    build = [
        "g++",
        "-std=c++17",
        "-O1",
        "-g",
        f"-fsanitize={sanitizer}",
        "-pthread",
        "-I",
        HERE / "stand_in",
        "-I",
        CSRC,
    ]
    built = subprocess.run([*build, HERE / "team.cpp", "-o", program], capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

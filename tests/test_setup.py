"""`setup.py`: what it builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_nothing_is_built_where_that_is_asked(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(
        build, cwd=tmp_path, env={**os.environ, "LPIPS_FAST_NO_BUILD": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "building" not in done.stdout + done.stderr

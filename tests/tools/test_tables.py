"""tools/tables.py: the documents' tables are those of the committed records."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_the_records():
    command = [sys.executable, "tools/tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<!-- lpips-fast bench --table" in (ROOT / "docs" / "performance.md").read_text()
    assert "<!-- python -m benchmarks.kernels --floors" in (ROOT / "docs" / "gpu.md").read_text()
    assert "<!-- python -m benchmarks.other_packages --table" in (ROOT / "docs" / "packages.md").read_text()


def test_tables_of_lpips_stay_where_it_is_not_installed(monkeypatch, capsys):
    """A document is not out of date for lack of lpips, and a line names the tables."""
    stale = "<!-- python -m benchmarks.kernels --floors --case vgg:1:16 -->\nold\n<!-- end of table -->"
    monkeypatch.setitem(sys.modules, "lpips", None)
    tables = runpy.run_path(str(ROOT / "tools" / "tables.py"))
    assert tables["updated"](stale) == stale
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    tables["main"]()
    assert "docs/gpu.md: left as it is, for lpips is not installed: python -m" in capsys.readouterr().out

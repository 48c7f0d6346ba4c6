"""Puts the tables of the committed records into the documents; with --check, names the documents that are out of date.

    python tools/tables.py [--check]

A table stands between two comments. The first is the command that prints it: `lpips-fast bench --table`, or a script of
benchmarks/ with --table, or with --floors for a table that is computed and not measured:

    <!-- lpips-fast bench --table benchmarks/results/cpu-2core/head.jsonl -->
    ...
    <!-- end of table -->

    <!-- python -m benchmarks.other_packages --table benchmarks/results/cpu-1thread/packages.jsonl -->
    ...
    <!-- end of table -->

--floors needs the package `lpips`. Without it these tables stay as they are, and a line names each.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from lpips_fast._files import replacing
from lpips_fast.cli import app

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(
    r"<!-- ((?:lpips-fast bench|python -m benchmarks\.\w+) --(?:table|floors) .*?) -->\n.*?<!-- end of table -->",
    re.DOTALL,
)


def updated(text: str) -> str:
    """The document with the tables of the present records."""
    return TABLE.sub(_updated_table, text)


def _updated_table(found: re.Match[str]) -> str:
    return found[0] if needs_lpips(found[1]) else f"<!-- {found[1]} -->\n\n{printed(found[1])}\n<!-- end of table -->"


def needs_lpips(command: str) -> bool:
    """Whether a table needs the package `lpips` and that is not installed."""
    return "--floors" in shlex.split(command) and importlib.util.find_spec("lpips") is None


def printed(command: str) -> str:
    program, *arguments = shlex.split(command)
    if program == "python":
        return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout
    result = CliRunner().invoke(app, arguments)
    if result.exit_code != 0:
        raise SystemExit(f"{command}: {result.output}")
    return result.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a table is out of date")
    args = parser.parse_args()
    os.chdir(ROOT)
    stale = []
    for path in [Path("README.md"), *sorted(Path("docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for command in filter(needs_lpips, (found[1] for found in TABLE.finditer(text))):
            print(f"{path}: left as it is, for lpips is not installed: {command}")
        new = updated(text)
        if new == text:
            continue
        stale.append(path)
        if not args.check:
            with replacing(path) as temporary:
                temporary.write_text(new, encoding="utf-8")
    for path in stale:
        print(f"{path}: tables {'are out of date: python tools/tables.py' if args.check else 'brought up to date'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

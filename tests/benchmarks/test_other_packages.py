"""The committed record of other packages is that of the script."""

from __future__ import annotations

from pathlib import Path

from benchmarks import other_packages
from tests.support.tolerances import REORDERED_TOLERANCE

ROOT = Path(__file__).resolve().parents[2]


def test_other_packages_are_those_of_the_script():
    """The record has each call of the script, and each of our settings gives the package's number."""
    last = other_packages.last_records(ROOT / "benchmarks" / "results" / "cpu-1thread" / "packages.jsonl")
    assert len({record["commit"] for record in last}) == 1
    calls = [(list(package.requirements), call) for package in other_packages.PACKAGES for call in package.calls]
    assert [(r["requirements"], r["call"], r["ours"]) for r in last] == [(r, c.theirs, c.ours) for r, c in calls]
    assert all(
        record["ours_error"] < REORDERED_TOLERANCE for record in last if record["ours"] and "failure" not in record
    )

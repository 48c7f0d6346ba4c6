"""What counts as worse than the committed records."""

from __future__ import annotations

import pytest

from benchmarks.cost import records

RECORD = {
    "target": "cuda 90",
    "compiler": "nvcc 13.0.88",
    "kernel": "head_fwd_kernel",
    "dtype": "float32",
    "packs": 8,
    "registers": 100,
    "spills": 0,
    "shared": 1000,
    "instructions": 5000,
    "ways": {"mean, planar": {"executed": {"32": 1000}, "passes": [1.6, 3.5]}},
}


def changed(**figures):
    return {**RECORD, **figures}


def executing(n):
    return changed(ways={"mean, planar": {"executed": {"32": n}, "passes": []}})


def test_the_same_or_less_is_not_worse():
    assert records.worse([RECORD], [RECORD]) == []
    assert records.worse([{**executing(999), "registers": 99, "shared": 0}], [RECORD]) == []


@pytest.mark.parametrize(
    "found, message",
    (
        (changed(registers=101), "registers 101, recorded 100 by nvcc 13.0.88"),
        (changed(shared=1001), "shared 1001"),
        (changed(spills=4), "spills 4"),
        (changed(instructions=5001), "instructions 5001"),
        (executing(1001), "mean, planar, executed with 32 lanes 1001, recorded 1000"),
    ),
)
def test_any_increase_is_worse(found, message):
    first, last = records.worse([found], [RECORD])
    assert first.startswith("cuda 90, head_fwd_kernel, float32, 8: ")
    assert message in first
    assert records.ANEW in last


def test_another_compiler_has_slack():
    other = {"compiler": "nvcc 13.1.80"}
    assert records.worse([{**changed(registers=110, instructions=5500), **other}], [RECORD]) == []
    assert len(records.worse([{**changed(registers=111, instructions=5501), **other}], [RECORD])) == 3
    assert "spills 4" in records.worse([{**changed(spills=4), **other}], [RECORD])[0]


def test_kernels_that_came_or_went():
    """Targets that were not looked at are not missed."""
    assert "not recorded" in records.worse([RECORD, changed(packs=4)], [RECORD])[0]
    assert "no longer there" in records.worse([RECORD], [RECORD, changed(packs=4)])[0]
    assert records.worse([RECORD], [RECORD, changed(target="cuda 100")]) == []


def test_a_way_that_is_not_recorded():
    assert "recorded None" in records.worse([executing(1)], [changed(ways={})])[0]


def test_written_records_are_read(tmp_path):
    records.write("cuda", [RECORD, changed(packs=4)], tmp_path)
    assert records.read("cuda", tmp_path) == [RECORD, changed(packs=4)]

"""python -m benchmarks.cost."""

from __future__ import annotations

import functools

import pytest

from benchmarks.cost import program, records

RECORDS = [
    {"target": "cuda 90", "compiler": "a", "variant": name, "registers": 9, "spills": 0, "shared": 0, "instructions": 9}
    for name in ("first", "second")
]


@pytest.fixture(autouse=True)
def _sources(monkeypatch, tmp_path):
    """Both sources have RECORDS; a folder of this test's has none yet."""
    monkeypatch.setattr(program, "SOURCES", {"cuda": lambda: RECORDS, "triton": lambda: RECORDS[:1]})
    for name in ("read", "write"):
        monkeypatch.setattr(records, name, functools.partial(getattr(records, name), folder=tmp_path))


def test_what_is_recorded_is_compared(capsys, monkeypatch):
    assert program.main(["--record"]) == 0
    assert records.read("cuda") == RECORDS
    assert program.main([]) == 0
    assert "no kernel takes more" in capsys.readouterr().out
    worse = [{**RECORDS[0], "registers": 10}]
    monkeypatch.setitem(program.SOURCES, "triton", lambda: worse)
    assert program.main(["--only", "cuda"]) == 0
    assert program.main([]) == 1
    assert "cuda 90, first: registers 10, recorded 9" in capsys.readouterr().out
    assert program.main(["--only", "triton", "--record"]) == 0
    assert records.read("triton") == worse


def test_what_cannot_be_read_is_said(capsys, monkeypatch):
    def missing():
        raise FileNotFoundError("triton is not installed")

    monkeypatch.setitem(program.SOURCES, "triton", missing)
    assert program.main(["--record"]) == 1
    assert "triton: triton is not installed" in capsys.readouterr().out
    assert records.read("cuda") == RECORDS


def test_figures_of_a_device_may_be_given(monkeypatch):
    asked = []
    monkeypatch.setattr(program.tables, "layers", lambda device, case: asked.append(device) or "")
    assert program.main(["--table", "layers", "--device", "A100", "--bandwidth", "2e12"]) == 0
    assert asked == [program.DEVICES["A100"]._replace(bandwidth=2e12)]

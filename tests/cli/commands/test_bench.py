"""`lpips-fast bench`: as a process, its exit status and its usage errors."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from lpips_fast.bench import ceilings, patience, providers, records
from lpips_fast.bench.providers import PROVIDERS, Provider
from lpips_fast.cli import app
from tests.support.processes import run


def test_bench(tmp_path):
    pytest.importorskip("matplotlib")
    bench = [sys.executable, "-m", "lpips_fast", "bench", "--device", "cpu"]
    cases = ["--case", "squeeze:1:17", "--case", "squeeze:2:17", "--precision", "float32"]
    wanted = ("ours", "ours, gradient in forward", "lpips 0.1.4", "torchmetrics")
    names = [name for name in wanted if PROVIDERS[name].missing() is None]
    chosen = [word for name in names for word in ("--provider", name)]
    printed = run(*bench, *cases, *chosen, "--rounds", "1", "--no-memory", "--output", tmp_path)
    one = [*cases[:2], *cases[4:], "--provider", "ours", "--rounds", "1", "--run", "named"]
    run(*bench, "end-to-end", *one, "--output", tmp_path / "memory")

    found = records.results(tmp_path)
    assert list(found) == ["ceilings", "head", "end_to_end", "layers"]
    assert not [record for of_benchmark in found.values() for record in of_benchmark if "error" in record]
    assert {record["provider"] for record in found["end_to_end"]} == {*names, "limit"}
    assert run(*bench, "--table", tmp_path) == printed
    assert len({record["run"] for of_benchmark in found.values() for record in of_benchmark}) == 1
    forward, step = (r for r in records.results(tmp_path / "memory")["end_to_end"] if r["provider"] == "ours")
    assert forward["run"] == step["run"] == "named"
    assert forward["peak_bytes"] > 0
    assert step["peak_bytes"] > 0
    assert step["kept_bytes"] > 0

    run(*bench, "--report", tmp_path)
    assert (tmp_path / "table.md").read_text() == printed
    for name in ("time_against_batch", "roofline"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def wrong_lpips(weights, sample):
    """Our LPIPS with distances that are too large by a tenth."""
    fn = providers.copied(weights, sample[0])
    return lambda in0, in1: 1.1 * fn(in0, in1)


def test_exit_status_and_usage(monkeypatch):
    def run(*arguments):
        command = ["bench", "end-to-end", "--device", "cpu", "--case", "alex:1:32", "--rounds", "1", "--no-memory"]
        return CliRunner().invoke(app, [*command, *arguments])

    monkeypatch.setattr(ceilings, "measure", lambda *_: iter(()))
    absent = Provider(wrong_lpips, package="no_such_package")
    monkeypatch.setattr(providers, "PROVIDERS", {"lpips 0.1.4": absent, "ours": Provider(wrong_lpips)})
    assert run().exit_code == 1
    result = run("--provider", "lpips 0.1.4")  # it is no failure that another package is missing
    assert result.exit_code == 0
    assert "not measured: lpips 0.1.4: no_such_package is not installed" in result.output
    with monkeypatch.context() as patched:
        left_out = {"error": "left out: too long", "expected_s": 9.0}
        patched.setattr(patience.Patience, "left_out", lambda *_: left_out)
        result = run()  # nor that something would take too long
    assert result.exit_code == 0
    assert "not measured: ours: left out: too long" in result.output
    result = run("--provider", "nobody")
    assert result.exit_code == 2
    assert "ours" in result.output
    assert run("--case", "vgg:1:1").exit_code == 2
    assert run("--device", "meta").exit_code == 2

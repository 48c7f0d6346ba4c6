"""The commands as people run them: `lpips-fast bench`, its report, and `make gpu` where there is no device."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lpips_fast
from lpips_fast import functional
from lpips_fast.bench import records
from lpips_fast.bench.providers import PROVIDERS

ROOT = Path(__file__).resolve().parents[2]


def run(*command, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_bench(tmp_path):
    pytest.importorskip("matplotlib")
    bench = [sys.executable, "-m", "lpips_fast", "bench", "--device", "cpu"]
    cases = ["--case", "squeeze:1:17", "--case", "squeeze:2:17", "--precision", "float32"]
    wanted = ("ours", "ours, gradient in forward", "lpips 0.1.4", "torchmetrics")
    names = [name for name in wanted if PROVIDERS[name].missing() is None]
    chosen = [word for name in names for word in ("--provider", name)]
    printed = run(*bench, *cases, *chosen, "--rounds", "1", "--no-memory", "--output", tmp_path)
    one = [*cases[:2], *cases[4:], "--provider", "ours", "--rounds", "1"]
    run(*bench, "end-to-end", *one, "--output", tmp_path / "memory")

    found = records.results(tmp_path)
    assert list(found) == ["ceilings", "head", "end_to_end", "layers"]
    assert not [record for of_benchmark in found.values() for record in of_benchmark if "error" in record]
    assert {record["provider"] for record in found["end_to_end"]} == {*names, "limit"}
    assert run(*bench, "--table", tmp_path) == printed
    forward, step = (r for r in records.results(tmp_path / "memory")["end_to_end"] if r["provider"] == "ours")
    assert forward["peak_bytes"] > 0
    assert step["peak_bytes"] > 0
    assert step["kept_bytes"] > 0

    run(*bench, "--report", tmp_path)
    assert (tmp_path / "table.md").read_text() == printed
    for name in ("time_against_batch", "roofline"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_gpu_without_a_device():
    only = "--only 'all other tests' 'bench end-to-end' report"
    printed = run("make", "gpu", f"ARGS={only}", f"PYTHON={sys.executable}", VIRTUAL_ENV="", CUDA_VISIBLE_DEVICES="")
    assert "NO CUDA DEVICE" in printed
    summary = printed.partition("== summary")[2]
    assert "all other tests     left out: no CUDA device" in summary
    assert "bench end-to-end    ok" in summary
    assert "nothing was measured on a GPU" in summary
    assert "build " not in summary


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_tool", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    return module


def test_a_failing_step_keeps_none_from_running(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    script = f"import subprocess; subprocess.run(['sh', '-c', 'sleep 5; touch {tmp_path}/alive'])"
    planned = [
        gpu.Step("fails", 20, [sys.executable, "-c", "raise SystemExit(3)"]),
        gpu.Step("slow", 1, [sys.executable, "-c", script]),
        gpu.Step("good", 20, [sys.executable, "-c", "print('done')"]),
    ]
    monkeypatch.setattr(gpu, "steps", lambda results, gpu: iter(planned))
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 1
    summary = capsys.readouterr().out.partition("== summary")[2]
    assert "FAILED: status 3" in summary
    assert "FAILED: stopped after 1 s" in summary
    assert "good                ok" in summary
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "good"])
    assert gpu.main() == 0
    assert not (tmp_path / "alive").exists()


def test_all_of_it_fits_in_nine_minutes(gpu, tmp_path):
    for there in (True, False):
        planned = list(gpu.steps(tmp_path, there))
        assert [step.name for step in planned[:2]] == ["build", "backends"]
        assert planned[-1].name == "report"
        assert planned[-1].limit <= gpu.REPORT
        assert all(step.limit <= gpu.LIMIT - gpu.REPORT for step in planned)
    assert gpu.LIMIT + 20 <= 9 * 60  # the import of torch comes before


@pytest.mark.parametrize("code,outcome", (("def test(): pass", "ok"), ("", "not available here: all was skipped")))
def test_what_was_skipped_is_no_success(gpu, monkeypatch, tmp_path, code, outcome):
    monkeypatch.setattr(gpu, "LOGS", tmp_path)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    skipped = "import pytest\n@pytest.mark.skip(reason='100 passed by')\ndef test_other(): pass\n"
    (tmp_path / "test_some.py").write_text(skipped + code)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "test_some.py"]
    assert gpu.run(gpu.Step("some", 60, command), 60).startswith(outcome)


def test_backends_must_be_there(gpu, monkeypatch):
    """Else a build in which nvcc failed would pass, with the tests of its kernels skipped."""
    there = dict.fromkeys(("reference", "cpu", "cuda", "triton"))
    monkeypatch.setattr("lpips_fast.backends", lambda: {**there, "cuda": "the compiled library was built without nvcc"})
    with pytest.raises(SystemExit, match="missing: cuda: the compiled library was built without nvcc"):
        gpu.check_backends()


def test_backends_must_be_right(gpu, monkeypatch, capsys):
    head = functional.lpips_head
    there = [name for name in ("cpu", "triton") if lpips_fast.backends()[name] is None]
    monkeypatch.setattr("lpips_fast.backends", lambda: dict.fromkeys(gpu.BACKENDS))
    monkeypatch.setattr(gpu, "BACKENDS", {name: "cpu" for name in there} | {"reference": "cpu"})
    gpu.check_backends()
    assert capsys.readouterr().out.count("right to") == len(there) + 1
    wrong = lambda *lists, backend: head(*lists, backend=backend) * (1 + 1e-3 * (backend == "cpu"))  # noqa: E731
    monkeypatch.setattr(functional, "lpips_head", wrong)
    monkeypatch.setattr(gpu, "BACKENDS", {"cpu": "cpu"})
    with pytest.raises(SystemExit, match=r"backend 'cpu' is wrong: by 1\.0e-03"):
        gpu.check_backends()

"""`make gpu`: its steps, what they print and when they fail, without a GPU."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys

import pytest
import torch

from lpips_fast import functional
from lpips_fast.bench.cases import Case
from lpips_fast.bench.providers import PROVIDERS
from lpips_fast.head import backends
from tests.support.processes import ROOT, run


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_gpu_without_a_device(tmp_path):
    only = f"--logs {tmp_path} --only 'all other tests' 'bench end-to-end' report"
    printed = run("make", "gpu", f"ARGS={only}", f"PYTHON={sys.executable}", VIRTUAL_ENV="", CUDA_VISIBLE_DEVICES="")
    assert "NO CUDA DEVICE" in printed
    summary = printed.partition("== summary")[2]
    assert re.search("all other tests +left out: no CUDA device", summary)
    assert re.search("bench end-to-end +ok", summary)
    assert "nothing was measured on a GPU" in summary
    assert "build " not in summary


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_tool", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    return module


@pytest.fixture
def run_steps(gpu, monkeypatch, capsys, tmp_path):
    """Runs main() with given steps. Returns its status, what it prints before the summary, and the summary."""

    def run_steps(*planned, only=()):
        monkeypatch.setattr(gpu, "steps", lambda *_: iter(planned))
        words = ["--only", *only] if only else []
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--logs", str(tmp_path / "logs"), *words])
        status = gpu.main()
        printed, _, summary = capsys.readouterr().out.partition("== summary")
        return status, printed, summary

    return run_steps


def python(code):
    return [sys.executable, "-c", code]


def test_a_failing_step_keeps_none_from_running(gpu, run_steps, tmp_path):
    script = f"import subprocess; subprocess.run(['sh', '-c', 'sleep 5; touch {tmp_path}/alive'])"
    planned = [
        gpu.Step("fails", 20, python("raise SystemExit(3)")),
        gpu.Step("slow", 1, python(script)),
        gpu.Step("good", 20, python("print('done')"), note="in a way"),
    ]
    status, _, summary = run_steps(*planned)
    assert status == 1
    assert "FAILED: status 3" in summary
    assert "FAILED: stopped after 1 s" in summary
    assert re.search(r"good +ok, \d+ s; in a way", summary)
    status, _, summary = run_steps(*planned, only=["good"])
    assert status == 0
    assert "slow" not in summary
    assert not (tmp_path / "alive").exists()


def test_all_logs_are_in_one_file(gpu, run_steps, tmp_path):
    """The file has the logs of stopped steps, too, and none of an earlier call."""
    slow = gpu.Step("slow", 1, python("import time; print('first line'); time.sleep(9)"))
    run_steps(gpu.Step("earlier", 20, python("print('of an earlier call')")))
    run_steps(gpu.Step("fails", 20, python("print('a reason'); raise SystemExit(3)")), slow)
    logs = (tmp_path / "logs" / "log.txt").read_text()
    assert re.search("== fails: FAILED: status 3.*\na reason\n", logs)
    assert re.search("== slow: FAILED: stopped.*\nfirst line\n", logs)
    assert "earlier call" not in logs
    assert (tmp_path / "logs" / "slow.log").read_text() == "first line\n"


def test_a_failing_step_says_what_failed(gpu, run_steps):
    """However long the output is, because perhaps only the end of everything printed is read."""
    noise = "print('noise ' * 100)\nfor i in range(3000): print('noise', i)\n"
    status, printed, _ = run_steps(
        gpu.Step("tests", 20, python(f"print('FAILED test_a - error')\n{noise}raise KeyError"))
    )
    assert status == 1
    assert "FAILED test_a - error" in printed
    assert "KeyError" in printed
    assert len(printed) < gpu.TAIL + 1000


def test_steps_run_together(gpu, run_steps, tmp_path):
    """Each of two steps waits for the other. A third waits for neither."""
    wait = "import pathlib, time\npathlib.Path({0!r}).touch()\nwhile not pathlib.Path({1!r}).exists(): time.sleep(0.01)"
    files = [str(tmp_path / name) for name in "ab"]
    planned = [gpu.Step(f"step {a[-1]}", 60, python(wait.format(a, b)), together=True) for a, b in (files, files[::-1])]
    status, _, summary = run_steps(*planned, gpu.Step("last", 20, python("pass")))
    assert status == 0
    assert [line.split("  ")[0] for line in summary.splitlines()[1:4]] == ["step a", "step b", "last"]


def planned_steps(gpu, results, there=True, prebuilt=False):
    return list(gpu.steps(results, "name", there, prebuilt))


def test_all_of_it_fits_in_nine_minutes(gpu, tmp_path):
    for there in (True, False):
        planned = planned_steps(gpu, tmp_path, there)
        assert [step.name for step in planned[:2]] == ["build", "backends"]
        assert planned[-1].name == "report"
        assert planned[-1].limit <= gpu.REPORT
        assert all(step.limit <= gpu.LIMIT - gpu.REPORT for step in planned)
    assert gpu.LIMIT + 20 <= 9 * 60  # the import of torch comes on top


def test_nothing_is_measured_while_tests_run(gpu, tmp_path):
    for step in planned_steps(gpu, tmp_path):
        assert not (step.together and "bench" in step.command)


def test_each_test_on_the_device_is_in_one_step(gpu, tmp_path):
    """Tests with a step of their own are not in the last step, and the files that are named exist."""
    tests = {step.name: step.command for step in planned_steps(gpu, tmp_path) if "pytest" in step.command}
    last = tests.pop("all other tests")
    assert f"not ({gpu.ON_DEVICE})" in last
    assert gpu.ON_DEVICE in tests["tests of the head"]
    assert gpu.SANITIZER in tests["sanitizer"]
    assert gpu.SANITIZER in last
    assert {f"--ignore={path}" for path in gpu.MODES} <= set(last)
    assert all((ROOT / path.partition("::")[0]).exists() for path in (*gpu.MODES, gpu.SANITIZER))


def test_providers_and_cases_are_known(gpu, tmp_path):
    """And all providers for a GPU are measured."""
    measured = set()
    for step in planned_steps(gpu, tmp_path):
        given = list(zip(step.command, step.command[1:]))
        measured |= {value for name, value in given if name == "--provider"}
        assert all(Case.parse(value) for name, value in given if name == "--case")
    assert measured == {name for name, provider in PROVIDERS.items() if "cuda" in provider.default}


def test_a_library_from_elsewhere_is_not_built_again(gpu, monkeypatch, tmp_path):
    library = tmp_path / "_C.abi3.so"
    monkeypatch.setattr(gpu, "LIBRARY", library)
    for content, note in ((None, ""), (b"head_fwd_cpu", ""), (b"head_fwd_cuda", "nothing compiled: prebuilt")):
        if content is not None:
            library.write_bytes(content)
        build = planned_steps(gpu, tmp_path, prebuilt=True)[0]
        assert build.note == note
        assert dict(build.environment) == ({"LPIPS_FAST_NO_BUILD": "1"} if note else {})
    assert planned_steps(gpu, tmp_path)[0].note == ""


@pytest.mark.parametrize("code,outcome", (("def test(): pass", "ok"), ("", "not available here: all was skipped")))
def test_what_was_skipped_is_no_success(gpu, monkeypatch, tmp_path, code, outcome):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    skipped = "import pytest\n@pytest.mark.skip(reason='100 passed by')\ndef test_other(): pass\n"
    (tmp_path / "test_some.py").write_text(skipped + code)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "test_some.py"]
    outcomes = gpu.run([gpu.Step("some", 60, command)], 60, tmp_path)
    assert outcomes["some"].startswith(outcome)


def test_backends_must_be_there(gpu, monkeypatch):
    """Otherwise a build in which nvcc failed would pass, with the tests of its kernels skipped."""
    there = dict.fromkeys(("reference", "cpu", "cuda", "triton"))
    monkeypatch.setattr("lpips_fast.backends", lambda: {**there, "cuda": "the compiled library was built without nvcc"})
    with pytest.raises(SystemExit, match="missing: cuda: the compiled library was built without nvcc"):
        gpu.check_backends()


def works_on_the_cpu(backend):
    """Triton works there only in its interpreter, which is off if there is a GPU."""
    try:
        return backends.choose(backend, torch.device("cpu")) == backend
    except (RuntimeError, ValueError):
        return False


def test_backends_must_be_right(gpu, monkeypatch, capsys):
    head = functional.lpips_head
    there = [name for name in ("cpu", "triton") if works_on_the_cpu(name)]
    monkeypatch.setattr("lpips_fast.backends", lambda: dict.fromkeys(gpu.BACKENDS))
    monkeypatch.setattr(gpu, "BACKENDS", {name: "cpu" for name in there} | {"reference": "cpu"})
    gpu.check_backends()
    assert capsys.readouterr().out.count("right to") == len(there) + 1
    wrong = lambda *lists, backend: head(*lists, backend=backend) * (1 + 1e-3 * (backend == "cpu"))  # noqa: E731
    monkeypatch.setattr(functional, "lpips_head", wrong)
    monkeypatch.setattr(gpu, "BACKENDS", {"cpu": "cpu"})
    with pytest.raises(SystemExit, match=r"backend 'cpu' is wrong: by 1\.0e-03"):
        gpu.check_backends()

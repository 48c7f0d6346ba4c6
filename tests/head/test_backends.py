"""Which backends there are, and the reasons where an installation is incomplete or broken."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lpips_fast
from lpips_fast import _library
from lpips_fast.head import backends, operators

ROOT = Path(lpips_fast.__file__).parents[1]
REPORT = """
import json, sys
for finder in sys.meta_path[:]:
    if {isolated} and getattr(finder, "__module__", "").startswith("__editable__"):
        sys.meta_path.remove(finder)  # it finds the installed package's parts where this folder has none
import torch, lpips_fast
from lpips_fast.head import backends
x = torch.rand(2, 3, 5, 4)
value = lpips_fast.functional.lpips_head([x], [x.flip(0)], None)  # 'auto' goes on without what is broken
assert value.isfinite().all()
reasons = lpips_fast.backends()
for name, reason in reasons.items():
    if reason is not None:
        try:
            backends.choose(name, x.device)
        except RuntimeError as error:
            assert reason in str(error)
        else:
            raise AssertionError(name)
print(json.dumps(reasons))
"""


def reasons_of(folder, isolated=False):
    """What `backends()` says in a process that imports from the folder first, or, of this package, from there alone."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{folder}:{ROOT}"}
    script = REPORT.replace("{isolated}", str(isolated))
    run = subprocess.run([sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture
def copied(tmp_path):
    """A folder with a copy of the package, without the kernels and without the compiled library."""
    ignored = shutil.ignore_patterns("kernels", "__pycache__", "_C.*", "images")
    shutil.copytree(ROOT / "lpips_fast", tmp_path / "lpips_fast", ignore=ignored)
    return tmp_path


@pytest.fixture
def anew():
    """Has `backends()` look again, now and after the test."""
    backends._reasons.cache_clear()
    yield
    backends._reasons.cache_clear()


def test_every_backend_is_reported():
    assert set(lpips_fast.backends()) == {"reference", *operators.COMPILED_BACKENDS}
    assert lpips_fast.backends()["reference"] is None
    assert all(reason is None or reason for reason in lpips_fast.backends().values())


@pytest.mark.parametrize(
    "raised",
    (
        ImportError("libcuda.so.1: cannot open shared object file"),
        RuntimeError("0 active drivers ([]). There should only be one."),
        AttributeError("knobs"),
    ),
    ids=repr,
)
def test_triton_is_broken(tmp_path, raised):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(f"raise {raised!r}\n")
    assert reasons_of(tmp_path)["triton"] == f"{type(raised).__name__}: {raised}"


def test_part_of_triton_is_missing(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("")
    assert reasons_of(tmp_path)["triton"] == "ModuleNotFoundError: No module named 'triton.language'"


def test_triton_has_no_spec(monkeypatch, anew):
    """As a stand-in in sys.modules may have none."""
    monkeypatch.setitem(sys.modules, "triton", type(sys)("triton"))
    assert "triton.__spec__ is None" in lpips_fast.backends()["triton"]


def test_triton_is_not_installed(monkeypatch, anew):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert lpips_fast.backends()["triton"] == "triton is not installed"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_are_broken(copied):
    (copied / "lpips_fast" / "kernels").mkdir()
    (copied / "lpips_fast" / "kernels" / "__init__.py").write_text("1 / 0\n")
    assert reasons_of(copied, isolated=True)["triton"] == "ZeroDivisionError: division by zero"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernels_folder_is_empty(copied):
    """Python takes it for a namespace package."""
    (copied / "lpips_fast" / "kernels").mkdir()
    assert "the kernels are not installed" in reasons_of(copied, isolated=True)["triton"]


def test_library_has_no_operators(monkeypatch, anew):
    monkeypatch.setattr(_library, "load_error", None)
    monkeypatch.setattr(backends, "_is_implemented", lambda *_: False)
    assert "no operators of this package" in lpips_fast.backends()["cpu"]
    assert backends.choose("auto", torch.device("cpu")) == "reference"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_neither_kernels_nor_library_are_installed(copied):
    """As in a checkout that is not installed."""
    reasons = reasons_of(copied, isolated=True)
    assert "the kernels are not installed" in reasons["triton"]
    assert "was not built" in reasons["cpu"]
    assert reasons["cuda"] == reasons["cpu"]


def test_library_does_not_load(copied):
    (copied / "lpips_fast" / "_C.abi3.so").write_bytes(b"\x7fELF and no more")
    reasons = reasons_of(copied, isolated=True)
    assert "_C.abi3.so does not load: " in reasons["cpu"]
    assert reasons["cuda"] == reasons["cpu"]


def test_cuda_is_broken(monkeypatch, anew):
    def is_available():
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(_library, "load_error", None)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reasons = lpips_fast.backends()
    assert reasons["cuda"] == "RuntimeError: CUDA driver initialization failed"
    assert reasons["triton"] in (reasons["cuda"], "triton is not installed")
    assert backends.choose("auto", torch.device("cpu")) == "cpu"
    with pytest.raises(RuntimeError, match="'cuda' cannot be used: RuntimeError: CUDA driver"):
        backends.choose("cuda", torch.device("cpu"))


@pytest.mark.parametrize(("capability", "best"), (((7, 5), "triton"), ((8, 0), "cuda")))
def test_a_gpu_that_the_cuda_kernels_are_not_for(monkeypatch, capability, best):
    backends.is_from_ampere_on.cache_clear()
    monkeypatch.setattr(backends, "_reasons", lambda: dict.fromkeys(backends.BACKENDS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 5)
    assert backends.choose("auto", device) == best
    if best != "cuda":
        with pytest.raises(RuntimeError, match=r"'cuda' cannot be used: .* compute capability 8\.0 or newer"):
            backends.choose("cuda", device)
    backends.is_from_ampere_on.cache_clear()

"""Which backends there are, and the reasons where an installation is incomplete or broken."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import lpips_fast
from lpips_fast import _library
from lpips_fast.head import backends, operators
from lpips_fast.trunk import gpu_layers

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
reasons = lpips_fast.backends(x.device)
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
    caches = (backends._why_not, backends._choose)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


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
    monkeypatch.setattr(backends, "is_implemented", lambda *_: False)
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


class Gpu(NamedTuple):
    """What torch and the compiled library say of a GPU."""

    name: str
    major: int
    minor: int
    error: str = ""  # of the library's CUDA runtime


class Machine:
    """A machine with these GPUs, of NVIDIA's unless `hip` is torch's version of ROCm."""

    def __init__(self, monkeypatch, library):
        self.gpus, self.current, self.asked = [], 0, []
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setenv("CC", "cc")
        monkeypatch.setattr(_library, "load_error", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(self.gpus))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: self.gpus[gpu.index])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once")  # that the compiled library's operator is replaced
            library.impl("cuda_error", self.cuda_error, "CUDA")
        if not backends.is_implemented("head_fwd_cuda", "CUDA"):
            library.impl("head_fwd_cuda", lambda: None, "CUDA")
        is_implemented, emulated = backends.is_implemented, ("head_fwd_cuda", "CPU")
        monkeypatch.setattr(backends, "is_implemented", lambda *what: what != emulated and is_implemented(*what))

    def cuda_error(self, index):
        self.asked.append(index)
        return self.gpus[index].error


@pytest.fixture
def machine(monkeypatch, anew):
    triton = pytest.importorskip("triton")
    importlib.import_module("lpips_fast.kernels")  # while Triton's interpreter is on: it stays on for these kernels
    driver = triton.runtime.driver
    monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_target=lambda: None))
    with torch.library._scoped_library("lpips_fast", "IMPL") as library:
        yield Machine(monkeypatch, library)


OLD_DRIVER = "CUDA driver version is insufficient for CUDA runtime version"
NO_CODE = "no kernel image is available for execution on the device"
NEEDS_AMPERE, NEEDS_VOLTA = "it needs compute capability 8.0, and {0} has {1}.{2}", "it needs compute capability 7.0"
GPUS = [  # the GPU, why not `cuda`, the best backend, and whether the trunk's Triton kernels run
    (Gpu("NVIDIA GeForce GTX 1080 Ti", 6, 1), NEEDS_AMPERE, "reference", False),
    (Gpu("Tesla V100-SXM2-16GB", 7, 0), NEEDS_AMPERE, "triton", False),
    (Gpu("Tesla T4", 7, 5), NEEDS_AMPERE, "triton", False),
    (Gpu("NVIDIA GeForce RTX 2080 Ti", 7, 5), NEEDS_AMPERE, "triton", False),
    (Gpu("NVIDIA A100-SXM4-80GB", 8, 0), None, "cuda", True),
    (Gpu("NVIDIA GeForce RTX 3090", 8, 6), None, "cuda", True),
    (Gpu("NVIDIA GeForce RTX 4090", 8, 9), None, "cuda", True),
    (Gpu("NVIDIA H100 80GB HBM3", 9, 0), None, "cuda", True),
    (Gpu("NVIDIA B200", 10, 0), None, "cuda", True),
    (Gpu("NVIDIA GeForce RTX 5090", 12, 0), None, "cuda", True),
    (
        Gpu("NVIDIA A100-SXM4-80GB", 8, 0, OLD_DRIVER),
        f"the compiled library cannot use the GPU: {OLD_DRIVER}",
        "triton",
        True,
    ),
    (
        Gpu("NVIDIA GeForce RTX 5090", 12, 0, NO_CODE),
        f"the compiled library cannot use the GPU: {NO_CODE}",
        "triton",
        True,
    ),
]


@pytest.mark.parametrize(("gpu", "reason", "best", "trunk"), GPUS, ids=lambda value: getattr(value, "name", None))
def test_a_gpu(machine, gpu, reason, best, trunk):
    machine.gpus = [gpu]
    device = torch.device("cuda", 0)
    reasons = lpips_fast.backends()
    assert reasons["cuda"] == (reason if reason is None else reason.format(*gpu))
    assert (reasons["triton"] is None) == (best != "reference")
    assert reasons["triton"] is None or NEEDS_VOLTA in reasons["triton"]
    assert backends.choose("auto", device) == best
    assert gpu_layers.available(device) == gpu_layers.available() == trunk
    for name in ("cuda", "triton"):
        if reasons[name] is None:
            assert backends.choose(name, device) == name
        else:
            with pytest.raises(RuntimeError) as raised:
                backends.choose(name, device)
            assert str(raised.value) == f"backend {name!r} cannot be used for tensors on cuda:0: {reasons[name]}"


def test_gpus_of_different_kinds(machine):
    """Each has its own answers; without an index the current one is asked."""
    machine.gpus = [Gpu("Tesla T4", 7, 5), Gpu("NVIDIA GeForce RTX 5090", 12, 0, NO_CODE), Gpu("NVIDIA L4", 8, 9)]
    for machine.current, best in enumerate(("triton", "triton", "cuda")):
        assert backends.choose("auto", torch.device("cuda", machine.current)) == best
        assert backends.choose("auto", torch.device("cuda")) == best
        assert gpu_layers.available() == (machine.current > 0)
        assert lpips_fast.backends() == lpips_fast.backends(machine.current)
        assert (lpips_fast.backends()["cuda"] is None) == (best == "cuda")
    assert lpips_fast.backends("cuda:0")["cuda"].endswith("Tesla T4 has 7.5")
    assert NO_CODE in lpips_fast.backends(torch.device("cuda", 1))["cuda"]


def test_each_gpu_is_asked_once(machine):
    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0), Gpu("NVIDIA A100-SXM4-80GB", 8, 0, OLD_DRIVER)]
    for _ in range(3):
        for index in (1, 0):
            backends.choose("auto", torch.device("cuda", index))
            lpips_fast.backends(index)
            lpips_fast.backends()
    assert sorted(machine.asked) == [0, 1]


def test_a_cpu_needs_no_gpu(machine):
    """Its choice asks no GPU: a process that forks later would have started CUDA."""
    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0)]
    assert backends.choose("auto", torch.device("cpu")) in ("cpu", "reference")
    assert machine.asked == []


def test_the_library_is_asked_under_modes(machine):
    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0)]
    found = []

    def ask(x):
        found.append(backends.choose("auto", torch.device("cuda", 0)))
        return x

    with FakeTensorMode(), FlopCounterMode(display=False):
        torch.func.vmap(torch.func.grad(lambda x: ask(x).sum()))(torch.ones(2))
    assert found == ["cuda"]
    assert machine.asked == [0]


def test_an_amd_gpu(machine, monkeypatch):
    """Its numbers look like those of a compute capability."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    for machine.gpus in ([Gpu("AMD Instinct MI300X", 9, 4)], [Gpu("AMD Instinct MI25", 5, 0)]):
        assert lpips_fast.backends()["cuda"] == "the CUDA kernels are for NVIDIA's GPUs, and this torch is for AMD's"
        assert backends.choose("auto", torch.device("cuda", 0)) == "triton"
        assert gpu_layers.available()
    assert machine.asked == []


def test_no_gpu(machine):
    reasons = lpips_fast.backends()
    assert reasons["cuda"] == "no GPU that torch can use"
    assert reasons["triton"].startswith("no GPU that torch can use (on the CPU it runs only in Triton's interpreter")
    for name in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match=f"{name!r} cannot be used for tensors on cpu: no GPU"):
            backends.choose(name, torch.device("cpu"))
    assert backends.choose("auto", torch.device("cuda", 0)) == "reference"


def test_tensors_that_are_elsewhere(machine):
    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0)]
    for name, device, reason in (
        ("cpu", "cuda:0", "it runs on the CPU"),
        ("cuda", "cpu", "it runs on a GPU"),
        (
            "triton",
            "cpu",
            "it runs on a GPU (on the CPU it runs only in Triton's interpreter, with TRITON_INTERPRET=1)",
        ),
        ("triton", "meta", "there are no kernels for meta"),
    ):
        if name != "cpu" or backends.is_implemented("head_fwd_cpu", "CPU"):
            with pytest.raises(RuntimeError, match=re.escape(f"cannot be used for tensors on {device}: {reason}")):
                backends.choose(name, torch.device(device))
    assert backends.choose("auto", torch.device("meta")) == "reference"
    assert backends.choose("reference", torch.device("cuda", 0)) == "reference"


@pytest.mark.parametrize("what", ("current_device", "get_device_properties"))
def test_a_gpu_is_broken(machine, monkeypatch, what):
    """As one in exclusive mode that another process holds, or any in a forked process."""

    def broken(*_):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    monkeypatch.setattr(torch.cuda, what, broken)
    reasons = lpips_fast.backends()
    assert reasons["cuda"] == reasons["triton"]
    assert reasons["cuda"] == "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable"
    assert backends.choose("auto", torch.device("cuda", 0)) == "reference"
    assert not gpu_layers.available()


def test_the_library_cannot_be_asked(machine):
    """As where torch cannot make the GPU the current one: the operator raises an error."""
    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0, error=None)]
    assert backends.choose("auto", torch.device("cuda", 0)) == "triton"
    assert "Error: " in lpips_fast.backends()["cuda"]


def test_the_library_is_not_built(machine, monkeypatch):
    machine.gpus = [Gpu("NVIDIA A100-SXM4-80GB", 8, 0)]
    monkeypatch.setattr(_library, "load_error", "the compiled library was not built")
    assert lpips_fast.backends()["cuda"] == "the compiled library was not built"
    assert backends.choose("auto", torch.device("cuda", 0)) == "triton"


def test_triton_cannot_compile(machine, monkeypatch):
    def fails():
        raise subprocess.CalledProcessError(1, ["gcc", "cuda_utils.c"])

    machine.gpus = [Gpu("Tesla T4", 7, 5)]
    monkeypatch.setattr(sys.modules["triton"].runtime.driver, "_active", SimpleNamespace(get_current_target=fails))
    assert "CalledProcessError: Command '['gcc', 'cuda_utils.c']'" in lpips_fast.backends()["triton"]
    assert backends.choose("auto", torch.device("cuda", 0)) == "reference"
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    backends._why_not.cache_clear()
    assert lpips_fast.backends()["triton"] == "triton needs a C compiler"


def test_cuda_kernels_on_the_cpu(emulator):
    """They run there if asked for by name. 'auto' does not take them."""
    cpu = torch.device("cpu")
    assert lpips_fast.backends(cpu)["cuda"] is None
    assert backends.choose("cuda", cpu) == "cuda"
    assert backends.choose("auto", cpu) != "cuda"


def library_says(key):
    """The answer of the compiled library for the first device."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    return torch.ops.lpips_fast.cuda_error.default.redispatch(keys, 0)


def test_the_emulators_answer(emulator):
    assert library_says("CPU") == ""


@pytest.mark.skipif(not backends.is_implemented("cuda_error", "CUDA"), reason="the library was built without nvcc")
def test_the_librarys_answer():
    if torch.cuda.is_available() and torch.cuda.get_device_capability(0) >= backends.AMPERE:
        assert library_says("CUDA") == ""
    else:
        pytest.skip("no GPU of compute capability 8.0 or newer")


def test_cuda_is_broken(machine, monkeypatch):
    def is_available():
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    reasons = lpips_fast.backends()
    assert reasons["cuda"] == reasons["triton"] == "RuntimeError: CUDA driver initialization failed"
    for device in ("cpu", "cuda:0"):
        with pytest.raises(RuntimeError, match=f"'triton' cannot be used for tensors on {device}: {reasons['triton']}"):
            backends.choose("triton", torch.device(device))
    assert backends.choose("auto", torch.device("cuda", 0)) == "reference"

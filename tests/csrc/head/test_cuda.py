"""What was compiled for the `cuda` backend, looked at without a GPU; and with one, its kernels under the sanitizer."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lpips_fast  # noqa: F401  defines the operators and loads the library

ROOT = Path(__file__).parents[3]
OPERATORS = ("head_fwd_cuda", "head_maps_fwd_cuda", "head_bwd_cuda", "cuda_error")
MAIN_KERNELS = ("head_fwd_kernel", "head_bwd_kernel")
SECOND_KERNELS = ("head_mean_kernel", "head_d_weights_kernel")
KERNELS = MAIN_KERNELS + SECOND_KERNELS
ARCHITECTURES = ("80", "90", "100", "120")
TYPES = 4
# The sizes of tiles, as in a mangled name, and how many blocks share a multiprocessor.
SMALL, LARGE = "Li4E", "Li8E"
BLOCKS = {SMALL: 2, LARGE: 3}
# Where the large tile does not run.
SMALL_MULTIPROCESSORS = ("86", "89", "120")

SANITIZED = """
import torch
from lpips_fast.functional import lpips_head, lpips_head_maps
from tests.support.features import features
for layout in ("nchw", "channels_last", "sliced"):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for net in ("odd", "vgg"):
            lists = [[t.requires_grad_() for t in ts] for ts in features(net, dtype, layout=layout, device="cuda")]
            leaves = [t for ts in lists for t in ts]
            torch.autograd.grad(lpips_head(*lists, backend="cuda").sum(), leaves)
            torch.autograd.grad(sum(m.sum() for m in lpips_head_maps(*lists, backend="cuda")), leaves)
torch.cuda.synchronize()
"""


def cuobjdump():
    """The toolkit's, or the one that comes with Triton; None where there is neither."""
    found = shutil.which("cuobjdump")
    triton = importlib.util.find_spec("triton")
    if found is None and triton is not None:
        bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        found = str(bundled) if bundled.exists() else None
    return found


def has_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    return shutil.which("nvcc") is not None or Path(home, "bin", "nvcc").exists()


@pytest.fixture(scope="module")
def library():
    """The built library's file; it must have been built with CUDA where there is an nvcc."""
    if not has_nvcc():
        pytest.skip("no nvcc")
    if os.environ.get("LPIPS_FAST_NO_CUDA", "0") not in ("", "0"):
        pytest.skip("LPIPS_FAST_NO_CUDA is set")
    spec = importlib.util.find_spec("lpips_fast._C")
    if spec is None:
        pytest.skip("the compiled library was not built")
    return spec.origin


def dump(library, *options):
    tool = cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump, neither the toolkit's nor Triton's")
    return subprocess.run([tool, *options, library], capture_output=True, text=True, check=True).stdout


def resources(report):
    """(architecture, function, its figures) of each function in what `cuobjdump --dump-resource-usage` prints."""
    architecture = None
    for line in report.splitlines():
        if found := re.match(r"\s*arch = sm_(\w+)", line):
            architecture = found[1]
        elif found := re.match(r"\s*Function (\S+):", line):
            function = found[1]
        elif "REG:" in line:
            yield architecture, function, {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", line)}


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_registered_for_cuda(library, operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lpips_fast::{operator}", "CUDA")


def test_code_for_each_architecture(library):
    if os.environ.get("LPIPS_FAST_CUDA_ARCHS"):
        pytest.skip("LPIPS_FAST_CUDA_ARCHS asks for other architectures")
    assert set(re.findall(r"\.sm_(\d+)\w*\.cubin", dump(library, "--list-elf"))) >= set(ARCHITECTURES)
    assert re.search(r"\.sm_100\w*\.ptx", dump(library, "--list-ptx"))


def test_kernels_use_no_local_memory(library):
    """No spilled register, no stack frame: `STACK` holds both."""
    kernels = [r for r in resources(dump(library, "--dump-resource-usage")) if any(k in r[1] for k in KERNELS)]
    architectures = {architecture for architecture, _, _ in kernels}
    per_type = len(MAIN_KERNELS) * len(BLOCKS) + len(SECOND_KERNELS)
    assert len(kernels) == len(architectures) * per_type * TYPES > 0
    run = [r for r in kernels if not (r[0] in SMALL_MULTIPROCESSORS and LARGE in r[1])]
    assert [r for r in run if r[2]["STACK"] or r[2]["LOCAL"]] == []


@pytest.mark.parametrize("tile", BLOCKS)
def test_main_kernels_leave_room_for_other_blocks(library, tile):
    """Blocks of 256 threads share 65,536 registers, which are given out by eights."""
    report = dump(library, "--dump-resource-usage")
    kernels = [r for r in resources(report) if any(k in r[1] for k in MAIN_KERNELS) and tile in r[1]]
    assert kernels
    assert [r for r in kernels if r[2]["REG"] > 65536 // (256 * BLOCKS[tile]) // 8 * 8] == []


def test_a_spill_would_be_seen():
    report = "arch = sm_90\n Function f:\n  REG:80 STACK:16 SHARED:0 LOCAL:0 CONSTANT[0]:1 TEXTURE:0\n"
    assert list(resources(report)) == [("90", "f", {"REG": 80, "STACK": 16, "LOCAL": 0})]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_library_needs_libtorch(library):
    """Through which it finds the current stream in libtorch_cuda, in torch before 2.13."""
    assert b"\0libtorch.so\0" in Path(library).read_bytes()


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("tool", ("memcheck", "racecheck"))
def test_sanitizer(tool):
    sanitize(tool)


def sanitize(tool):
    """Our kernels alone: torch's, instrumented, too, would take minutes."""
    command = ["compute-sanitizer", "--tool", tool, "--kernel-regex", "kns=head_", "--error-exitcode", "9"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, sys.executable, "-c", SANITIZED],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = run.stdout + run.stderr
    if "Device not supported" in output:  # in some containers, whatever the status
        pytest.skip("compute-sanitizer refuses the device: not supported")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


@pytest.mark.parametrize("status", (0, 1))
def test_a_device_that_the_sanitizer_refuses(monkeypatch, tmp_path, status):
    tool = tmp_path / "compute-sanitizer"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tool.write_text(f"#!/bin/sh\necho '========= Error: Device not supported'\nexit {status}\n")
    tool.chmod(0o755)
    with pytest.raises(pytest.skip.Exception, match="refuses the device"):
        sanitize("memcheck")
    tool.write_text("#!/bin/sh\necho '========= Invalid __global__ read'\nexit 9\n")
    with pytest.raises(AssertionError, match="Invalid __global__ read"):
        sanitize("memcheck")


def test_the_sanitizers_filter_has_all_kernels():
    assert all(kernel.startswith("head_") for kernel in KERNELS)

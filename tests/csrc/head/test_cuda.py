"""What was compiled for the `cuda` backend, looked at without a GPU; and with one, its kernels under the sanitizer."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lpips_fast  # noqa: F401  defines the operators and loads the library
from benchmarks.cost import cuda, records, sass

ROOT = Path(__file__).parents[3]
OPERATORS = ("head_fwd_cuda", "head_maps_fwd_cuda", "head_bwd_cuda", "cuda_error")
KERNELS = ("head_fwd_kernel", "head_bwd_kernel", "head_mean_kernel", "head_d_weights_kernel")
ARCHITECTURES = ("80", "90", "100", "120")
BLOCKS = {4: 2, 8: 3}  # that share a multiprocessor, by the packs that a thread has in a tile
SMALL_MULTIPROCESSORS = ("86", "89", "120")  # where the tile of 8 packs does not run

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
    try:
        return sass.output("cuobjdump", *options, library)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def code(library):
    try:
        return sass.of_library(Path(library))
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def costs(code, library):
    return cuda.records(code, sass.report(library))


def kernels(library):
    """The head's kernels: (architecture, instance, what it takes)."""
    report = dump(library, "--dump-resource-usage")
    found = [(arch, cuda.Instance.of(name), takes) for arch, name, takes in sass.resources(report)]
    return [kernel for kernel in found if kernel[1] is not None]


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_are_registered_for_cuda(library, operator):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lpips_fast::{operator}", "CUDA")


def test_code_for_each_architecture(library):
    if os.environ.get("LPIPS_FAST_CUDA_ARCHS"):
        pytest.skip("LPIPS_FAST_CUDA_ARCHS asks for other architectures")
    assert set(re.findall(r"\.sm_(\d+)\w*\.cubin", dump(library, "--list-elf"))) >= set(ARCHITECTURES)
    assert re.search(r"\.sm_100\w*\.ptx", dump(library, "--list-ptx"))


def test_kernels_use_no_local_memory(library):
    """No spilled register, no stack frame."""
    found = kernels(library)
    architectures = {architecture for architecture, _, _ in found}
    wanted = {
        (architecture, kernel, dtype, packs)
        for architecture, kernel, dtype in itertools.product(architectures, KERNELS, cuda.ITEMSIZE)
        for packs in (BLOCKS if kernel in cuda.MODES else [cuda.PACKS])
    }
    assert found
    assert {(architecture, x.kernel, x.dtype, x.packs) for architecture, x, _ in found} == wanted
    run = [kernel for kernel in found if not (kernel[0] in SMALL_MULTIPROCESSORS and kernel[1].packs == 8)]
    assert [kernel for kernel in run if kernel[2].stack or kernel[2].local] == []


@pytest.mark.parametrize("packs", BLOCKS)
def test_main_kernels_leave_room_for_other_blocks(library, packs):
    """Blocks of 256 threads share 65,536 registers, which are given out by eights."""
    found = [kernel for kernel in kernels(library) if kernel[1].kernel in cuda.MODES and kernel[1].packs == packs]
    assert found
    assert [kernel for kernel in found if kernel[2].registers > 65536 // (256 * BLOCKS[packs]) // 8 * 8] == []


def test_no_shared_access_stands_between_a_copy_and_its_wait(code):
    """The language does not promise it: the calls that commit and wait are no barriers for the compiler."""
    copying = set()
    for cubin in code:
        for function in cubin.functions:
            assert sass.accesses_before_wait(function) == [], function.name
            if any(x.kind == "LDGSTS" for x in function.instructions):
                copying.add((cubin.architecture, *cuda.Instance.of(function.name)[:2]))
    assert copying == set(itertools.product((cubin.architecture for cubin in code), cuda.MODES, cuda.ITEMSIZE))


def test_kernels_take_no_more_than_recorded(costs):
    recorded = records.read("cuda")
    targets = {record["target"] for record in recorded}
    assert targets >= {f"cuda {architecture}" for architecture in ARCHITECTURES}
    if os.environ.get("LPIPS_FAST_CUDA_ARCHS"):
        costs = [record for record in costs if record["target"] in targets]
        if not costs:
            pytest.skip(f"LPIPS_FAST_CUDA_ARCHS asks for none of the recorded {', '.join(sorted(targets))}")
    assert records.worse(costs, recorded) == []


def test_each_path_is_counted(costs):
    """The channels-last path of four packs is for types of four and eight bytes."""
    for record in costs:
        paths = {cuda.PLANAR, cuda.CHANNELS_LAST_2}
        if cuda.ITEMSIZE[record["dtype"]] > 2:
            paths.add(cuda.CHANNELS_LAST_4)
        modes = cuda.MODES.get(record["kernel"], ())
        assert set(record["ways"]) == {f"{mode}, {path}" for mode in modes for path in paths}


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

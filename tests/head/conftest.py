"""A test of the head that takes `backend` and `device` runs for each backend, on every device where it works here.

The CPU runs the kernels of all backends: Triton's in its interpreter, if TRITON_INTERPRET=1 was set before Triton was
imported, and CUDA's in the emulator, as on two devices with unlike multiprocessors.
"""

from __future__ import annotations

import pytest
import torch

import lpips_fast
from lpips_fast.head import backends


def _combinations():
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for backend in backends.BACKENDS:
        there = backend == "cuda"
        if there:
            yield pytest.param(backend, "cpu", id="cuda-emulated")
            yield pytest.param(backend, "cpu", id="cuda-emulated-100KiB", marks=pytest.mark.shared_memory(100 << 10))
            devices = [device for device in devices if device != "cpu"]
        for device in devices:
            try:
                backends.choose(backend, torch.device(device))
            except (ValueError, RuntimeError):
                continue
            there = True
            yield pytest.param(backend, device, id=f"{backend}-{device}")
        if not there:
            reason = lpips_fast.backends()[backend]
            yield pytest.param(backend, "cpu", id=backend, marks=pytest.mark.skip(reason=f"{backend}: {reason}"))


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames and "device" in metafunc.fixturenames:
        metafunc.parametrize(("backend", "device"), list(_combinations()))

"""A test of the head that takes `backend` and `device` runs for each backend, on every device where it works here.

The CPU runs the kernels of all backends: Triton's in its interpreter, if TRITON_INTERPRET=1 was set before Triton was
imported, and CUDA's in the emulator, as on two devices with unlike multiprocessors.
"""

from __future__ import annotations

import pytest
import torch

from lpips_fast.head import backends


def _combinations():
    yield pytest.param("cuda", "cpu", id="cuda-emulated")
    yield pytest.param("cuda", "cpu", id="cuda-emulated-100KiB", marks=pytest.mark.shared_memory(100 << 10))
    devices = [torch.device("cpu")] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
    for backend in backends.BACKENDS:
        # The emulator may be loaded already. It must not run without its fixture.
        reasons = {d.type: backends.why_not(backend, d) for d in devices if (backend, d.type) != ("cuda", "cpu")}
        works = [device for device, reason in reasons.items() if reason is None]
        for device in works:
            yield pytest.param(backend, device, id=f"{backend}-{device}")
        if not works and backend != "cuda":
            why = pytest.mark.skip(reason=f"{backend}: {reasons}")
            yield pytest.param(backend, "cpu", id=backend, marks=why)


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames and "device" in metafunc.fixturenames:
        metafunc.parametrize(("backend", "device"), list(_combinations()))

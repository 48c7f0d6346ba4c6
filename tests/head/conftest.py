"""A test of the head that takes `backend` and `device` runs for each backend, on every device where it works here.

The CPU runs the kernels of all backends: Triton's in its interpreter, if TRITON_INTERPRET=1 was set before Triton was
imported, and CUDA's in the emulator, as on two devices with unlike multiprocessors.
"""

from __future__ import annotations

import pytest
import torch

from lpips_fast.head import backends

SMALL_TILES = "cuda-emulated-100KiB"


def _combinations():
    yield pytest.param("cuda", "cpu", id="cuda-emulated")
    yield pytest.param("cuda", "cpu", id=SMALL_TILES, marks=pytest.mark.shared_memory(100 << 10))
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


# What does not depend on the size of a tile runs in one emulated device alone.
OF_ALL_TILES = ("test_more_than_2_31_elements_apart", "test_gradcheck", "test_opcheck", "test_compiled_in_one_graph")


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames and "device" in metafunc.fixturenames:
        found = list(_combinations())
        if metafunc.function.__name__ in OF_ALL_TILES:
            found = [combination for combination in found if combination.id != SMALL_TILES]
        metafunc.parametrize(("backend", "device"), found)

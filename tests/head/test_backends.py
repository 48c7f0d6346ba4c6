"""The choice of a backend."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.head import backends


@pytest.mark.parametrize(("capability", "best"), (((7, 5), "triton"), ((8, 0), "cuda")))
def test_a_gpu_that_the_cuda_kernels_are_not_for(monkeypatch, capability, best):
    backends.is_from_ampere_on.cache_clear()
    monkeypatch.setattr(backends, "_errors", lambda: dict.fromkeys(backends.BACKENDS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 5)
    assert backends.choose("auto", device) == best
    if best != "cuda":
        with pytest.raises(RuntimeError, match=r"'cuda' cannot be used: .* compute capability 8\.0 or newer"):
            backends.choose("cuda", device)
    backends.is_from_ampere_on.cache_clear()

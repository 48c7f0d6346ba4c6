"""Our providers are LPIPS, and a CUDA graph keeps its weights alive."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import lpips_fast
from lpips_fast.bench import cases, providers
from lpips_fast.bench.cases import Case

CPU = torch.device("cpu")
SMALL = Case("alex", 3, 32)


@pytest.mark.parametrize("name", sorted(set(providers.PROVIDERS) - set(providers.PEERS)))
def test_our_providers_are_lpips(name):
    """They differ in how they compute, not in what they compute."""
    provider = providers.PROVIDERS[name]
    made = provider.make(cases.random_lpips("alex"), cases.images(SMALL, CPU))
    assert isinstance(made, lpips_fast.LPIPS)


def test_a_graph_keeps_what_has_its_weights(monkeypatch):
    """The graph has only the addresses of the weights. If they were freed, it would read other memory."""
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda function, sample: lambda *images: sum(images))

    class Weights:
        def __call__(self, in0, in1):
            return in0 + in1

    weights = Weights()
    alive = weakref.ref(weights)
    distance = providers.graphed(weights, (torch.ones(1), torch.ones(1)))
    del weights
    gc.collect()
    assert alive() is not None
    assert distance(torch.ones(1), torch.ones(1)) == 2

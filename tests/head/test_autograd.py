"""How the head reaches a backend's operators: with a graph, without one, and under torch.func."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_fast.head import autograd
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_bwd_ref, head_maps_ref, head_ref
from tests.support.comparisons import assert_all_close, assert_close
from tests.support.features import features
from tests.support.tolerances import HEAD_GRAD_TOLERANCE, HEAD_VALUE_TOLERANCE

ALL = {"need0": True, "need1": True, "need_weights": True}


class Operators(TorchDispatchMode):
    """The names of our operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lpips_fast":
            self.names.append(func.name().removeprefix("lpips_fast::"))
        return func(*args, **(kwargs or {}))


def inputs_on(device, norm=None, needs=False):
    lists = features("odd", torch.float32, device=device)
    return HeadInput(*([t.requires_grad_(needs) for t in ts] for ts in lists), norm or Norm())


def operators_of(backend, *names):
    return [] if backend == "reference" else [f"{name}_{backend}" for name in names]


def test_one_operator_a_call(backend, device):
    """And none in the reference."""
    inputs = inputs_on(device)
    with Operators() as operators:
        value = autograd.head(backend, inputs)
        maps = autograd.head_maps(backend, inputs)
        autograd.head_backward(backend, inputs, [torch.ones_like(value)], mean=True, **ALL)
    assert operators.names == operators_of(backend, "head_fwd", "head_maps_fwd", "head_bwd")
    assert value.grad_fn is None
    assert all(m.grad_fn is None for m in maps)


@pytest.mark.parametrize("grad_mode", (torch.no_grad, torch.inference_mode))
def test_no_graph_where_gradients_are_off(backend, device, grad_mode):
    with grad_mode():
        assert autograd.head(backend, inputs_on(device, needs=True)).grad_fn is None


@pytest.mark.parametrize("norm", (Norm(), Norm(1e-3, inside_sqrt=True)), ids=str)
@pytest.mark.parametrize("mean", (True, False))
def test_gradients_without_autograd(backend, device, mean, norm):
    inputs = inputs_on(device, norm)
    out = [head_ref(inputs)] if mean else head_maps_ref(inputs)
    grads = [torch.randn_like(o) for o in out]
    found = autograd.head_backward(backend, inputs, grads, mean=mean, **ALL)
    expected = head_bwd_ref(inputs, grads, mean=mean, **ALL)
    n = len(inputs.weights)
    for i, name in enumerate(("d_feats0", "d_feats1", "d_weights")):
        kind = slice(i * n, (i + 1) * n)
        assert_all_close(found[kind], expected[kind], HEAD_GRAD_TOLERANCE, name)


def test_gradient_of_the_gradient_needs_no_operator(backend, device):
    inputs = inputs_on(device, needs=True)
    value = autograd.head(backend, inputs)
    with Operators() as operators:
        (d_f0,) = torch.autograd.grad(value.sum(), inputs.feats0[:1], create_graph=True)
        torch.autograd.grad(d_f0.square().sum(), inputs.feats0[0])
    assert operators.names == []


@pytest.mark.parametrize("maps", (False, True), ids=("mean", "maps"))
def test_vmap_goes_by_the_reference(backend, device, maps):
    feats0, feats1, weights = features("odd", torch.float32, device=device)
    function = autograd.head_maps if maps else autograd.head

    def of_one(f0, f1):
        out = function(backend, HeadInput([f0], [f1], weights[:1], Norm()))
        return out[0] if maps else out

    with Operators() as operators:
        found = torch.func.vmap(of_one)(feats0[0][:, None], feats1[0][:, None])
    assert operators.names == []
    expected = function("reference", HeadInput(feats0[:1], feats1[:1], weights[:1], Norm()))
    expected = expected[0] if maps else expected
    assert_close(found[:, 0], expected, HEAD_VALUE_TOLERANCE[torch.float32], "value")

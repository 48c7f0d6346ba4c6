"""What torch is doing around a call, seen from within torch's own transformations."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lpips_fast import _torch_state as state


class Watched(nn.Module):
    """Calls a function in its forward."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def forward(self, x):
        self.watch()
        return (x * x).sum()


X = torch.rand(3)


def during(watch):
    """What a function gives during a call of each kind."""
    kinds = {
        "plain": lambda module: module(X),
        "no_grad": lambda module: torch.no_grad()(module)(X),
        "grad": lambda module: torch.func.grad(module)(X),
        "vjp": lambda module: torch.func.vjp(module, X),
        "vmap": lambda module: torch.func.vmap(module)(X[None]),
        "vmap within grad": lambda module: torch.func.grad(lambda x: torch.func.vmap(module)(x[None]).sum())(X),
        "grad within vmap": lambda module: torch.func.vmap(torch.func.grad(module))(X[None]),
        "jvp": lambda module: torch.func.jvp(module, (X,), (X,)),
        "dual": lambda module: dual(module),
        "trace": lambda module: torch.jit.trace(module, X, check_trace=False),
        "export": lambda module: torch.export.export(module, (X,), strict=False),
    }
    found = {}
    for kind, call in kinds.items():
        seen = set()
        call(Watched(lambda seen=seen: seen.add(watch())))
        (found[kind],) = seen
    assert not watch(), "nothing is left behind"
    return {kind for kind, value in found.items() if value}


def dual(module):
    with forward_ad.dual_level():
        module(forward_ad.make_dual(X, X))


RECORDED = {"trace", "export"}
OF_FUNC = {"grad", "vjp", "vmap", "vmap within grad", "grad within vmap", "jvp"}


def test_is_recorded():
    assert during(state.is_recorded) == RECORDED


def test_plain_torch_only():
    assert during(state.plain_torch_only) == RECORDED | OF_FUNC - {"grad", "vjp"} | {"dual"}


def test_in_torch_func():
    assert during(state.in_torch_func) == OF_FUNC


def test_torch_compile_takes_them_for_constants():
    """And compiles anew where they are others."""

    def f(x):
        return x + 1 if state.plain_torch_only() or state.is_recorded() or state.in_torch_func() else x - 1

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), X - 1)
    assert torch.equal(torch.func.vmap(compiled)(X), X + 1)
    assert torch.equal(compiled(X), X - 1)


def test_unobserved():
    """Counters do not see the operators; fake tensors stay fake; an error puts the modes back."""
    a = torch.rand(2, 3)
    with FlopCounterMode(display=False) as counter:
        with state.unobserved():
            a @ a.T
        assert counter.get_total_flops() == 0
        with pytest.raises(RuntimeError), state.unobserved():
            a @ a
        a @ a.T
        assert counter.get_total_flops() == 2 * 2 * 3 * 2
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, state.unobserved():
        assert isinstance(torch.empty(2, 3), FakeTensor)


class Square(torch.autograd.Function):
    """x^2, which notes what a function of the incoming gradient and x gives in the backward."""

    watch = None
    seen = None

    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        Square.seen.append(Square.watch(grad, x))
        return 2 * x * grad


@pytest.fixture
def in_backward(monkeypatch):
    """What a function gives in the backward of x^2, by a call that runs it."""

    def in_backward(watch, call):
        monkeypatch.setattr(Square, "watch", staticmethod(watch))
        monkeypatch.setattr(Square, "seen", [])
        call(Square.apply)
        assert Square.seen
        return Square.seen

    return in_backward


def backward(**options):
    def call(f):
        x = X.clone().requires_grad_()
        y = f(x)
        grad = torch.eye(3) if options.get("is_grads_batched") else torch.ones(3)
        torch.autograd.grad(y, x, grad, **options)

    return call


def test_is_batched(in_backward):
    def watch(grad, x):
        return state.is_batched(grad)

    assert in_backward(watch, backward()) == [False]
    assert in_backward(watch, backward(is_grads_batched=True)) == [True]
    assert in_backward(watch, lambda f: torch.func.vjp(f, X)[1](X)) == [False]
    assert in_backward(watch, lambda f: torch.func.jacrev(f)(X)) == [True]


def test_is_differentiated(in_backward):
    """With create_graph; not where torch.func.vjp runs a plain backward, though gradients are enabled there."""

    def watch(grad, x):
        return state.is_differentiated(grad, x)

    assert in_backward(watch, backward()) == [False]
    assert in_backward(watch, backward(create_graph=True)) == [True]
    assert in_backward(watch, lambda f: torch.func.vjp(f, X)[1](X)) == [False]
    with torch.no_grad():
        assert not state.is_differentiated(X.clone().requires_grad_())


def test_keeps_graph(in_backward):
    def watch(grad, x):
        return state.keeps_graph()

    assert in_backward(watch, backward()) == [False]
    assert in_backward(watch, backward(retain_graph=True)) == [True]
    assert in_backward(watch, backward(create_graph=True)) == [True]


def test_has_saved_tensor_hooks():
    assert not state.has_saved_tensor_hooks()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert state.has_saved_tensor_hooks()
    seen = []
    watched = Watched(lambda: seen.append(state.has_saved_tensor_hooks()))
    checkpoint(watched, X.clone().requires_grad_(), use_reentrant=False)
    assert seen == [True]
    assert not state.has_saved_tensor_hooks()


def test_autocast_by_device():
    """The device meta has no autocast, and torch raises an error for it."""
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert not state.is_autocast_enabled(cpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert state.is_autocast_enabled(cpu)
        assert not state.is_autocast_enabled(meta)
        with state.without_autocast(cpu):
            assert not state.is_autocast_enabled(cpu)
            assert (X @ X).dtype == torch.float32
        with state.without_autocast(meta):
            assert state.is_autocast_enabled(cpu)
        assert (X[None] @ X[:, None]).dtype == torch.bfloat16


def test_to_dtype():
    assert state.to_dtype(X, torch.float32) is X
    assert torch.equal(state.to_dtype(X, torch.bfloat16), X.bfloat16())


def test_to_dtype_leaves_nothing_in_a_program():
    """x.to(x.dtype) would leave a check of the device in it."""

    class Cast(nn.Module):
        def forward(self, x):
            return state.to_dtype(x, torch.float32) + 1

    graph = torch.export.export(Cast(), (X,), strict=False).graph
    assert [node.target for node in graph.nodes if node.op == "call_function"] == [torch.ops.aten.add.Tensor]


def test_with_signature():
    def f(a, *, b: int = 2):
        return a + b

    expected = inspect.signature(f)
    assert state.with_signature(f) is f
    assert inspect.signature(f) is f.__signature__
    assert inspect.signature(f) == expected


class Named(torch.Tensor):
    """A subclass that adds nothing to operators, as MONAI's and torchvision's."""


def test_as_plain_tensor():
    """In its graph, and with its memory."""
    x = torch.rand(3, requires_grad=True)
    named = (2 * x).as_subclass(Named)
    plain = state.as_plain_tensor(named)
    assert type(plain) is torch.Tensor
    assert plain.data_ptr() == named.data_ptr()
    plain.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))


def test_tensors_that_stay_as_they_are():
    with FakeTensorMode():
        fake = torch.empty(3)
    for tensor in (X, nn.Parameter(X), fake):
        assert state.as_plain_tensor(tensor) is tensor

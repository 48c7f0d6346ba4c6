"""torch.compile of LPIPS gives what plain eager mode gives, in one graph."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from tests.support.comparisons import assert_close, assert_norms_close, assert_value_and_gradient_close
from tests.support.gradients import value_and_gradient
from tests.support.images import noise, pair
from tests.support.instructions import LOW_TYPES, set_instructions
from tests.support.parameters import BACKENDS, CUDA, NETS
from tests.support.tolerances import (
    COMPILED_GRAD_TOLERANCE,
    REORDERED_TOLERANCE,
    ROUNDED_INPUT_TOLERANCE,
    VALUE_TOLERANCE,
)


class TestCompile:
    @pytest.mark.parametrize("grad_in_forward", (False, True))
    def test_batch_sizes_share_a_graph(self, make_ours, grad_in_forward):
        """The first batch size has one graph, and all others share another."""
        module = make_ours("squeeze", grad_in_forward=grad_in_forward)
        from torch._dynamo.testing import CompileCounterWithBackend

        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(module, fullgraph=True, backend=counter)
        for n in (2, 3, 5):
            in0, in1 = pair(n, 33, 33)
            assert_value_and_gradient_close(
                value_and_gradient(compiled, in0, in1), value_and_gradient(module, in0, in1)
            )
        assert counter.frame_count <= 2

    @pytest.mark.parametrize("no_grad", (False, True))
    def test_without_gradients(self, module, no_grad):
        """As a metric is compiled, in one graph."""
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        in0, in1 = pair(2, 33, 33)
        with torch.set_grad_enabled(not no_grad):
            assert_close(compiled(in0, in1), module(in0, in1).double(), VALUE_TOLERANCE[torch.float32])

    @CUDA
    @pytest.mark.parametrize("grad_in_forward", (False, True))
    def test_reduce_overhead(self, make_ours, grad_in_forward):
        fn = make_ours("squeeze", grad_in_forward=grad_in_forward).cuda()
        in0, in1 = (x.cuda() for x in pair(2, 40, 40))
        expected = value_and_gradient(fn, in0, in1)
        torch._dynamo.reset()
        compiled = torch.compile(fn, mode="reduce-overhead", fullgraph=True)
        for _ in range(4):  # warm up, record, replay
            assert_value_and_gradient_close(value_and_gradient(compiled, in0, in1), expected)


@pytest.mark.parametrize("options", ({}, {"spatial": True}, {"lpips": False, "version": "0.0"}), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_compiled_in_one_graph(make_ours, net, backend, options):
    """dynamo and AOTAutograd trace forward and backward, fullgraph; test_compiled_by_inductor compiles."""
    module = make_ours(net, backend=backend, **options)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    in0, in1 = pair(1, 35, 35)
    in0.requires_grad_()
    value, expected = compiled(in0, in1), module(in0, in1)
    assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
    (grad,), (expected_grad,) = (torch.autograd.grad(v.sum(), in0) for v in (value, expected))
    assert_close(grad, expected_grad.double(), COMPILED_GRAD_TOLERANCE)


# On a processor without instructions for bfloat16, eager mode takes torch's layers, too, only with cpu_conv='direct'.
@pytest.mark.parametrize("options,instructions", (
    ({}, True),
    ({"grad_in_forward": True}, True),
    ({"precision": "bfloat16"}, True),
    ({"precision": "bfloat16", "cpu_conv": "direct"}, False),
    ({"precision": "bfloat16", "cpu_conv": "direct", "grad_in_forward": True}, False),
), ids=str)  # fmt: skip
def test_compiled_with_images_of_two_types(make_ours, monkeypatch, options, instructions):
    """Also an image without a batch dimension."""
    set_instructions(monkeypatch, instructions)
    module = make_ours("squeeze", **options)
    in0, in1 = pair(1, 35, 35)
    for types in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        x0, x1 = (x.to(dtype).requires_grad_() for x, dtype in zip((in0, in1), types))
        value, expected = compiled(x0, x1), module(x0, x1)
        assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
        found, exact = (torch.autograd.grad(v.sum(), (x0, x1)) for v in (value, expected))
        assert tuple(grad.dtype for grad in found) == types
        for grad, expected_grad in zip(found, exact):
            assert (grad - expected_grad).norm() <= ROUNDED_INPUT_TOLERANCE * expected_grad.norm()
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(in0[0], in1), module(in0, in1).double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", LOW_TYPES, ids=str)
def test_compiled_graphs_without_instructions(make_ours, monkeypatch, dtype):
    """No convolution of the forward and of the backward graph has a low type."""
    set_instructions(monkeypatch, False)
    fn = make_ours("squeeze", precision=str(dtype).removeprefix("torch."))
    types = []

    def compiler(graph, _):
        nodes = [node for node in graph.graph.nodes if "convolution" in str(node.target)]
        types.append({node.args[0].meta["val"].dtype for node in nodes})
        return make_boxed_func(graph)

    torch._dynamo.reset()
    compiled = torch.compile(fn, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    value, grad = value_and_gradient(compiled, *pair(1, 35, 35))
    assert value.dtype == grad.dtype == torch.float32
    assert types == [{torch.float32}] * 2


def test_compiled_where_a_parent_sets_the_flags(make_ours):
    """A GAN toggles requires_grad: LPIPS stays frozen, and is compiled at most twice."""
    module = make_ours("squeeze")
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    in0, in1 = pair(1, 35, 35)
    values = []
    for flag in (False, True, False, True):
        for p in module.parameters():
            p.requires_grad = flag
        value = compiled(in0.requires_grad_(), in1)
        values.append(value.item())
        value.sum().backward()
    assert len(set(values)) == 1
    assert all(p.grad is None for p in module.parameters())
    assert counter.frame_count <= 2


def test_compiled_by_inductor(make_ours):
    module = make_ours("squeeze")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    in0, in1 = pair(1, 35, 35)
    in0.requires_grad_()
    value, expected = compiled(in0, in1), module(in0, in1)
    assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
    (grad,), (expected_grad,) = (torch.autograd.grad(v.sum(), in0) for v in (value, expected))
    assert_close(grad, expected_grad.double(), COMPILED_GRAD_TOLERANCE)


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_compiled_with_the_surrounding_model(make_ours, grad_in_forward):
    in0, in1 = noise(2)
    fn = make_ours("alex", grad_in_forward=grad_in_forward, chunk_size=1 if grad_in_forward else None)
    generator = torch.nn.Conv2d(3, 3, 3, padding=1)

    def step(x, target):
        return fn(torch.tanh(generator(x)), target).mean()

    torch._dynamo.reset()
    (expected,) = torch.autograd.grad(step(in0, in1), generator.weight)
    (found,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(in0, in1), generator.weight)
    assert_norms_close([found], [expected], REORDERED_TOLERANCE)

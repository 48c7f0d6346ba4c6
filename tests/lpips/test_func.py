"""torch.func: grad, vjp, vmap, jvp, Jacobians and Hessians."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from tests.support.comparisons import assert_close, assert_value_and_gradient_close
from tests.support.images import pair
from tests.support.tolerances import GRAD_TOLERANCE, VALUE_TOLERANCE


class TestFunc:
    @pytest.fixture(params=("plain", "gradient in forward", "reference"))
    def transformed(self, request, make_ours):
        options = {"plain": {}, "gradient in forward": {"grad_in_forward": True}, "reference": {"backend": "reference"}}
        return make_ours("squeeze", **options[request.param]), *pair(2, 40, 40)

    def test_grad_and_vjp(self, transformed, expected):
        fn, in0, in1 = transformed
        value, vjp = torch.func.vjp(lambda x: fn(x, in1), in0)
        (grad,) = vjp(torch.ones_like(value))
        assert_value_and_gradient_close((value, grad), expected)
        assert_value_and_gradient_close((value, torch.func.grad(lambda x: fn(x, in1).sum())(in0)), expected)

    def test_functional_call(self, make_ours, expected):
        fn = make_ours("squeeze")
        doubled = {name: 2 * p for name, p in fn.named_parameters() if name.startswith("lin")}
        value = torch.func.functional_call(fn, doubled, pair(2, 40, 40))
        assert_close(value, 2 * expected[0].double(), VALUE_TOLERANCE[torch.float32])

    def test_vmap(self, transformed, expected):
        """vmap over pairs, over their gradients, and over pairs that share one image."""
        fn, in0, in1 = transformed
        gradient = torch.func.vmap(torch.func.grad(lambda x, y: fn(x[None], y[None]).sum()))(in0, in1)
        value = torch.func.vmap(fn)(in0[:, None], in1[:, None])
        assert_value_and_gradient_close((value[:, 0], gradient), expected)
        value = torch.func.vmap(fn, (0, None))(in0[:, None], in1[:1])
        assert_close(value[:, 0], fn(in0, in1[:1]).double(), VALUE_TOLERANCE[torch.float32])
        x = in0.clone().requires_grad_()
        torch.func.vmap(fn)(x[:, None], in1[:, None]).sum().backward()
        assert_value_and_gradient_close((value, x.grad), (value, expected[1]))

    def test_forward_mode(self, transformed, expected):
        fn, in0, in1 = transformed
        direction = pair(2, 40, 40)[1] - 0.1
        wanted = (expected[1] * direction).double().sum(dim=(1, 2, 3))
        _, found = torch.func.jvp(lambda x: fn(x, in1).flatten(), (in0,), (direction,))
        assert_close(found, wanted, (GRAD_TOLERANCE[torch.float32], 0))
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(fn(forward_ad.make_dual(in0, direction), in1)).tangent
        assert_close(found.flatten(), wanted, (GRAD_TOLERANCE[torch.float32], 0))

    @pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch warns so about is_grads_batched
    def test_jacobian(self, transformed, expected):
        """Several gradients go back at once: by autograd's is_grads_batched, and by jacrev."""
        fn, in0, in1 = transformed
        x = in0.clone().requires_grad_()
        (found,) = torch.autograd.grad(fn(x, in1).flatten(), x, torch.eye(2), is_grads_batched=True)
        for jacobian in (found, torch.func.jacrev(lambda x: fn(x, in1).flatten())(in0)):
            each = torch.stack((jacobian[0, 0], jacobian[1, 1]))
            assert_value_and_gradient_close((each, each), (expected[1], expected[1]))
            assert jacobian[0, 1].abs().max() == jacobian[1, 0].abs().max() == 0

    def test_hessian(self, make_ours):
        """The second derivative along a direction, forward or reverse over reverse, against double backward."""
        fn = make_ours("squeeze", backend="auto").double()
        in0, in1 = pair(1, 24, 24, dtype=torch.float64)
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)

        def along(t):
            return fn(in0 + t * (in1 - 0.1), in1).sum()

        (first,) = torch.autograd.grad(along(t), t, create_graph=True)
        (wanted,) = torch.autograd.grad(first, t)
        for transform in (torch.func.hessian(along), torch.func.jacrev(torch.func.jacrev(along))):
            torch.testing.assert_close(transform(t.detach()), wanted)

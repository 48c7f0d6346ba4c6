"""Modes of torch around a call: no_grad, inference_mode, deterministic algorithms, fake tensors, make_fx."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from tests.support.comparisons import assert_value_and_gradient_close
from tests.support.gradients import value_and_gradient
from tests.support.images import noise, pair


def test_usable_under_no_grad_and_inference_mode(make_ours):
    module, in0, in1 = make_ours(), *pair(1, 31, 31)
    expected = module(in0, in1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(module(in0, in1), expected)
    in0.requires_grad_()
    module(in0, in1).backward()  # the module keeps no tensor made in inference mode
    assert in0.grad is not None


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_deterministic_algorithms(make_ours, expected, grad_in_forward):
    torch.use_deterministic_algorithms(True)
    try:
        assert_value_and_gradient_close(
            value_and_gradient(make_ours("squeeze", grad_in_forward=grad_in_forward), *pair(2, 40, 40)), expected
        )
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_fake_tensors_leave_nothing_behind(make_ours, net):
    """Tools that look at shapes call a real module under FakeTensorMode: later calls give real tensors."""
    fn = make_ours(net)
    in0, in1 = noise(1)
    for _ in range(2):
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert isinstance(fn(in0, in1), FakeTensor)
            assert isinstance(fn(in0.requires_grad_(), in1), FakeTensor)
        value = fn(in0.detach(), in1)
        assert type(value) is torch.Tensor
        assert torch.equal(value, make_ours(net)(in0.detach(), in1))
        in0 = in0.detach()


def test_traced_by_make_fx(module):
    in0, in1 = noise(1)
    traced = make_fx(module)(in0, in1)
    assert torch.equal(traced(in0, in1), module(in0, in1))

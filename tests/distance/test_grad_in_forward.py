"""grad_in_forward gives the ordinary gradient, and takes the ordinary path where it must."""

from __future__ import annotations

import pytest
import torch

from tests.support.comparisons import assert_norms_close
from tests.support.gradients import gradients
from tests.support.images import NOISE_SIZE, noise
from tests.support.parameters import NETS
from tests.support.tolerances import GRAD_TOLERANCE


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("needs", ((True, False), (False, True), (True, True)))
@pytest.mark.parametrize("batches", ((3, 3), (1, 3), (3, 1)))
def test_gradient_in_forward_equals_ordinary(make_ours, net, needs, batches):
    if net == "vgg" and (batches != (3, 3) or needs == (False, True)):
        pytest.skip("the same code as for the smaller nets, and slow in float64")
    in0, in1 = noise(3)
    in0, in1 = in0[: batches[0]], in1[: batches[1]]
    ordinary = gradients(make_ours(net).double(), in0.double(), in1.double(), needs)
    for chunk_size in (None, 1, 2, "auto"):
        fn = make_ours(net, grad_in_forward=True, chunk_size=chunk_size).double()
        value, grads = gradients(fn, in0.double(), in1.double(), needs)
        assert_norms_close([value, *grads], [ordinary[0], *ordinary[1]], GRAD_TOLERANCE[torch.float64])


@pytest.mark.parametrize("net", NETS)
def test_gradient_equals_lpips(make_ours, make_theirs, net):
    in0, in1 = noise(2, dtype=torch.float64)
    expected = gradients(make_theirs(net, torch.float64), in0, in1)
    for options in ({}, {"grad_in_forward": True, "chunk_size": 1}):
        found = gradients(make_ours(net, **options).double(), in0, in1)
        assert_norms_close([found[0], *found[1]], [expected[0], *expected[1]], GRAD_TOLERANCE[torch.float64])


@pytest.mark.parametrize("needs", ((True, False), (True, True)))
def test_empty_batch_has_a_gradient(make_ours, needs):
    """The gradient is an empty tensor, not None."""
    x = torch.zeros(0, 3, 40, 40)
    value, grads = gradients(make_ours("alex", grad_in_forward=True), x, x, needs)
    assert value.shape == (0, 1, 1, 1)
    assert [grad.shape for grad in grads] == [x.shape] * sum(needs)


def test_maps_asked_for_later_take_the_ordinary_path(make_ours):
    in0, in1 = noise(2)
    fn = make_ours("alex", grad_in_forward=True)
    fn.spatial = True
    assert torch.equal(fn(in0.clone().requires_grad_(), in1), make_ours("alex", spatial=True)(in0, in1))


def test_gradient_to_pixel_weights_takes_the_ordinary_path(make_ours):
    in0, in1 = noise(2)
    weights = []
    for grad_in_forward in (False, True):
        weight = torch.ones(2, 1, NOISE_SIZE, NOISE_SIZE, requires_grad=True)
        in0.requires_grad_()
        make_ours("alex", grad_in_forward=grad_in_forward)(in0, in1, weight=weight).sum().backward()
        weights.append(weight.grad)
    assert torch.equal(*weights)
    assert weights[0].abs().max() > 0


def test_per_layer_parts_and_trainable_weights_take_the_ordinary_path(make_ours):
    in0, in1 = noise(2)
    fn = make_ours("alex", grad_in_forward=True)
    in0.requires_grad_()
    _, parts = fn(in0, in1, retPerLayer=True)
    (found,) = torch.autograd.grad(parts[2].sum(), in0)
    (expected,) = torch.autograd.grad(make_ours("alex")(in0, in1, retPerLayer=True)[1][2].sum(), in0)
    assert torch.equal(found, expected)

    trainable = make_ours("alex", grad_in_forward=True, eval_mode=False, use_dropout=False)
    trainable(in0, in1).sum().backward()
    assert all(weight.grad is not None for weight in trainable.linear_weights())


@pytest.mark.parametrize("other", ("features", "one for all"))
def test_one_tap(make_ours, other):
    """A list of one tap is no image."""
    in0, in1 = (x.double() for x in noise(3))
    found = []
    for grad_in_forward in (True, False):
        fn = make_ours("alex", grad_in_forward=grad_in_forward).double()
        fn.L = 1
        x, y = in0.clone().requires_grad_(), fn.features(in1) if other == "features" else in1[:1]
        value = fn(x, y)
        found.append([value.detach(), *torch.autograd.grad(value.sum(), x)])
    assert_norms_close(*found, GRAD_TOLERANCE[torch.float64])

"""eval_mode=False: dropout, gradients to the linear weights and to the trunk."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from tests.support.comparisons import assert_close
from tests.support.images import pair
from tests.support.parameters import BACKENDS, NETS
from tests.support.tolerances import (
    DROPOUT_MEAN_TOLERANCE,
    LINEAR_WEIGHT_GRAD_TOLERANCE,
    TRUNK_WEIGHT_GRAD_TOLERANCE,
    VALUE_TOLERANCE,
)


def test_training_mode_has_dropout_and_trains_the_linear_weights(make_ours):
    module = make_ours(eval_mode=False)
    in0, in1 = pair(2, 31, 31)
    assert module.training
    first, second = module(in0, in1), module(in0, in1)
    assert not torch.equal(first, second)  # dropout
    first.sum().backward()
    names = {name for name, p in module.named_parameters() if p.grad is not None}
    assert names == {f"lin{k}.model.1.weight" for k in range(5)}
    assert torch.equal(module.eval()(in0, in1), make_ours()(in0, in1))
    assert module.train()(in0, in1).requires_grad


@pytest.mark.parametrize("net", NETS)
def test_clamping_as_people_calibrate(make_ours, make_theirs, net):
    """The loop of lpips's Trainer clamps all 1x1 convolutions, also those in SqueezeNet's trunk."""
    ours, theirs = make_ours(net, eval_mode=False), copy.deepcopy(make_theirs(net, eval_mode=False))
    in0, in1 = pair(1, 31, 31)
    ours.eval()(in0, in1)  # the trunk converts its weights and keeps the result
    clamped = []
    for module in (ours, theirs):
        with torch.no_grad():
            for lin in module.lins:
                lin.model[-1].weight.sub_(0.01)
        for m in module.modules():
            if hasattr(m, "weight") and m.kernel_size == (1, 1):
                m.weight.data = torch.clamp(m.weight.data, min=0)
        clamped.append({name: p for name, p in module.named_parameters() if (p >= 0).all()})
    assert clamped[0].keys() == clamped[1].keys()
    assert {f"lin{k}.model.1.weight" for k in range(ours.L)} <= clamped[0].keys()
    assert_close(ours(in0, in1), theirs.eval()(in0, in1).double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
def test_dropout_drops_squared_differences(make_ours, make_theirs, spatial):
    """As in lpips: without dropout both agree, and with dropout the mean over many draws is the same."""
    ours, theirs = make_ours(eval_mode=False, spatial=spatial), make_theirs(eval_mode=False, spatial=spatial)
    in0, in1 = pair(2, 31, 31)
    with torch.no_grad():
        mean = torch.stack([ours(in0, in1) for _ in range(100)]).mean(0).mean((1, 2, 3))
    for module in (ours, theirs):
        for dropout in (m for m in module.modules() if isinstance(m, nn.Dropout)):
            assert dropout.p == 0.5
            dropout.p = 0.0
    (value, parts), (expected, expected_parts) = (m(in0, in1, retPerLayer=True) for m in (ours, theirs))
    for found, exact in zip((value, *parts), (expected, *expected_parts), strict=True):
        assert_close(found, exact.double(), VALUE_TOLERANCE[torch.float32])
    assert_close(mean, expected.double().mean((1, 2, 3)), (0, DROPOUT_MEAN_TOLERANCE))


@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
def test_dropout_in_low_precision_is_summed_in_float32(make_ours, spatial):
    module, (in0, in1) = make_ours(eval_mode=False, spatial=spatial), pair(1, 31, 31)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(in0, in1).dtype == torch.float32
    assert module.half()(in0.half(), in1.half()).dtype == torch.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_to_the_linear_weights(make_ours, make_theirs, backend):
    ours = make_ours(eval_mode=False, use_dropout=False, backend=backend)
    theirs = copy.deepcopy(make_theirs(eval_mode=False, use_dropout=False))
    theirs.load_state_dict(ours.state_dict())
    theirs.double()
    in0, in1 = pair(3, 31, 31)
    ours(in0, in1).sum().backward()
    theirs(in0.double(), in1.double()).sum().backward()
    for lin, lin_ref in zip(ours.lins, theirs.lins):
        assert_close(lin.model[0].weight.grad, lin_ref.model[0].weight.grad, LINEAR_WEIGHT_GRAD_TOLERANCE)


def test_tuning_the_trunk(make_ours, make_theirs):
    ours = make_ours(eval_mode=False, pnet_tune=True, use_dropout=False)
    theirs = copy.deepcopy(make_theirs(eval_mode=False, use_dropout=False)).requires_grad_()
    theirs.load_state_dict(ours.state_dict())
    theirs.double()
    in0, in1 = pair(2, 31, 31)
    ours(in0, in1).sum().backward()
    theirs(in0.double(), in1.double()).sum().backward()
    for (name, p), (name_ref, p_ref) in zip(ours.net.named_parameters(), theirs.net.named_parameters(), strict=True):
        assert name == name_ref
        assert_close(p.grad, p_ref.grad, TRUNK_WEIGHT_GRAD_TOLERANCE, name)
    before = ours.net.slice1[0].weight.detach().clone()
    torch.optim.SGD(ours.parameters(), lr=0.1).step()
    value = ours(in0, in1)
    assert not torch.equal(ours.net.slice1[0].weight, before)
    fresh = make_ours(use_dropout=False)
    fresh.load_state_dict(ours.state_dict())
    assert_close(value, fresh(in0, in1).double(), VALUE_TOLERANCE[torch.float32])

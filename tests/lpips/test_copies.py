"""Copies and replicas of a module, and a layer that is replaced."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch._dynamo.testing
from torch import nn

from tests.support.comparisons import assert_close
from tests.support.images import pair
from tests.support.parameters import NETS
from tests.support.tolerances import VALUE_TOLERANCE


@pytest.mark.parametrize(
    "duplicate", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("deepcopy", "pickle")
)
@pytest.mark.parametrize("used_before", (False, True))
def test_copies(make_ours, duplicate, used_before):
    module, in0, in1 = make_ours(spatial=True, version="0.0"), *pair(1, 31, 31)
    expected = module(in0, in1) if used_before else None
    other = duplicate(module)
    value = other(in0, in1)
    assert torch.equal(value, module(in0, in1) if expected is None else expected)
    assert not other.train().training
    with torch.no_grad():
        other.lin0.model[-1].weight.zero_()
    assert not torch.equal(other(in0, in1), value)
    assert torch.equal(module(in0, in1), value)


def test_a_layer_that_is_replaced(make_ours, make_theirs):
    """The module's present layers are used, as in lpips; a replica of nn.DataParallel has its own layers and caches."""
    ours, theirs, (in0, in1) = make_ours(), copy.deepcopy(make_theirs()), pair(1, 40, 40)
    before = ours(in0, in1)
    layer = nn.Conv2d(3, 64, 11, 4, 2).requires_grad_(False)
    ours.net.slice1[0] = theirs.net.slice1[0] = layer
    value = ours(in0, in1)
    assert_close(value, theirs(in0, in1).double(), VALUE_TOLERANCE[torch.float32])
    assert not torch.allclose(value, before, rtol=0.01)
    replica = ours.net._replicate_for_data_parallel()
    assert replica._kept is not ours.net._kept


def replicated(module):
    """A replica as nn.DataParallel makes it: parameters are tensors in plain attributes."""
    replica = module._replicate_for_data_parallel()
    for name, child in module.named_children():
        setattr(replica, name, replicated(child))
    for name, p in module.named_parameters(recurse=False):
        setattr(replica, name, p.detach().clone())
    for name, buffer in module.named_buffers(recurse=False):
        setattr(replica, name, buffer.clone())
    return replica


@pytest.mark.parametrize("net", NETS)
def test_replicas_stay_fused(make_ours, net):
    module, (in0, in1) = make_ours(net), pair(1, 40, 40)
    replica = replicated(module)
    assert replica.is_stock()
    assert torch.equal(replica(in0, in1), module(in0, in1))

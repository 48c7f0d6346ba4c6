"""Plans and settings: what they say of the nets, and that they are data."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F

from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.nets import NETS
from lpips_fast.trunk.program import Conv, Expand, Pool


def convolutions(plan):
    return [c for step in plan for c in ((step.conv1x1, step.conv3x3) if isinstance(step, Expand) else (step,))]


@pytest.mark.parametrize("net", NETS)
def test_a_plan_is_the_nets_layers(net):
    trunk = Trunk(net)
    parameters = list(trunk.parameters())
    modules = [module for module in trunk.modules() if isinstance(module, torch.nn.Conv2d)]
    found = convolutions(trunk.plan)
    assert len(found) == len(modules)
    for conv, module in zip(found, modules, strict=True):
        assert parameters[conv.at] is module.weight
        assert parameters[conv.at + 1] is module.bias
        assert (conv.kernel, conv.stride, conv.padding) == (module.kernel_size[0], module.stride[0], module.padding[0])
    assert sum(step.tap for step in trunk.plan) == len(NETS[net].channels)
    pools = [module for module in trunk.modules() if isinstance(module, torch.nn.MaxPool2d)]
    found_pools = [tuple(step.pool) for step in trunk.plan if step.pool is not None]
    assert found_pools == [(pool.kernel_size, pool.stride, pool.ceil_mode) for pool in pools]


@pytest.mark.parametrize("net", NETS)
def test_what_the_loop_relies_on(net):
    """Every pool's input is a tap, and an Expand follows on a convolution that is none."""
    plan = Trunk(net).plan
    assert plan[0].at == 0
    assert plan[-1].tap
    assert plan[-1].pool is None
    assert all(step.tap for step in plan if step.pool is not None)
    for before, step in itertools.pairwise(plan):
        if isinstance(step, Expand):
            assert isinstance(before, Conv)
            assert not before.tap
    first_tap = next(number for number, step in enumerate(plan) if step.tap)
    assert [c.keeps_nan for c in convolutions(plan)] == [
        number <= first_tap for number in range(len(convolutions(plan)))
    ]


@pytest.mark.parametrize("net", NETS)
def test_settings_are_data(net):
    """Equal for equal calls, with one hash, and nothing in them changes."""
    trunks = Trunk(net), Trunk(net)
    first, second = (trunk.setting(torch.device("cpu")) for trunk in trunks)
    assert first == second
    assert hash(first) == hash(second)
    for trunk in trunks:
        trunk(torch.rand(1, 3, 35, 35, requires_grad=True))
    assert pickle.loads(pickle.dumps(first.plan)) == second.plan
    assert hash(trunks[0].setting(torch.device("cpu"))) == hash(second)
    assert first.n_taps == len(NETS[net].channels)
    assert first != trunks[0].setting(torch.device("cpu"), 2)


@pytest.mark.parametrize(
    "pool", (Pool(2, 2, False), Pool(2, 2, True), Pool(3, 2, False), Pool(3, 2, True), Pool(4, 3, True)), ids=str
)
def test_sides_of_pools_are_torchs(pool):
    """With ceil_mode a window may be larger than the image."""
    for side in range(pool.kernel - (pool.stride - 1) * pool.ceil_mode, 40):
        expected = F.max_pool2d(torch.zeros(1, 1, side, side), pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)
        assert pool.side(side) == expected.shape[2], side

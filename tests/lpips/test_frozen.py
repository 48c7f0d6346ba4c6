"""LPIPS is frozen and in eval mode whatever the module around it does."""

from __future__ import annotations

import threading

import pytest
import torch
import torch._dynamo.testing
from torch import nn

import lpips_fast
import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
from tests.support.comparisons import assert_close
from tests.support.images import noise, pair
from tests.support.modules import Loss
from tests.support.parameters import NETS
from tests.support.tolerances import VALUE_TOLERANCE


@pytest.mark.parametrize("unfreeze", ("requires_grad_", "flags", "own"))
@pytest.mark.parametrize("options", ({}, {"grad_in_forward": True}, {"spatial": True}, {"lpips": False}), ids=str)
def test_frozen_and_in_eval_whatever_the_parent_does(make_ours, options, unfreeze):
    """A GAN toggles requires_grad, a script unfreezes all, an optimizer has all parameters: nothing changes."""
    loss = Loss(make_ours(**options)).train()
    module = loss.perceptual_loss
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    if unfreeze == "requires_grad_":
        loss.requires_grad_(True)
    elif unfreeze == "flags":
        for p in loss.parameters():
            p.requires_grad = True
    else:
        assert not any(p.requires_grad for p in module.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1.0, weight_decay=0.1)
    in0, in1 = pair(1, 31, 31)
    values = set()
    for _ in range(3):
        assert not module(in0, in1).requires_grad
        value = module(in0.requires_grad_(), in1).mean()
        values.add(value.item())
        (value + loss.log_variance).backward()
        optimizer.step()
        in0 = in0.detach()
    assert len(values) == 1
    assert loss.log_variance != 0
    assert loss.training
    assert not any(m.training for m in module.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert make_ours().train().train(True).training is False


def test_frozen_in_plain_torch_too(make_ours):
    """Under torch.func, plain torch takes the place of the kernels."""
    module = make_ours()
    for p in module.parameters():
        p.requires_grad = True
    in0, in1 = pair(2, 31, 31)
    assert not torch.func.vmap(lambda x: module(x, in1[0]))(in0).requires_grad


def test_frozen_where_layers_are_called_too(make_ours):
    loss = Loss(make_ours())
    module = loss.perceptual_loss
    module.net.slice2[0] = nn.AvgPool2d(3, 2)
    module.scaling_layer = nn.Conv2d(3, 3, 1)
    module.lins[0].register_forward_hook(lambda *_: None)
    loss.requires_grad_(True)
    in0, in1 = pair(1, 40, 40)
    assert not module(in0, in1).requires_grad
    assert not module.net(in0)[0].requires_grad
    in0.requires_grad_()
    torch._dynamo.reset()
    for call in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        call(in0, in1).sum().backward()
        assert all(p.grad is None for p in module.parameters())
        assert in0.grad.abs().max() > 0
    assert all(p.requires_grad for p in module.parameters())  # LPIPS leaves the flags as they were set
    assert not torch.func.vmap(lambda x: module(x, in1[0]))(in0.detach()).requires_grad


def test_frozen_with_a_trunk_of_ours_put_in(make_ours):
    module = make_ours()
    module.net = lpips_fast.pretrained_networks.alexnet(pretrained=False)
    module.net.load_state_dict(make_ours().net.state_dict())
    module.net.requires_grad_(True)
    in0, in1 = pair(1, 40, 40)
    value = module(in0.requires_grad_(), in1)
    assert_close(value, make_ours()(in0, in1).double(), VALUE_TOLERANCE[torch.float32])
    value.sum().backward()
    assert all(p.grad is None for p in module.parameters())


def test_frozen_in_many_threads(make_ours):
    """On the path that calls layers; flags and parameters are the same afterwards."""
    module = make_ours()
    module.net.slice2[0] = nn.AvgPool2d(3, 2)
    for p in module.parameters():
        p.requires_grad = True
    in0, in1 = pair(1, 40, 40)
    in0.requires_grad_()
    expected, found = module(in0, in1), []
    threads = [threading.Thread(target=lambda: found.extend(module(in0, in1) for _ in range(10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    assert all(torch.equal(value, expected) for value in found)
    sum(found).sum().backward()
    assert all(isinstance(p, nn.Parameter) and p.requires_grad and p.grad is None for p in module.parameters())


def test_a_stock_trunk_is_converted_once_though_other_layers_are_called(make_ours):
    module = make_ours()
    module.lins[0].register_forward_hook(lambda *_: None)
    for p in module.parameters():
        p.requires_grad = True
    in0, in1 = pair(1, 40, 40)
    module(in0, in1)
    kept = dict(module.net._kept)
    assert kept
    module(in0.requires_grad_(), in1)
    assert all(module.net._kept[key] is value for key, value in kept.items())


def test_a_trunk_of_somebodys_own_is_not_touched(make_ours):
    """Such a trunk may be in training elsewhere."""
    module = make_ours()
    encoder = module.net.slice1.requires_grad_(True)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return [self.encoder(x).repeat(1, n, 1, 1) for n in (1, 3, 6, 4, 4)]

    module.net = Encoder()
    in0, in1 = pair(1, 40, 40)
    module(in0.requires_grad_(), in1).sum().backward()
    assert all(p.requires_grad and p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize("net", NETS)
def test_nothing_to_optimise_and_no_graph_for_plain_images(make_ours, net):
    module = make_ours(net)
    assert not any(p.requires_grad for p in module.parameters())
    assert not module(*pair(1, 35, 35)).requires_grad


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_no_gradient_to_own_parameters(make_ours, grad_in_forward):
    in0, in1 = noise(2)
    fn = make_ours("alex", grad_in_forward=grad_in_forward)
    fn(in0.requires_grad_(), in1.requires_grad_()).sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in fn.parameters())
    with torch.no_grad():
        assert not fn(in0, in1).requires_grad
    assert not fn(in0.detach(), in1.detach()).requires_grad


@pytest.mark.parametrize("cpu_conv", ("auto", "direct"))
@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("net", NETS)
def test_flags_set_after_a_call_have_no_effect(make_ours, net, cpu_conv, grad_in_forward):
    """As a GAN's `set_requires_grad` sets them, once the trunk keeps what it made of its parameters."""
    module, (in0, in1) = make_ours(net, cpu_conv=cpu_conv, grad_in_forward=grad_in_forward), pair(1, 32, 32)
    module(in0, in1)
    module(in0.clone().requires_grad_(), in1).sum().backward()
    nn.ModuleList([module]).requires_grad_(True)
    assert not module(in0, in1).requires_grad
    module(in0.clone().requires_grad_(), in1).sum().backward()
    assert all(p.grad is None for p in module.parameters())

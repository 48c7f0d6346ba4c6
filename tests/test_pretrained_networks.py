"""The trunks alone, as in lpips."""

from __future__ import annotations

import pytest
import torch

import lpips_fast
from lpips_fast import pretrained_networks
from lpips_fast.weights import published
from tests.support.images import pair
from tests.support.tolerances import TAPS_TOLERANCE

NETS = {"vgg16": "vgg", "alexnet": "alex", "squeezenet": "squeeze"}


@pytest.mark.parametrize("name,net", NETS.items())
def test_as_in_lpips(monkeypatch, cached_trunk, make_theirs, name, net):
    monkeypatch.setattr(published, "provide", cached_trunk)
    ours, theirs = getattr(pretrained_networks, name)(), make_theirs(net).net
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert not any(p.requires_grad for p in ours.parameters())
    x, _ = pair(1, 35, 35)
    found, expected = ours(x), theirs(x)
    assert (type(found).__name__, found._fields) == (type(expected).__name__, expected._fields)
    for tap, tap_ref in zip(found, expected, strict=True):
        torch.testing.assert_close(tap, tap_ref, **TAPS_TOLERANCE)
    assert ours.N_slices == theirs.N_slices


@pytest.mark.parametrize("name", ("alexnet", "squeezenet"))
def test_random_and_trainable(monkeypatch, name):
    monkeypatch.setattr(published, "provide", lambda *_: pytest.fail("no weights are needed"))
    ours = getattr(pretrained_networks, name)(requires_grad=True, pretrained=False)
    ours(pair(1, 35, 35)[0])[-1].sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_a_resnet_is_not_here():
    with pytest.raises(AttributeError, match=r"no attribute 'resnet'; lpips_fast\.functional\.lpips_head takes"):
        _ = pretrained_networks.resnet
    with pytest.raises(AttributeError, match=r"no attribute 'resnext'$"):
        _ = pretrained_networks.resnext


def test_where_lpips_has_them():
    assert lpips_fast.pn is lpips_fast.pretrained_networks is pretrained_networks

"""Which layers count as changed after construction, so that they are called; all else stays fused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lpips_fast.search import Index
from tests.support.changes import (
    another_linear_layer,
    average_pools,
    hook_in_the_trunk,
    hook_on_a_linear_layer,
    hook_on_the_scaling,
    no_scaling,
    other_trunk,
    without_bias,
)
from tests.support.comparisons import assert_close
from tests.support.images import SIZE, pair
from tests.support.parameters import NETS
from tests.support.tolerances import (
    OTHERS_TOLERANCE,
    VALUE_TOLERANCE,
)


def test_an_index_does_not_go_on_with_changed_layers(make_ours):
    fn = make_ours()
    in0, _ = pair(3, 48, 52)
    index = Index.build(fn, in0)
    fn.L = 3
    with pytest.raises(ValueError, match="L"):
        index.search(in0, 1)
    fn.L = 5
    average_pools(fn)
    with pytest.raises(ValueError, match="layers that it was made with"):
        index.search(in0, 1)


def test_leaving_out_taps_leaves_out_their_layers(make_ours):
    fn = make_ours()
    in0, in1 = pair(2, 48, 52)
    _, parts = fn(in0, in1, retPerLayer=True)
    fn.L = 2
    found, few = fn(in0, in1, retPerLayer=True)
    assert torch.equal(found, parts[0] + parts[1])
    assert len(few) == 2
    assert len(fn.features(in0).taps) == 2
    with torch.no_grad():
        for slice_ in (fn.net.slice3, fn.net.slice4, fn.net.slice5):
            slice_[-2].weight.fill_(torch.nan)  # not computed: 0 * NaN would show
    assert torch.equal(fn(in0, in1), found)
    fast = make_ours(grad_in_forward=True)
    fast.L = 2
    in0.requires_grad_()
    expected, grad = (torch.autograd.grad(module(in0, in1).sum(), in0)[0] for module in (fn, fast))
    torch.testing.assert_close(grad, expected)
    with pytest.raises(ValueError, match="features of taps 1 to 2, needed here are those of taps 1 to 5"):
        make_ours()(in0, fn.features(in1))
    assert fn.embed(in0).shape == (2, sum(tap[0].numel() for tap in fn.features(in0).taps))


@pytest.mark.parametrize("net", NETS)
def test_ordinary_use_leaves_modules_stock(make_ours, net):
    """What costs no change of layers must not cost the fused path."""
    fn = make_ours(net)
    for used in (
        fn,
        copy.deepcopy(fn),
        pickle.loads(pickle.dumps(fn)),
        make_ours(net).double().float().train().eval(),
        make_ours(net).requires_grad_(True),
        make_ours(net, use_dropout=False),
        make_ours(net, eval_mode=False),
        make_ours(net, lpips=False),
        make_ours(net).to(memory_format=torch.channels_last),
    ):
        assert used.is_stock()
    fn.load_state_dict(fn.state_dict(), assign=True)
    fn(*pair(1, *SIZE[net]))
    for relu in (m for m in fn.modules() if isinstance(m, nn.ReLU)):
        relu.inplace = False
    assert fn.is_stock()
    handle = fn.net.slice1[0].register_forward_hook(lambda *_: None)
    assert not fn.is_stock()
    handle.remove()
    assert fn.is_stock()


def dilated(fn):
    fn.net.slice3[-2].dilation = (2, 2)


def other_pool(fn):
    fn.net.slice2[0].ceil_mode = True


def another_layer(fn):
    fn.net.slice1.append(nn.Identity())


def backward_hook(fn):
    fn.net.slice2[-2].register_full_backward_pre_hook(lambda module, grads: None)


def other_forward(fn):
    fn.net.slice1[0].forward = fn.net.slice1[0].forward


@pytest.mark.parametrize(
    "change",
    (
        average_pools,
        dilated,
        other_pool,
        without_bias,
        another_layer,
        hook_in_the_trunk,
        backward_hook,
        other_forward,
        other_trunk,
        no_scaling,
        hook_on_the_scaling,
        hook_on_a_linear_layer,
        another_linear_layer,
    ),
    ids=lambda change: change.__name__,
)
def test_each_change_is_seen(make_ours, change):
    fn = make_ours()
    change(fn)
    assert not fn.is_stock()


@pytest.mark.parametrize("change", (hook_on_a_linear_layer, another_linear_layer))
def test_vectors_need_the_stock_linear_layers(make_ours, change):
    """Their distances would be other ones than those of forward."""
    fn = make_ours()
    change(fn)
    in0, in1 = pair(2, 48, 52)
    for call in (lambda: fn.embed(in0), lambda: fn.pairwise(in0, in1), lambda: Index.build(fn, in0)):
        with pytest.raises(ValueError, match=r"linear layers were changed|layers that it was made with"):
            call()


@pytest.mark.parametrize("change", (average_pools, hook_in_the_trunk, other_trunk, no_scaling))
def test_pairwise_with_changed_layers(make_ours, change):
    fn = make_ours()
    change(fn)
    in0, in1 = pair(2, 48, 52)
    assert_close(fn.pairwise(in0, in1)[0], fn(in0[:1], in1).flatten().double(), (OTHERS_TOLERANCE, OTHERS_TOLERANCE))
    with pytest.raises(ValueError, match="layers that it was made with"):
        Index.build(fn, in0)


class Doubled(nn.MaxPool2d):
    def forward(self, x):
        return super().forward(x) * 2


class Scaled(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


def subclassed(fn):
    fn.net.slice2[0] = Doubled(3, 2)


def subclassed_within(fn):
    conv = fn.net.slice1[0]
    fn.net.slice1[0] = Scaled(3, 64, 11, stride=4, padding=2)
    fn.net.slice1[0].load_state_dict(conv.state_dict())


@pytest.mark.parametrize("strict", (False, True))
@pytest.mark.parametrize("change", (average_pools, subclassed, subclassed_within, hook_on_the_scaling))
def test_exported(make_ours, change, strict):
    fn = make_ours()
    in0, in1 = pair(1, 48, 52)
    stock = fn(in0, in1)
    change(fn)
    program = torch.export.export(fn, (in0, in1), strict=strict).module()
    assert_close(program(in0, in1), fn(in0, in1).double(), VALUE_TOLERANCE[torch.float32])
    assert not torch.allclose(fn(in0, in1), stock, rtol=1e-3)


def test_compiled(make_ours):
    fn = make_ours()
    average_pools(fn)
    in0, in1 = pair(1, 48, 52)
    torch._dynamo.reset()
    compiled = torch.compile(fn, backend="aot_eager")
    assert_close(compiled(in0, in1), fn(in0, in1).double(), VALUE_TOLERANCE[torch.float32])

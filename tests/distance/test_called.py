"""Layers that were changed after construction are called, with lpips's numbers; stock layers give the fused ones."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from lpips_fast.distance import called
from lpips_fast.distance.scaling import affine
from lpips_fast.head.autograd import head_maps
from lpips_fast.head.inputs import checked_input
from lpips_fast.head.operators import Norm
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
    FLOAT32_GRAD_TOLERANCE,
    LOW_PRECISION_TOLERANCE,
    OTHERS_TOLERANCE,
    REORDERED_LOW_PRECISION_TOLERANCE,
    REORDERED_TOLERANCE,
    ROUNDING_TOLERANCE,
    VALUE_TOLERANCE,
)


def circular_padding(fn):
    for layer in fn.net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [layer.padding[1]] * 2 + [layer.padding[0]] * 2


def first_taps(fn):
    fn.L = 3


def other_scaling(fn):
    fn.scaling_layer.forward = lambda x: 2 * x


def hook_within_a_linear_layer(fn):
    fn.lin1.model[-1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def backward_hook_in_the_trunk(fn):
    for relu in (m for m in fn.net.modules() if isinstance(m, nn.ReLU)):
        relu.inplace = False  # torch refuses such a hook before a change in place
    fn.net.slice2[-2].register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 2,))


def other_activation(fn):
    for slice_ in fn.net.children():
        if isinstance(slice_[-1], nn.ReLU):
            slice_[-1] = nn.ELU()


def parametrized(fn):
    nn.utils.parametrizations.weight_norm(fn.net.slice1[0])
    with torch.no_grad():
        fn.net.slice1[0].parametrizations.weight.original0.mul_(2)


def other_forward(fn):
    forward = fn.net.forward
    fn.net.forward = lambda x: [0.5 * tap + 0.1 for tap in forward(x)]


CHANGES = (
    average_pools,
    circular_padding,
    without_bias,
    first_taps,
    no_scaling,
    other_scaling,
    hook_on_the_scaling,
    hook_on_a_linear_layer,
    hook_within_a_linear_layer,
    another_linear_layer,
    hook_in_the_trunk,
    backward_hook_in_the_trunk,
    other_activation,
    parametrized,
    other_forward,
)


def run(fn, in0, in1, **arguments):
    in0, in1 = in0.detach().requires_grad_(), in1.detach().requires_grad_()
    value, parts = fn(in0, in1, retPerLayer=True, **arguments)
    return [value, *parts], torch.autograd.grad(value.sum(), (in0, in1))


def assert_as_lpips(ours, theirs, change, in0, in1, **arguments):
    for fn in (ours, theirs):
        change(fn)
    values, grads = run(ours, in0, in1, **arguments)
    expected, expected_grads = run(theirs, in0, in1, **arguments)
    for found, exact in zip(values, expected, strict=True):
        assert_close(found, exact.double(), VALUE_TOLERANCE[torch.float32])
    for found, exact in zip(grads, expected_grads, strict=True):
        assert (found - exact).norm() <= FLOAT32_GRAD_TOLERANCE * exact.norm()
    assert not torch.allclose(values[0], expected[0] * 0)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_have_the_effect_they_have_in_lpips(make_ours, make_theirs, change):
    in0, in1 = pair(2, 48, 52)
    for options in ({}, {"spatial": True}):
        theirs = copy.deepcopy(make_theirs(**options))
        unchanged = run(theirs, in0, in1)
        assert_as_lpips(make_ours(**options), theirs, change, in0, in1)
        value, grad = run(theirs, in0, in1)
        pairs = ((value[0], unchanged[0][0]), (grad[0], unchanged[1][0]))
        assert not all(torch.allclose(*pair, rtol=1e-4) for pair in pairs), "this test changes nothing"


@pytest.mark.parametrize("net", ("vgg", "squeeze"))
@pytest.mark.parametrize("change", (average_pools, first_taps, hook_in_the_trunk), ids=lambda change: change.__name__)
def test_changes_to_the_other_nets(make_ours, make_theirs, net, change):
    assert_as_lpips(make_ours(net), copy.deepcopy(make_theirs(net)), change, *pair(1, *SIZE[net]))


def test_another_trunk(make_ours, make_theirs):
    in0, in1 = pair(2, 48, 52)
    ours = make_ours()
    assert_as_lpips(ours, copy.deepcopy(make_theirs()), other_trunk, in0, in1, normalize=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = ours.features(in1)
        assert features.taps[0].dtype == torch.bfloat16
        assert_close(
            ours(in0, features),
            ours(in0, in1).double(),
            (REORDERED_LOW_PRECISION_TOLERANCE, REORDERED_LOW_PRECISION_TOLERANCE),
        )
    ours.double()
    assert ours(in0.double(), in1.double(), weight=torch.ones(1, 1, 48, 52)).dtype == torch.float64


def test_a_fire_module_that_is_hooked(make_ours, make_theirs):
    def hook(fn):
        fn.net.slice3[-1].expand3x3.register_forward_hook(lambda module, args, out: out * 0.5)

    assert_as_lpips(make_ours("squeeze"), copy.deepcopy(make_theirs("squeeze")), hook, *pair(1, *SIZE["squeeze"]))


@pytest.mark.parametrize("change", (average_pools, first_taps, no_scaling, hook_on_a_linear_layer, other_forward))
def test_with_everything_else(make_ours, change):
    """grad_in_forward, chunks, masks, features, half precision, normalize, one against many: as without the option."""
    in0, in1 = pair(3, 48, 52)
    plain, fn = make_ours(), make_ours(grad_in_forward=True, chunk_size=1)
    for module in (plain, fn):
        change(module)
    (value, *_), grads = run(plain, in0, in1)
    x = in0.clone().requires_grad_()
    found = fn(x, in1)
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert_close(found, value.double(), VALUE_TOLERANCE[torch.float32])
    assert (grad - grads[0]).norm() <= FLOAT32_GRAD_TOLERANCE * grads[0].norm()
    assert_close(fn(in0, fn.features(in1)), value.double(), VALUE_TOLERANCE[torch.float32])
    assert_close(fn(in0, in1, weight=torch.ones(1, 1, 48, 52)), value.double(), VALUE_TOLERANCE[torch.float32])
    assert_close(fn((in0 + 1) / 2, (in1 + 1) / 2, normalize=True), value.double(), (OTHERS_TOLERANCE, OTHERS_TOLERANCE))
    assert_close(fn(in0[:1], in1)[1:2], fn(in0[0], in1[1]).double(), VALUE_TOLERANCE[torch.float32])
    assert_close(fn(in0.bfloat16(), in1), value.double(), (0, LOW_PRECISION_TOLERANCE[torch.bfloat16]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(fn(in0, in1), value.double(), (0, LOW_PRECISION_TOLERANCE[torch.bfloat16]))
    assert_close(
        make_changed(make_ours, change, precision="bfloat16")(in0, in1),
        value.double(),
        (0, LOW_PRECISION_TOLERANCE[torch.bfloat16]),
    )
    assert_close(
        make_changed(make_ours, change, precision="float32")(in0, in1),
        value.double(),
        (ROUNDING_TOLERANCE, REORDERED_TOLERANCE),
    )


def make_changed(make_ours, change, **options):
    fn = make_ours(**options)
    change(fn)
    return fn


def test_images_of_five_channels(make_ours, make_theirs):
    def five(fn):
        torch.manual_seed(0)
        fn.scaling_layer = nn.Identity()
        fn.net.slice1[0] = nn.Conv2d(5, 64, 11, stride=4, padding=2)

    in0, in1 = pair(2, 48, 52, channels=5)
    ours = make_ours()
    assert_as_lpips(ours, copy.deepcopy(make_theirs()), five, in0, in1)
    assert ours(in0[0], in1).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="layout must be given"):
        ours(in0[None], in1[None])
    assert_close(
        ours(in0[None], in1[None], layout="BTCHW"), ours(in0, in1).view(1, 2).double(), VALUE_TOLERANCE[torch.float32]
    )
    with pytest.raises(RuntimeError, match="5 channels"):
        ours(in0[:, :3], in1[:, :3])


def test_snippets_of_docs_training(make_ours):
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    section = text[text.index("## Other trunks, fewer taps, other channels") :]
    snippets = re.findall(r"^```python\n(.*?)^```", section[: section.index("\n## ", 3)], re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    for snippet in snippets:
        names = {"LPIPS": make_ours, "nn": nn}
        exec(snippet, names)
        images = pair(1, 48, 52, channels=5 if "N, 5, H, W" in snippet else 3)
        assert names["fn"](*images) > 0
        assert not names["fn"].is_stock() or names["fn"].L == 3


@pytest.mark.parametrize("wrap", ("trace", "data parallel"))
def test_modules_of_other_kinds(make_ours, wrap):
    """Of which torch.func.functional_call would take none."""
    # DataParallel takes a GPU where there is one.
    device = "cuda" if wrap == "data parallel" and torch.cuda.is_available() else "cpu"
    fn = make_ours().to(device)
    in0, in1 = (x.to(device) for x in pair(2, 48, 52))
    other_trunk(fn)
    fn.net.requires_grad_(True)
    expected = fn(in0, in1)
    fn.net = torch.jit.trace(fn.net, in0) if wrap == "trace" else nn.DataParallel(fn.net)
    in0.requires_grad_()
    value = fn(in0, in1)
    assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
    value.sum().backward()
    assert all(p.grad is None for p in fn.parameters())


def test_traced_with_a_new_layer(make_ours):
    """Which requires a gradient, as all new layers do."""
    fn = make_ours()
    fn.scaling_layer = nn.Identity()
    fn.net.slice1[0] = nn.Conv2d(5, 64, 11, stride=4, padding=2)
    in0, in1 = pair(2, 48, 52, channels=5)
    traced = torch.jit.trace(fn, (in0, in1), check_trace=False)
    assert_close(traced(in0, in1), fn(in0, in1).double(), VALUE_TOLERANCE[torch.float32])


def gray_trunk(fn):
    torch.manual_seed(0)
    fn.scaling_layer = nn.Identity()
    fn.net.slice1[0] = nn.Conv2d(1, 64, 11, stride=4, padding=2)


def learnt_scaling(fn):
    torch.manual_seed(0)
    fn.scaling_layer = nn.Conv2d(5, 3, 1)


class ToGray(nn.Module):
    def forward(self, x):
        return x.mean(dim=1, keepdim=True)


def gray_trunk_of_colour(fn):
    gray_trunk(fn)
    fn.scaling_layer = ToGray()


def gray_of_another_pool(fn):
    average_pools(fn)  # the scaling makes three channels of gray


@pytest.mark.parametrize(
    "change,channels",
    ((gray_trunk, 1), (learnt_scaling, 5), (gray_trunk_of_colour, 3), (gray_of_another_pool, 1)),
)
def test_images_of_other_channels(make_ours, make_theirs, change, channels):
    assert_as_lpips(make_ours(), copy.deepcopy(make_theirs()), change, *pair(2, 48, 52, channels=channels))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("normalize", (False, True))
def test_taps_of_stock_layers_are_the_fused_ones(make_ours, net, normalize):
    fn = make_ours(net)
    x, _ = pair(2, *SIZE[net])
    fused = fn.net(x, affine=affine(fn.scaling_layer, "0.1", normalize), n_taps=3, stock=True)
    found = called.taps(fn.net, fn.scaling_layer, x, normalize, 3, True)
    assert len(found) == 3
    for tap, expected in zip(found, fused, strict=True):
        assert_close(tap, expected, VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("norm", (Norm(), Norm(1e-3, inside_sqrt=True)), ids=str)
@pytest.mark.parametrize("batches", ((2, 2), (1, 3)))
def test_maps_of_stock_layers_are_the_heads(make_ours, norm, batches):
    """By the linear layers, by their weights alone, and by no weights."""
    fn = make_ours().double()
    n0, n1 = batches
    taps0, taps1 = (fn.features(x.double()).taps for x in (pair(n0, 40, 44)[0], pair(n1, 40, 44)[1]))
    weights = fn.linear_weights()
    for lins, given in ((fn.lins, None), (None, weights), (None, None)):
        found = called.maps(taps0, taps1, lins, given, norm, True)
        linear = None if lins is None and given is None else weights
        expected = head_maps("reference", checked_input(taps0, taps1, linear, norm))
        for map_, exact in zip(found, expected, strict=True):
            assert map_.shape[:2] == (max(batches), 1)
            assert_close(map_, exact, VALUE_TOLERANCE[torch.float64])


@pytest.mark.parametrize("frozen", (True, False))
def test_parameters_get_a_gradient_unless_frozen(frozen):
    """The flags of a frozen module are afterwards as they were."""
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3))
    scaling, lin = nn.Conv2d(3, 3, 1), nn.Conv2d(4, 1, 1)
    x = pair(2, 8, 8)[0].requires_grad_()
    (tap,) = called.taps(OneTap(trunk), scaling, x, False, 1, frozen)
    (map_,) = called.maps([tap], [tap.flip(0)], [lin], None, Norm(), frozen)
    map_.sum().backward()
    parameters = [p for module in (trunk, scaling, lin) for p in module.parameters()]
    assert all(p.requires_grad for p in parameters)
    assert [p.grad is None for p in parameters] == [frozen] * len(parameters)
    assert x.grad.abs().max() > 0


class OneTap(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return [self.layers(x)]


def test_linear_layers_in_their_own_type():
    """Squared differences go to a linear layer in its parameters' type, and its map returns in theirs."""
    given = []

    class Counted(nn.Conv2d):
        def forward(self, x):
            given.append(x.dtype)
            return super().forward(x)

    taps0, taps1 = ([x.repeat(1, 2, 1, 1)] for x in pair(1, 8, 8))
    (map_,) = called.maps(taps0, taps1, [Counted(6, 1, 1).double()], None, Norm(), True)
    assert given == [torch.float64]
    assert map_.dtype == torch.float32

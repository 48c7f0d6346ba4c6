"""The backward of LPIPS: the memory that it keeps and frees, checkpointing, double backward, gradcheck."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch._dynamo.testing
from torch.utils.checkpoint import checkpoint

import lpips_fast
import lpips_fast.distance.grad_in_forward
import lpips_fast.trunk.execute
from tests.support.comparisons import assert_close, assert_norms_close
from tests.support.gradients import gradients
from tests.support.images import noise, pair
from tests.support.instructions import set_instructions
from tests.support.parameters import BACKENDS
from tests.support.tolerances import REORDERED_TOLERANCE, SECOND_GRAD_TOLERANCE


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_two_backwards_through_one_forward(make_ours, grad_in_forward):
    """taming-transformers computes its adaptive weight so."""
    in0, in1 = noise(2)
    last_layer = torch.nn.Conv2d(3, 3, 1)
    value = make_ours("alex", grad_in_forward=grad_in_forward)(last_layer(in0), in1).mean()
    (early,) = torch.autograd.grad(value, last_layer.weight, retain_graph=True)
    value.backward()
    assert torch.equal(early, last_layer.weight.grad)
    assert early.abs().max() > 0


def test_double_backward(make_ours):
    in0, in1 = noise(1)
    in0.requires_grad_()
    (grad,) = torch.autograd.grad(make_ours("alex")(in0, in1).sum(), in0, create_graph=True)
    (second,) = torch.autograd.grad((grad**2).sum(), in0)
    assert second.abs().max() > 0
    with pytest.raises(RuntimeError, match="grad_in_forward=False"):
        torch.autograd.grad(make_ours("alex", grad_in_forward=True)(in0, in1).sum(), in0, create_graph=True)


@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("needs", ((True, False), (True, True)))
def test_images_changed_in_place_before_the_backward(make_ours, needs, grad_in_forward):
    """A script may clamp an image for its log: the backward does not need the image any more."""
    in0, in1 = noise(2)
    fn = make_ours("squeeze", grad_in_forward=grad_in_forward)
    (_, expected), scale = gradients(fn, in0, in1, needs), torch.ones((), requires_grad=True)
    pair = [x.clone().requires_grad_(need) for x, need in zip((in0, in1), needs)]
    decoded = [x * scale if need else x for x, need in zip(pair, needs)]
    value = fn(*decoded)
    for x in decoded:
        x.detach().clamp_(0, 1)
        x.mul_(0)
    wanted = [x for x in pair if x.requires_grad]
    found = torch.autograd.grad((value * torch.linspace(0.5, 2, 2).view_as(value)).sum(), wanted)
    assert_norms_close(found, expected, REORDERED_TOLERANCE)


def test_images_are_given_up_with_the_graph(make_ours):
    """The backward frees the images even if the loss lives on; with retain_graph they stay, for a double backward."""
    fn = make_ours("squeeze")
    in0, in1 = noise(1)
    scale = torch.ones((), requires_grad=True)
    for retain in (False, True):
        image = in0 * scale
        alive = weakref.ref(image)
        loss = fn(image, in1).sum()
        loss.backward(retain_graph=retain)
        del image
        assert (alive() is not None) == retain
    loss.backward()
    assert alive() is None


def test_hooks_on_saved_tensors_have_the_images(make_ours):
    """Checkpointing and offloading work on the images, too: no reference to an image is left in the graph."""
    fn = make_ours("squeeze")
    in0, in1 = noise(1)
    scale = torch.ones((), requires_grad=True)
    seen = []

    def region(x):
        image = torch.tanh(x * scale)
        seen.append(weakref.ref(image))
        return fn(image, in1).sum()

    value = checkpoint(region, in0, use_reentrant=False)
    assert seen[0]() is None
    (found,) = torch.autograd.grad(value, scale)
    (expected,) = torch.autograd.grad(region(in0), scale)
    torch.testing.assert_close(found, expected)


def test_memory_of_an_image_may_be_gone_before_the_backward(make_ours):
    """Pipelines free the memory of a tensor that they have sent on."""
    fn = make_ours("squeeze")
    in0, in1 = noise(1)
    scale = torch.ones((), requires_grad=True)
    (expected,) = torch.autograd.grad(fn(in0 * scale, in1).sum(), scale)
    image = in0 + 0 * scale
    value = fn(image, in1).sum()
    image.data = torch.zeros(1)
    gradient = torch.autograd.grad(value, scale, allow_unused=True)
    assert gradient[0] is not None
    assert expected.isfinite()


def test_double_backward_needs_images_as_they_were(make_ours):
    in0, in1 = noise(1)
    fn = make_ours("squeeze")
    leaf = in0.clone().requires_grad_()
    x = leaf * 1
    value = fn(x, in1).sum()
    (grad,) = torch.autograd.grad(value, leaf, create_graph=True)
    assert grad.requires_grad
    other = in1.clone().requires_grad_() * 1
    value = fn(leaf, other).sum()
    other.detach_()  # changes no value
    torch.autograd.grad(value, leaf, create_graph=True)
    value = fn(x, in1).sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after LPIPS compared it"):
        torch.autograd.grad(value, leaf, create_graph=True)


def test_activation_checkpointing_around_it(make_ours):
    in0, in1 = noise(2)
    for grad_in_forward in (False, True):
        fn = make_ours("alex", grad_in_forward=grad_in_forward)
        grads = []
        for wrapped in (
            fn,
            lambda a, b, fn=fn: checkpoint(fn, a, b, use_reentrant=False),
            lambda a, b, fn=fn: checkpoint(fn, a, b, use_reentrant=True),
        ):
            pred = in0.clone().requires_grad_()
            wrapped(pred, in1).sum().backward()
            grads.append(pred.grad)
        assert_norms_close(grads[1:], [grads[0]] * 2, REORDERED_TOLERANCE)


def kept_bytes(fn, in0, in1):
    """Bytes of the distinct tensors that a forward keeps for its backward, without the inputs and fn's parameters."""
    known = {t.untyped_storage().data_ptr() for t in (in0, in1, *fn.parameters(), *fn.buffers())}
    if isinstance(fn, lpips_fast.LPIPS):
        known |= {t.untyped_storage().data_ptr() for t in fn.net.tensors(fn.net.setting(in0.device), gradient=True)}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        value = fn(in0, in1)
    assert value.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("needs", ((True, False), (True, True)))
def test_bytes_kept(make_ours, make_theirs, needs):
    """README's figures for VGG: grad_in_forward keeps 1.1 images for each input, the ordinary path 45% of lpips."""
    in0, in1 = (x.requires_grad_(need) for x, need in zip(noise(2, size=128), needs))
    theirs = kept_bytes(make_theirs("vgg"), in0, in1)
    make = lambda **options: make_ours("vgg", **options)  # noqa: E731
    fn = make()
    fn(in0, in1)  # converts the weights
    assert kept_bytes(fn, in0, in1) <= 0.45 * theirs
    image = in0.numel() * 4
    assert kept_bytes(make(grad_in_forward=True), in0, in1) <= 1.1 * image * sum(needs)


@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("precision", ("bfloat16", "float16"))
def test_bytes_kept_in_low_precision(make_ours, monkeypatch, precision, grad_in_forward):
    """The same on a processor without instructions, whose taps are made in float32."""
    in0, in1 = (x.requires_grad_() for x in noise(2, size=64))
    kept = []
    for present in (True, False):
        set_instructions(monkeypatch, present)
        fn = make_ours("squeeze", precision=precision, grad_in_forward=grad_in_forward)
        fn(in0, in1)  # converts the weights
        kept.append(kept_bytes(fn, in0, in1))
    assert kept[0] == kept[1] > 0


def test_no_large_integers_are_kept(make_ours):
    in0, in1 = noise(1)
    fn = make_ours("vgg")
    dtypes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: dtypes.append(t.dtype) or t, lambda t: t):
        fn(in0.requires_grad_(), in1)
    assert torch.int64 not in dtypes


def along(module, in0, in1, directions0, directions1):
    """The distance as a function of a few coefficients, which move the images along fixed directions."""

    def function(t0, t1):
        moved0 = in0 + torch.tensordot(t0, directions0, dims=1)
        moved1 = in1 + torch.tensordot(t1, directions1, dims=1)
        return module(moved0, moved1)

    return function


@pytest.mark.parametrize("options", ({}, {"spatial": True}, {"lpips": False}), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net,size", (("alex", 31), ("squeeze", 17)))
def test_gradcheck_and_gradgradcheck(make_ours, net, size, backend, options):
    module = make_ours(net, backend=backend, **options).double()
    if options.get("spatial"):
        maps, module = module, lambda a, b: maps(a, b)[:, :, ::9, ::9]
    in0, in1 = pair(1, size, size, dtype=torch.float64)
    directions = 1e-2 * torch.randn(2, 3, 1, 3, size, size, dtype=torch.float64)
    coefficients = torch.zeros(2, 3, dtype=torch.float64).unbind(0)
    leaves = tuple(c.requires_grad_() for c in coefficients)
    function = along(module, in0, in1, *directions)
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_double_backward_in_float32(make_ours, make_theirs):
    """A gradient penalty through LPIPS: the gradient of the squared norm of the gradient."""
    in0, in1 = pair(1, 31, 31)

    def penalty_gradient(module, x, y):
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(module(x, y).sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x)[0]

    found = penalty_gradient(make_ours(), in0, in1)
    expected = penalty_gradient(make_theirs(dtype=torch.float64), in0.double(), in1.double())
    assert_close(found, expected, SECOND_GRAD_TOLERANCE)

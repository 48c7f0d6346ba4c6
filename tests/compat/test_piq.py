"""compat.piq against piq itself."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from lpips_fast.compat.piq import LPIPS
from lpips_fast.weights import published
from tests.support.comparisons import assert_close, assert_mostly_close
from tests.support.gradients import value_and_gradient
from tests.support.images import image
from tests.support.raises import raises
from tests.support.samples import SQUARES, batches
from tests.support.tolerances import (
    REAL_GRAD_TOLERANCE,
    REAL_JUMP_TOLERANCE,
    REAL_VALUE_TOLERANCE,
    REORDERED_TOLERANCE,
    ROUNDING_TOLERANCE,
    SMALL_NET_LOW_PRECISION_TOLERANCE,
)

OPTIONS = (
    {},
    {"reduction": "none"},
    {"reduction": "sum"},
    {"distance": "mae", "reduction": "none"},
    {"replace_pooling": True},
    {"replace_pooling": True, "distance": "mae"},
    {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
)


@pytest.fixture
def make_theirs(monkeypatch, torchvision_features):
    perceptual = pytest.importorskip("piq.perceptual")
    linear = published.published_linear_weights("vgg", "0.1")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: linear)
    made = nn.Module()
    made.features = torchvision_features("vgg16")
    monkeypatch.setattr(perceptual, "vgg16", lambda **_: made)
    return perceptual.LPIPS


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_numbers_and_gradients(trunk_states, make_theirs, options):
    ours, theirs = LPIPS(**options, trunk_weights=trunk_states["vgg"]), make_theirs(**options)
    x, y = ((image(2, 33, 48, seed=seed, dtype=torch.float64) + 1) / 2 for seed in (1, 2))
    x.requires_grad_()
    value, expected = ours(x, y), theirs(x, y)
    assert_close(value, expected, (ROUNDING_TOLERANCE, ROUNDING_TOLERANCE))  # its mean and std are float32's
    (grad,), (expected_grad,) = (torch.autograd.grad(v.sum(), x) for v in (value, expected))
    assert (grad - expected_grad).norm() < REORDERED_TOLERANCE * expected_grad.norm()


@pytest.mark.parametrize("options", ({}, {"distance": "mae", "replace_pooling": True}), ids=str)
def test_numbers_and_gradients_on_real_weights(real_trunk, make_theirs, options):
    ours = LPIPS(**options, reduction="none", trunk_weights=real_trunk("vgg"))
    theirs = make_theirs(**options, reduction="none").double()
    theirs.load_state_dict(ours.state_dict())
    x, y = ((images + 1) / 2 for images in batches(SQUARES))
    expected, expected_grad = value_and_gradient(theirs, x.double(), y.double())
    for dtype in (torch.float32, torch.float64):
        value, grad = value_and_gradient(ours.to(dtype), x.to(dtype), y.to(dtype))
        torch.testing.assert_close(value.double(), expected, rtol=REAL_VALUE_TOLERANCE[dtype], atol=0)
        assert_mostly_close(grad, expected_grad, REAL_GRAD_TOLERANCE[dtype], REAL_JUMP_TOLERANCE[dtype])


def test_changed_layers(trunk_states):
    """Changed layers are called, and piq's linear weights still apply."""
    x, y = torch.rand(2, 1, 3, 32, 32)
    fn, averaged = (LPIPS(trunk_weights=trunk_states["vgg"], replace_pooling=replace) for replace in (False, True))
    value = fn(x, y)
    fn.net.slice2[1].register_forward_hook(lambda *_: None)
    torch.testing.assert_close(fn(x, y), value)
    for slice_ in fn.net.slices[1:]:
        slice_[0] = torch.nn.AvgPool2d(2)
    torch.testing.assert_close(fn(x, y), averaged(x, y))


def test_vectors_are_those_of_squared_differences(trunk_states):
    fn = LPIPS(trunk_weights=trunk_states["vgg"], distance="mae")
    with raises(ValueError, "'mae'", "forward"):
        fn.pairwise(torch.rand(2, 3, 32, 32), normalize=True)


def test_frozen_whatever_the_parent_does(trunk_states):
    fn = LPIPS(trunk_weights=trunk_states["vgg"], replace_pooling=True)
    torch.nn.ModuleList([fn]).requires_grad_(True)
    x, y = torch.rand(2, 1, 3, 32, 32)
    fn(x.requires_grad_(), y).backward()
    assert all(p.grad is None for p in fn.parameters())


def test_ranges_of_standardised_images_are_not_checked(trunk_states):
    fn = LPIPS(trunk_weights=trunk_states["vgg"], mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fn(torch.randn(1, 3, 32, 32) * 4, torch.randn(1, 3, 32, 32))


def test_keys_strictly_both_ways(trunk_states, make_theirs):
    ours, theirs = LPIPS(trunk_weights=trunk_states["vgg"]), make_theirs()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for source, target in ((ours, theirs), (theirs, ours)):
        changed = {name: tensor + 1 for name, tensor in source.state_dict().items()}
        target.load_state_dict(changed, strict=True)
        assert all(torch.equal(tensor, changed[name]) for name, tensor in target.state_dict().items())


def test_follows_the_images_to_their_type(trunk_states):
    fn = LPIPS(trunk_weights=trunk_states["vgg"])
    x, y = (torch.rand(1, 3, 32, 32, dtype=torch.float64) for _ in range(2))
    with torch.inference_mode():
        value = fn(x, y)
    assert value.dtype == torch.float64
    x = x.float().requires_grad_()
    value = fn(x, y.float())
    value.backward()
    assert value.dtype == torch.float32
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("options", ({}, {"distance": "mae"}, {"grad_in_forward": True}), ids=str)
def test_images_of_two_types(trunk_states, options):
    """For a prediction under autocast and its target, weights stay float32 and the gradient has the image's type."""
    fn = LPIPS(trunk_weights=trunk_states["vgg"], **options)
    x, y = torch.rand(2, 2, 3, 32, 32)
    x = x.bfloat16().requires_grad_()
    exact = fn(x.detach().float(), y)
    value = fn(x, y)
    assert torch.equal(value, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fn(x, y)
    torch.testing.assert_close(value, exact, rtol=SMALL_NET_LOW_PRECISION_TOLERANCE, atol=0)
    value.backward()
    assert x.grad.dtype == torch.bfloat16
    assert x.grad.isfinite().all()
    assert {p.dtype for p in fn.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "duplicate", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("deepcopy", "pickle")
)
def test_copies(trunk_states, duplicate):
    fn = LPIPS(trunk_weights=trunk_states["vgg"])
    x, y = torch.rand(2, 1, 3, 32, 32)
    other = duplicate(fn)
    assert torch.equal(other(x, y), fn(x, y))
    assert list(other.state_dict()) == list(fn.state_dict())


@pytest.mark.parametrize(
    "options,words",
    (
        ({"distance": "l1"}, ("distance", "'mse'", "'mae'", "'l1'")),
        ({"reduction": "avg"}, ("reduction", "'mean'", "'avg'")),
        ({"mean": [0.5]}, ("mean", "three", "[0.5]")),
        ({"mean": 0.5}, ("mean", "three", "0.5")),
        ({"std": [1, 1]}, ("std", "three", "[1, 1]")),
        ({"std": [0, 0, 0]}, ("std", "above 0", "[0, 0, 0]")),
    ),
    ids=str,
)
def test_bad_options(options, words):
    with raises(ValueError, *words):
        LPIPS(**options, pnet_rand=True)


@pytest.mark.parametrize("options", ({}, {"distance": "mae"}), ids=str)
def test_bad_images(options):
    fn = LPIPS(**options, pnet_rand=True)
    with raises(ValueError, "x must be [N, 3, H, W]", "[2, 32, 32]"):
        fn(torch.rand(2, 32, 32), torch.rand(2, 32, 32))
    with raises(ValueError, "x and y", "one size", "[32, 32]", "[32, 40]"):
        fn(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 40))
    with raises(TypeError, "x must be floating point, in [0, 1], got torch.uint8", "x / 255"):
        fn(torch.ones(1, 3, 32, 32, dtype=torch.uint8), torch.rand(1, 3, 32, 32))

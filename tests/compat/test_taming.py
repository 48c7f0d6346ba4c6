"""compat.taming against lpips 0.1.4; taming-transformers is no package. Its LPIPS is that of VGG16 without `lins`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from lpips_fast.compat.taming import LPIPS
from tests.support.comparisons import assert_close, assert_mostly_close
from tests.support.gradients import value_and_gradient
from tests.support.images import image
from tests.support.samples import SQUARES, batches
from tests.support.tolerances import (
    GRAD_TOLERANCE,
    REAL_GRAD_TOLERANCE,
    REAL_JUMP_TOLERANCE,
    REAL_VALUE_TOLERANCE,
    VALUE_TOLERANCE,
)


@pytest.fixture(scope="module")
def ours(trunk_states):
    return LPIPS(trunk_weights=trunk_states["vgg"])


@pytest.fixture(scope="module")
def theirs(make_theirs):
    return make_theirs("vgg", dtype=torch.float64)


def test_numbers(ours, theirs):
    in0, in1 = (image(2, 32, 40, seed=seed) for seed in (1, 2))
    value = ours(in0, target=in1)
    assert value.shape == (2, 1, 1, 1)
    assert_close(value, theirs(in0.double(), in1.double()), VALUE_TOLERANCE[torch.float32])


def test_numbers_and_gradients_on_real_weights(real_trunk, make_real_theirs):
    image, target = batches(SQUARES)
    value, grad = value_and_gradient(LPIPS(trunk_weights=real_trunk("vgg")), image, target)
    theirs = make_real_theirs("vgg", torch.float64)
    expected, expected_grad = value_and_gradient(theirs, image.double(), target.double())
    torch.testing.assert_close(value.double(), expected, rtol=REAL_VALUE_TOLERANCE[torch.float32], atol=0)
    assert_mostly_close(grad, expected_grad, REAL_GRAD_TOLERANCE[torch.float32], REAL_JUMP_TOLERANCE[torch.float32])


@pytest.mark.parametrize("use_dropout", (True, False))
def test_33_keys_strictly_both_ways(trunk_states, make_theirs, use_dropout):
    theirs = make_theirs("vgg", use_dropout=use_dropout).state_dict()
    expected = {name: tensor + 1 for name, tensor in theirs.items() if not name.startswith("lins.")}
    loss = nn.ModuleDict({"perceptual_loss": LPIPS(use_dropout, trunk_weights=trunk_states["vgg"])})
    state = loss.state_dict()
    assert len(state) == 33
    assert list(state) == [f"perceptual_loss.{name}" for name in expected]
    loss.load_state_dict({f"perceptual_loss.{name}": tensor for name, tensor in expected.items()}, strict=True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loss.perceptual_loss.state_dict().items())


def test_as_a_loss_module_uses_it(trunk_states, theirs):
    """LPIPS stays in eval mode while the parent trains; its result broadcasts; two backwards go through one call."""
    loss = nn.ModuleDict({"perceptual_loss": LPIPS(trunk_weights=trunk_states["vgg"]).eval()}).train()
    last_layer = nn.Conv2d(3, 3, 1)
    target = image(2, 32, 32, seed=1)
    reconstruction = last_layer(image(2, 32, 32, seed=2))
    rec_loss = (target - reconstruction).abs() + loss.perceptual_loss(target, reconstruction)
    assert rec_loss.shape == (2, 3, 32, 32)
    nll_loss = rec_loss.mean()
    (early,) = torch.autograd.grad(nll_loss, last_layer.weight, retain_graph=True)
    nll_loss.backward()
    assert torch.equal(early, last_layer.weight.grad)
    assert not any(p.requires_grad for p in loss.parameters())
    assert not loss.perceptual_loss.training
    expected = (target - reconstruction).abs() + theirs(target.double(), reconstruction.double())
    assert_close(rec_loss, expected, VALUE_TOLERANCE[torch.float32])


def test_faithful_follows_the_parent_into_dropout(trunk_states, ours):
    loss = nn.ModuleDict({"perceptual_loss": LPIPS(faithful=True, trunk_weights=trunk_states["vgg"]).eval()})
    in0, in1 = (image(1, 32, 32, seed=seed) for seed in (1, 2))
    assert torch.equal(loss.perceptual_loss(in0, in1), ours(in0, in1))
    loss.train()
    values = {loss.perceptual_loss(in0, in1).item() for _ in range(4)}
    assert len(values) == 4
    assert not any(p.requires_grad for p in loss.parameters())


@pytest.mark.parametrize(
    "duplicate", (copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))), ids=("deepcopy", "pickle")
)
def test_copies(ours, duplicate):
    in0, in1 = (image(1, 32, 32, seed=seed) for seed in (1, 2))
    other = duplicate(ours)
    with torch.no_grad():
        other.lin0.model[-1].weight.mul_(2)
    assert not torch.equal(other(in0, in1), ours(in0, in1))  # its own linear weights, and in use


def test_options_of_lpips_fast(trunk_states, ours):
    in0, in1 = image(2, 32, 32, seed=1), image(2, 32, 32, seed=2)
    lean = LPIPS(trunk_weights=trunk_states["vgg"], grad_in_forward=True, chunk_size=1)
    in0.requires_grad_()
    (found,), (expected,) = (torch.autograd.grad(fn(in0, in1).sum(), in0) for fn in (lean, ours))
    assert (found - expected).norm() < GRAD_TOLERANCE[torch.float32] * expected.norm()

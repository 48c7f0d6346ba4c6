"""LPIPS.features: the features of an image, computed once and compared with several images."""

from __future__ import annotations

import pytest
import torch

from tests.support.comparisons import assert_norms_close
from tests.support.gradients import gradients
from tests.support.images import noise
from tests.support.tolerances import REORDERED_TOLERANCE, ROUNDING_TOLERANCE


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_cached_features_of_the_target(make_ours, grad_in_forward):
    in0, in1 = noise(3)
    fn = make_ours("squeeze", grad_in_forward=grad_in_forward, chunk_size=2 if grad_in_forward else None)
    expected = gradients(fn, in0, in1, (True, False))
    calls = []
    target = fn.features(in1)
    fn.net.register_forward_hook(lambda module, args, out: calls.append(args[0].shape[0]))
    pred = in0.clone().requires_grad_()
    value = fn(pred, target)
    torch.testing.assert_close(value, expected[0], rtol=ROUNDING_TOLERANCE, atol=0)
    (grad,) = torch.autograd.grad((value * torch.linspace(0.5, 2, 3).view_as(value)).sum(), pred)
    assert_norms_close([grad], expected[1], REORDERED_TOLERANCE)
    assert sum(calls) <= 3  # images go through the trunk, and the target is not among them
    one = fn(pred, fn.features(in1[:1]))
    torch.testing.assert_close(one, fn(pred, in1[:1]), rtol=ROUNDING_TOLERANCE, atol=0)


def test_features_are_checked(make_ours):
    in0, in1 = noise(2)
    fn = make_ours("alex")
    with pytest.raises(ValueError, match="net"):
        fn(in0, make_ours("squeeze").features(in1))
    with pytest.raises(ValueError, match="version"):
        fn(in0, make_ours("alex", version="0.0").features(in1))
    with pytest.raises(ValueError, match="size"):
        fn(in0, fn.features(in1[:, :, :40]))
    with pytest.raises(ValueError, match="type"):
        fn(in0, make_ours("alex", precision="bfloat16").features(in1))
    with pytest.raises(ValueError, match="batch"):
        fn(torch.cat((in0, in0)), fn.features(in1))
    with pytest.raises(TypeError, match="in0 must be a tensor, features go in as in1"):
        fn(fn.features(in1), in0)
    with torch.inference_mode():
        features = fn.features(in1)
    with pytest.raises(ValueError, match=r"in1 .* torch\.inference_mode.* torch\.no_grad"):
        fn(in0.clone().requires_grad_(), features)
    torch.testing.assert_close(fn(in0, features), fn(in0, in1), rtol=ROUNDING_TOLERANCE, atol=0)
    fn.grad_in_forward = True
    found = gradients(lambda x, _: fn(x, features), in0, in1, (True, False))[1]
    assert_norms_close(found, gradients(make_ours("alex"), in0, in1, (True, False))[1], REORDERED_TOLERANCE)


@pytest.mark.parametrize("gradient", (False, True))
@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("change", ("shape", "type", "rows", "weights"))
def test_every_tap_and_every_weight_is_checked(make_ours, change, grad_in_forward, gradient):
    """The operators read memory by these shapes."""
    in0, in1 = noise(2)
    fn = make_ours("alex", grad_in_forward=grad_in_forward)
    features = fn.features(in1)
    taps = list(features.taps)
    if change == "weights":
        fn.lin2.model[1].weight = torch.nn.Parameter(torch.rand(1, 3, 1, 1), requires_grad=False)
    else:
        taps[2] = {"shape": taps[2][0], "type": taps[2].half(), "rows": taps[2][:, :, 1:]}[change]
    said = r"weights\[2\] must have 384 elements" if change == "weights" else r"feats1\[2\]"
    with pytest.raises((TypeError, ValueError), match=said):
        fn(in0.clone().requires_grad_(gradient), features._replace(taps=tuple(taps)))


def test_one_tap_of_one_image_among_many(make_ours):
    in0, in1 = noise(2)
    fn = make_ours("alex")
    features = fn.features(in1)
    taps = [tap[:1] if k == 2 else tap for k, tap in enumerate(features.taps)]
    repeated = [tap[:1].expand(2, -1, -1, -1) if k == 2 else tap for k, tap in enumerate(features.taps)]
    found, expected = (fn(in0, features._replace(taps=tuple(t))) for t in (taps, repeated))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("chunk_size", (None, 2))
@pytest.mark.parametrize("gradient", (False, True))
def test_one_image_against_the_features_of_many(make_ours, chunk_size, gradient):
    """More than a chunk has."""
    in0, in1 = noise(5)
    fn = make_ours("alex", chunk_size=chunk_size)
    one, features = in0[:1].clone().requires_grad_(gradient), fn.features(in1)
    found, expected = fn(one, features), fn(in0[:1].expand(5, -1, -1, -1), in1)
    assert found.shape == (5, 1, 1, 1)
    assert_norms_close([found], [expected], REORDERED_TOLERANCE)
    if gradient:
        each = fn(in0[:1].repeat(5, 1, 1, 1).requires_grad_(), in1)
        assert_norms_close([found], [each], REORDERED_TOLERANCE)
        found.sum().backward()
        assert one.grad.shape == (1, 3, *in0.shape[2:])

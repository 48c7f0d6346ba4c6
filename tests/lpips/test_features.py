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
    assert torch.equal(fn(in0, features), fn(in0, in1))
    fn.grad_in_forward = True
    found = gradients(lambda x, _: fn(x, features), in0, in1, (True, False))[1]
    assert_norms_close(found, gradients(make_ours("alex"), in0, in1, (True, False))[1], REORDERED_TOLERANCE)

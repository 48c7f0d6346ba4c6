"""The formulas in plain torch: the closed-form gradient against autograd, and features of norm 0."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.head.operators import HeadInput, Norm, accumulation_dtype
from lpips_fast.head.reference import head_bwd_ref, head_maps_ref, head_ref, normalize_channels
from tests.support.comparisons import assert_all_close
from tests.support.features import LAYOUTS, features
from tests.support.tolerances import HEAD_GRAD_TOLERANCE

NORMS = (Norm(), Norm(0.1), Norm(1e-8, inside_sqrt=True), Norm(0.0))


def with_leaves(feats0, feats1, weights, norm):
    return HeadInput(*([t.detach().requires_grad_() for t in ts] for ts in (feats0, feats1, weights)), norm)


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("mean", (True, False))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_closed_form_is_autograds_gradient(layout, mean, norm):
    inputs = with_leaves(*features("odd", torch.float64, layout=layout), norm)
    out = [head_ref(inputs)] if mean else head_maps_ref(inputs)
    grads = [torch.randn_like(o) for o in out]
    expected = torch.autograd.grad(out, [*inputs.feats0, *inputs.feats1, *inputs.weights], grads)
    with torch.no_grad():
        found = head_bwd_ref(inputs, grads, mean=mean, need0=True, need1=True, need_weights=True)
    n = len(inputs.weights)
    for i, name in enumerate(("d_feats0", "d_feats1", "d_weights")):
        kind = slice(i * n, (i + 1) * n)
        assert_all_close(found[kind], expected[kind], HEAD_GRAD_TOLERANCE, name)


@pytest.mark.parametrize("needs", [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)])
def test_closed_form_has_what_is_asked_for(needs):
    inputs = HeadInput(*features("odd", torch.float32), Norm())
    grads = [torch.randn_like(head_ref(inputs))]
    kinds = ("need0", "need1", "need_weights")
    found = iter(head_bwd_ref(inputs, grads, mean=True, **dict(zip(kinds, map(bool, needs)))))
    everything = head_bwd_ref(inputs, grads, mean=True, **dict.fromkeys(kinds, True))
    n = len(inputs.weights)
    expected = [d for i, d in enumerate(everything) if needs[i // n]]
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("norm", NORMS, ids=str)
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
def test_normalized_channels(dtype, norm):
    """f / (|f| + eps) or f / sqrt(eps + |f|^2), in the accumulation type; 0, with no gradient, where f is 0."""
    feats = torch.randn(2, 7, 3, 5).to(dtype)
    feats[0, :, 1, 2] = 0
    feats.requires_grad_()
    found = normalize_channels(feats, norm)
    exact = feats.detach().double()
    length = exact.norm(dim=1, keepdim=True)
    divisor = (norm.eps + length**2).sqrt() if norm.inside_sqrt else length + norm.eps
    expected = torch.where(exact == 0, 0.0, exact / divisor)
    assert found.dtype == accumulation_dtype(dtype)
    torch.testing.assert_close(found, expected.to(found.dtype))
    (grad,) = torch.autograd.grad(found.sum(), feats)
    assert grad.isfinite().all()
    if not norm.inside_sqrt:
        assert not grad[0, :, 1, 2].any()

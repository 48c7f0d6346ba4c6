"""The Triton head where an image takes several programs, which the tiles of the interpreter leave to large images."""

from __future__ import annotations

import importlib

import pytest
import torch

import lpips_fast
from lpips_fast.head import autograd
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_bwd_ref, head_maps_ref, head_ref
from tests.support.comparisons import assert_all_close, assert_close
from tests.support.features import LAYOUTS, features, to_float64
from tests.support.tolerances import HEAD_GRAD_TOLERANCE, HEAD_VALUE_TOLERANCE

pytestmark = pytest.mark.skipif(
    lpips_fast.backends()["triton"] is not None, reason="no GPU, and Triton's interpreter is off"
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEEDS = {"need0": True, "need1": True, "need_weights": True}


@pytest.fixture
def kernels(monkeypatch):
    """The module, with tiles of 8 pixels by 64 channels in float32."""
    module = importlib.import_module("lpips_fast.kernels.head")
    for tile in ("FWD_TILE", "BWD_TILE"):
        monkeypatch.setattr(module, tile, 8 * 64 * 4)
    return module


@pytest.mark.parametrize("mean", (True, False))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_programs_an_image(kernels, layout, mean):
    feats0, feats1, weights = features("odd", torch.float32, layout=layout, device=DEVICE)
    assert max(kernels._blocks(f, kernels.FWD_TILE)[2] for f in feats0) > 8
    inputs = HeadInput(feats0, feats1, weights, Norm())
    exact = HeadInput(*map(to_float64, (feats0, feats1, weights)), Norm())
    found = [autograd.head("triton", inputs)] if mean else autograd.head_maps("triton", inputs)
    expected = [head_ref(exact)] if mean else head_maps_ref(exact)
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, HEAD_VALUE_TOLERANCE[torch.float32], "value")
    grads = [torch.randn_like(f) for f in found]
    d_found = autograd.head_backward("triton", inputs, grads, mean=mean, **NEEDS)
    d_expected = head_bwd_ref(exact, to_float64(grads), mean=mean, **NEEDS)
    n = len(weights)
    for i, name in enumerate(("d_feats0", "d_feats1", "d_weights")):
        kind = slice(i * n, (i + 1) * n)
        assert_all_close(d_found[kind], d_expected[kind], HEAD_GRAD_TOLERANCE, name)


def test_rows_of_pixels_without_gaps(kernels):
    """`_is_flat` is what lets a kernel count pixels with one stride, `_strides`' last."""
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    views = {
        "nchw": (x, True),
        "channels_last": (x.contiguous(memory_format=torch.channels_last), True),
        "one row": (x[:, :, :1], True),
        "one column": (x[..., :1], True),
        "one map for all pixels": (x[..., :1, :1].expand(2, 3, 4, 5), True),
        "cropped columns": (x[..., 1:4], False),
        "every other row": (x[:, :, ::2], False),
        "transposed": (x.transpose(2, 3), False),
    }
    for name, (view, flat) in views.items():
        assert kernels._is_flat(view) == flat, name
        if flat:
            n, c, _, p = kernels._strides(view)
            found = view.as_strided((*view.shape[:2], view.shape[2] * view.shape[3]), (n, c, p), view.storage_offset())
            assert torch.equal(found, view.flatten(2)), name

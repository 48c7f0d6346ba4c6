"""Layers by torch's operators: signs, and the gradients of convolutions and taps, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lpips_fast.trunk import torch_layers
from lpips_fast.trunk.program import Conv, Pool, Setting
from tests.support.tolerances import TORCH_LAYERS_TOLERANCE

SETTING = Setting((), torch.float64, torch.contiguous_format)


@pytest.mark.parametrize("channels", (8, 13, 64))
def test_signs(channels):
    y = torch.where(torch.rand(2, channels, 3, 5) < 0.1, torch.nan, torch.randn(2, channels, 3, 5).relu())
    signs = torch_layers.pack_signs(y)
    assert signs.shape == (2, 3, 5, -(-channels // 8))
    bits = torch.stack([signs >> i & 1 for i in range(8)], -1).flatten(-2).bool()
    assert torch.equal(bits[..., :channels].movedim(-1, 1), ~(y <= 0))
    assert not bits[..., channels:].any()
    grad, addend = torch.randn_like(y), torch.randn_like(y)
    assert torch.equal(torch_layers.mask_by_signs(grad, signs, None), torch.where(y <= 0, 0, grad))
    assert torch.equal(torch_layers.mask_by_signs(grad, signs, addend), torch.where(y <= 0, 0, grad + addend))


@pytest.mark.parametrize("relu", ("none", "signs", "tap"))
@pytest.mark.parametrize("addend", (False, True))
@pytest.mark.parametrize("kernel,stride,padding,size", ((3, 1, 1, (7, 6)), (1, 1, 0, (4, 5)), (11, 4, 2, (47, 50))))
def test_conv_backward(kernel, stride, padding, size, addend, relu):
    conv = Conv(0, kernel, stride, padding, tap=False)
    weight, bias = torch.randn(16, 8, kernel, kernel, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    leaf = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    x = leaf if relu == "none" else leaf.relu()
    y = F.conv2d(x, weight, bias, stride, padding)
    d_y, more = torch.randn_like(y), torch.randn_like(leaf) if addend else None
    expected = torch.autograd.grad((y, x) if addend else y, leaf, (d_y, more) if addend else d_y)[0]
    passes = {"none": None, "signs": torch_layers.pack_signs(x.detach()), "tap": x.detach()}[relu]
    found = torch_layers.conv_backward(SETTING, [weight, bias], conv, d_y, size=size, addend=more, passes=passes)
    torch.testing.assert_close(found, expected, **TORCH_LAYERS_TOLERANCE)
    if stride == 1:
        again = torch_layers.conv_backward(SETTING, [weight, bias], conv, d_y, addend=more, passes=passes)
        assert torch.equal(again, found)


@pytest.mark.parametrize("pool", (None, Pool(2, 2, False), Pool(3, 2, False), Pool(3, 2, True)))
def test_tap_backward(pool):
    leaf = torch.randn(2, 5, 9, 8, dtype=torch.float64).mul(2).round().requires_grad_()  # full of ties
    tap = leaf.relu()
    outputs = [tap] if pool is None else [tap, torch_layers.max_pool(tap, pool)]
    grads = [torch.randn_like(y) for y in outputs]
    (expected,) = torch.autograd.grad(outputs, leaf, grads)
    found = torch_layers.tap_backward(tap.detach(), grads[0], None if pool is None else grads[1], pool)
    torch.testing.assert_close(found, expected, **TORCH_LAYERS_TOLERANCE)

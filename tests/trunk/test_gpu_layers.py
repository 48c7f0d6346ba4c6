"""What the GPU's layers make of plans and filters; tests/kernels/test_trunk.py tests their kernels and whole trunks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lpips_fast.trunk import gpu_layers
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.nets import NETS
from lpips_fast.trunk.program import Expand


def test_an_expand_is_one_convolution():
    trunk = Trunk("squeeze").double()
    tensors = [p.detach() for p in trunk.parameters()]
    tensors += gpu_layers.merged_filters(trunk.plan, tensors)
    seen = 0
    for step, merged in zip(trunk.plan, gpu_layers.steps(trunk.plan), strict=True):
        assert (merged.tap, merged.pool) == (step.tap, step.pool)
        if not isinstance(step, Expand):
            assert merged is step
            continue
        seen += 1
        x = torch.randn(1, tensors[merged.at].shape[1], 6, 5, dtype=torch.float64)
        parts = [F.conv2d(x, *tensors[c.at : c.at + 2], padding=c.padding) for c in (step.conv1x1, step.conv3x3)]
        found = F.conv2d(x, *tensors[merged.at : merged.at + 2], padding=merged.padding)
        torch.testing.assert_close(found, torch.cat(parts, dim=1))
    assert seen == 8


@pytest.mark.parametrize("net", NETS)
def test_gradient_filters(net):
    """A convolution's gradient to its input is a convolution by them, and for the first a transposed one."""
    tensors = [p.detach() for p in Trunk(net).parameters()]
    for number, (weight, found) in enumerate(zip(tensors[::2], gpu_layers.gradient_filters(tensors), strict=True)):
        cout, cin, kernel, _ = weight.shape
        if number == 0:
            assert torch.equal(found[:, :cin], weight)
            assert not found[:, cin:].any()
            continue
        padding = kernel // 2
        d_y = torch.randn(1, cout, 5, 4, dtype=torch.float64)
        expected = torch.nn.grad.conv2d_input((1, cin, 5, 4), weight.double(), d_y, padding=padding)
        torch.testing.assert_close(F.conv2d(d_y, found.double(), padding=kernel - 1 - padding), expected)

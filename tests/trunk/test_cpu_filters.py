"""Filters as the CPU's kernels take them: their values and their layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lpips_fast.trunk import cpu_filters


@pytest.mark.parametrize("row", range(6))
def test_filter_matrix_holds_lagrange_weights(row):
    points = [0.0, 0.625, -0.625, 1.5, -1.5]
    g = cpu_filters._filter_matrix()
    if row == 5:
        expected = [0.0, 0.0, 1.0]
    else:
        p = points[row]
        n = torch.tensor([p - q for i, q in enumerate(points) if i != row], dtype=torch.float64).prod().item()
        expected = [1 / n, p / n, p * p / n]
    torch.testing.assert_close(g[row], torch.tensor(expected, dtype=torch.float64))


def test_transforms_make_a_convolution_in_float64():
    """The matrices that csrc/trunk/winograd.inl states, with the filters as packed here."""
    a, b = 0.625, 1.5
    a2, b2 = a * a, b * b
    b_t = torch.tensor(
        [
            [a2 * b2, 0, -(a2 + b2), 0, 1, 0],
            [0, -a * b2, -b2, a, 1, 0],
            [0, a * b2, -b2, -a, 1, 0],
            [0, -b * a2, -a2, b, 1, 0],
            [0, b * a2, -a2, -b, 1, 0],
            [0, a2 * b2, 0, -(a2 + b2), 0, 1],
        ],
        dtype=torch.float64,
    )
    a_t = torch.tensor([[p**k for p in (0.0, a, -a, b, -b)] + [float(k == 3)] for k in range(4)], dtype=torch.float64)
    g = cpu_filters._filter_matrix()
    d, weight = torch.randn(6, 6, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    y = a_t @ ((g @ weight @ g.T) * (b_t @ d @ b_t.T)) @ a_t.T
    torch.testing.assert_close(y, F.conv2d(d[None, None], weight[None, None])[0, 0])


def test_filters_are_packed_in_panels():
    weight = torch.randn(20, 5, 3, 3)
    g = cpu_filters._filter_matrix()
    u = cpu_filters.winograd_filters(weight)
    assert u.shape == (36, 2, 5, 16)
    expected = g @ weight[18, 3].double() @ g.T
    torch.testing.assert_close(u[:, 1, 3, 2], expected.flatten().float())
    assert not u[:, 1, :, 4:].any()
    turned = cpu_filters.winograd_filters(weight, turned=True)
    assert turned.shape == (36, 1, 20, 16)
    torch.testing.assert_close(turned[:, 0, 18, 3], (g @ weight[18, 3].double().flip(0, 1) @ g.T).flatten().float())

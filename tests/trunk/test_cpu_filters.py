"""Filters as the CPU's operators take them: their values and their layout."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lpips_fast.trunk import cpu_filters
from lpips_fast.trunk.operators import Algorithm

KERNELS = (3, 5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_filter_matrix_holds_lagrange_weights(kernel):
    points = cpu_filters.POINTS[kernel]
    for number, p in enumerate(points):
        n = math.prod(p - q for q in points if q != p)
        expected = torch.tensor([p**k / n for k in range(kernel)], dtype=torch.float64)
        torch.testing.assert_close(cpu_filters._filter_matrix(kernel)[number], expected)
    assert cpu_filters._filter_matrix(kernel)[len(points) :].tolist() == [[0.0] * (kernel - 1) + [1.0]]


@pytest.mark.parametrize("kernel", KERNELS)
def test_transforms_make_a_convolution_in_float64(kernel):
    """Those of csrc/trunk/, from the same points, with the filters as packed here.

    A row of B^T has the coefficients of the product of x - q over all points q but its own, a row of A^T the points'
    powers.
    """
    points = cpu_filters.POINTS[kernel]
    others = [[q for q in points if q != p] for p in points]
    b_t = torch.tensor(np.array([[*np.poly(roots)[::-1], 0] for roots in others] + [np.poly(points)[::-1]]))
    a_t = torch.tensor([[*(p**k for p in points), float(k == 3)] for k in range(4)], dtype=torch.float64)
    g = cpu_filters._filter_matrix(kernel)
    d, weight = torch.randn(kernel + 3, kernel + 3).double(), torch.randn(kernel, kernel).double()
    y = a_t @ ((g @ weight @ g.T) * (b_t @ d @ b_t.T)) @ a_t.T
    torch.testing.assert_close(y, F.conv2d(d[None, None], weight[None, None])[0, 0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_winograds_filters(kernel):
    weight, g = torch.randn(20, 5, kernel, kernel), cpu_filters._filter_matrix(kernel)
    u = cpu_filters.filters_of(Algorithm.WINOGRAD, weight, 1)
    assert u.shape == ((kernel + 3) ** 2, 2, 5, 16)
    expected = g @ weight[18, 3].double() @ g.T
    torch.testing.assert_close(u[:, 1, 3, 2], expected.flatten().float())
    assert not u[:, 1, :, 4:].any()
    turned = cpu_filters.filters_of(Algorithm.WINOGRAD, weight, 1, turned=True)
    assert turned.shape == ((kernel + 3) ** 2, 1, 20, 16)
    expected = g @ weight[18, 3].double().flip(0, 1) @ g.T
    torch.testing.assert_close(turned[:, 0, 18, 3], expected.flatten().float())


def test_filters_are_packed_in_panels():
    """Each is contiguous, and panels that are not full end in zeros."""
    weight = torch.randn(20, 6, 3, 3)
    of_first, of_direct, turned, columns = (
        cpu_filters.filters_of(algorithm, weight, 1, back)
        for algorithm, back in (
            (Algorithm.FIRST, False),
            (Algorithm.DIRECT, False),
            (Algorithm.DIRECT, True),
            (Algorithm.COLUMNS, True),
        )
    )
    assert torch.equal(of_first[1, 4, 0, 2], F.pad(weight[16:, 4, 0, 2], (0, 12)))
    assert torch.equal(of_direct[1, 0, 2, 4], F.pad(weight[16:, 4, 0, 2], (0, 12)))
    assert torch.equal(turned[0, 2, 0, 17], F.pad(weight[17, :, 0, 2], (0, 10)))
    assert torch.equal(columns[3, 17], F.pad(weight[17].flatten()[48:], (0, 10)))
    found = {(tuple(f.shape), f.is_contiguous()) for f in (of_first, of_direct, turned, columns)}
    assert found == {
        ((2, 6, 3, 3, 16), True),
        ((2, 3, 3, 6, 16), True),
        ((1, 3, 3, 20, 16), True),
        ((4, 20, 16), True),
    }


@pytest.mark.parametrize("kernel, stride, padding", ((11, 4, 2), (5, 2, 1), (9, 3, 0)))
def test_phases_make_a_convolution_of_stride_1(kernel, stride, padding):
    x, weight = torch.randn(1, 2, 37, 41).double(), torch.randn(4, 2, kernel, kernel).double()
    cut = cpu_filters.phases(weight, stride)
    assert cut.shape == (4, 2 * stride**2, 3, 3)
    expected = F.conv2d(x, weight, None, stride, padding)
    padded = F.pad(x, (padding, padding + 2 * stride) * 2)
    h, w = (side // stride * stride for side in padded.shape[2:])
    y = F.conv2d(F.pixel_unshuffle(padded[..., :h, :w], stride), cut)
    torch.testing.assert_close(y[..., : expected.shape[2], : expected.shape[3]], expected)
    turned = cpu_filters.filters_of(Algorithm.PHASES, weight.float(), stride, turned=True)
    assert torch.equal(turned, cpu_filters.winograd_filters(cut.float().flip(2, 3).transpose(0, 1)))


def test_when_winograd_pays():
    assert cpu_filters.winograd_pays(1, 64, 64, 8, 8)
    assert cpu_filters.winograd_pays(2, 512, 512, 8, 8)
    assert not cpu_filters.winograd_pays(1, 3, 64, 32, 32)  # few input channels
    assert not cpu_filters.winograd_pays(3, 64, 64, 4, 4)  # few tiles
    assert not cpu_filters.winograd_pays(1, 512, 512, 8, 8)  # few tiles for so many filters
    assert not cpu_filters.winograd_pays(64, 64, 64, 1, 1)  # few outputs in each tile

"""Filters of convolutions as the CPU's operators take them, and when Winograd's algorithm pays.

Winograd's F(4x4, k x k) makes 4x4 outputs of a convolution with filters g of k x k from (k + 3) x (k + 3) inputs d,

    Y = A^T [(G g G^T) * (B^T d B)] A

with 36 products for k = 3 where direct convolution takes 144, and 64 for k = 5 where it takes 400. U = G g G^T depends
on the filters alone, so it is made here, once; csrc/trunk/ does the rest.

Weights are [cout, cin, k, k]. The output channels of filters are in panels of 16, padded with zeros. For the gradient
to the input, filters are turned: flipped by 180 degrees, with input and output channels exchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast.trunk.operators import Algorithm

TILE = 4  # outputs of a tile in each direction
PANEL = 16  # output channels of a panel
LARGE = 1 << 17  # products of input and output channels, from which the filters do not fit a cache

# The points of the transform by kernel, without infinity, which is the last one. csrc/trunk/ has the same, with the
# reason for the choice.
POINTS = {3: (0.0, 2 / 3, -2 / 3, 1.5, -1.5), 5: (0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0)}


def filters_of(algorithm: int, weight: Tensor, stride: int, turned: bool = False) -> Tensor:
    """The filters of a convolution for one of the algorithms, a float32 tensor in the memory of the CPU.

    Args:
        weight: [cout, cin, k, k].
        stride: of the convolution, for phases.
        turned: whether the filters are for the gradient to the input.
    """
    if algorithm == Algorithm.FIRST:
        return first_filters(weight)
    if algorithm == Algorithm.COLUMNS:
        return column_filters(weight)
    if algorithm == Algorithm.PHASES:
        weight = phases(weight, stride)
    if turned and algorithm != Algorithm.TRANSPOSED:
        weight = weight.flip(2, 3).transpose(0, 1)
    return direct_filters(weight) if algorithm == Algorithm.DIRECT else winograd_filters(weight)


def first_filters(weight: Tensor) -> Tensor:
    """[ceil(cout / 16), cin, k, k, 16]."""
    return panels(weight.permute(1, 2, 3, 0)).movedim(-2, 0).contiguous()


def direct_filters(weight: Tensor) -> Tensor:
    """[ceil(cout / 16), k, k, cin, 16]."""
    return panels(weight.permute(2, 3, 1, 0)).movedim(-2, 0).contiguous()


def column_filters(weight: Tensor) -> Tensor:
    """[ceil(cin k k / 16), cout, 16]; the columns are (channel k + row) k + column."""
    return panels(weight.flatten(1)).movedim(-2, 0).contiguous()


def winograd_filters(weight: Tensor) -> Tensor:
    """U = G g G^T, [points, ceil(cout / 16), cin, 16] with points = (k + 3)^2, for k = 3 or 5."""
    cout, cin, kernel, _ = weight.shape
    g = _filter_matrix(kernel)
    filters = weight.new_zeros((len(g) ** 2, -(-cout // PANEL), cin, PANEL))
    # The panels are computed one by one, because all at once in float64 would set the peak of memory.
    for panel, part in enumerate(weight.split(PANEL)):
        u = torch.einsum("ia,ocab,jb->ijco", g, part.double(), g)
        filters[:, panel, :, : part.shape[0]] = u.flatten(0, 1)
    return filters


def _filter_matrix(kernel: int) -> Tensor:
    """G, [kernel + 3, kernel]: row i is (1, p_i, p_i^2, ...) / product of the p_i - p_j; the last one is infinity's."""
    points = torch.tensor(POINTS[kernel], dtype=torch.float64, device="cpu")
    differences = points[:, None] - points + torch.eye(len(points), dtype=torch.float64, device="cpu")
    g = points.new_zeros((kernel + TILE - 1, kernel))
    g[:-1] = points[:, None] ** torch.arange(kernel, device="cpu") / differences.prod(1, keepdim=True)
    g[-1, -1] = 1
    return g


def phases(weight: Tensor, stride: int) -> Tensor:
    """[cout, cin s s, q, q] with q = ceil(k / s): the weights at each s-th row and column, padded with zeros."""
    weight = F.pad(weight, (0, -weight.shape[3] % stride, 0, -weight.shape[2] % stride))
    parts = weight.unflatten(3, (-1, stride)).unflatten(2, (-1, stride))  # [cout, cin, q, s, q, s]
    return parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def panels(x: Tensor) -> Tensor:
    """[..., C] as [..., ceil(C / 16), 16], padded with zeros."""
    return F.pad(x, (0, -x.shape[-1] % PANEL)).unflatten(-1, (-1, PANEL))


def winograd_pays(images: int, cin: int, cout: int, h: int, w: int) -> bool:
    """Whether Winograd's algorithm computes a convolution of 3x3 or 5x5 faster than the direct one, by a fixed rule.

    Measured with AVX2 and AVX-512, on one thread (docs/performance.md has the table): where the rule holds, Winograd's
    speed is 1.1 to 5 times that of direct convolution. Elsewhere it can be as low as 0.3 times, for one of three
    reasons. With few tiles, most of the time goes into reading the filters, which are up to four times as large (512
    channels with AVX-512: 4 tiles 0.9, 8 tiles 1.2). With small images, most of each 4x4 tile lies outside the image (2
    x 2 pixels: 0.3 to 0.9). With few input channels, the transforms cost as much as the products.

    Args:
        images: the batch size.
        cin: input channels of the convolution that is computed; for a gradient these are the channels of d_y.
        cout: its output channels.
        h: height of the outputs in pixels.
        w: width of the outputs in pixels.
    """
    tiles = images * -(-h // TILE) * -(-w // TILE)
    return cin >= 12 and images * h * w >= 6 * tiles and tiles >= (8 if cin * cout >= LARGE else 4)

"""Weighted means over pixels: the weights of an image's pixels are averaged down to each tap.

    D(n, l) = sum_p m_l(n, p) d_l(n, p) / sum_p m_l(n, p)

m_l(n, p) is the mean of the weights over the image's pixels that fall into pixel p of tap l. If all weights are 0, so
is D.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def shares(weight: Tensor, sizes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Each tap pixel's share of the mean, m_l / sum m_l, by weights [N, 1, H, W]: [N, 1, h, w] for each size (h, w)."""
    out = []
    for size in sizes:
        m = F.adaptive_avg_pool2d(weight, (size[0], size[1]))
        total = m.sum(dim=(2, 3), keepdim=True)
        out.append(m / torch.where(total == 0, 1, total))
    return out


def weighted_mean(maps: Sequence[Tensor], tap_shares: Sequence[Tensor]) -> Tensor:
    """D [N, L], the sums of the maps d_l [N, 1, h_l, w_l] times the shares."""
    return torch.stack([(d * m).sum(dim=(1, 2, 3)) for d, m in zip(maps, tap_shares, strict=True)], dim=1)

"""The head of LPIPS in plain torch: the oracle of every backend, and the fallback everywhere.

For the features f0, f1 of one layer, [N, C, H, W], with |.| the norm over channels:

    a = f0 / (|f0| + eps),  b = f1 / (|f1| + eps)
    d(n, p) = sum_c w_c (a_c - b_c)^2            one number a pixel p
    D(n, l) = mean_p d(n, p)

or, with the eps inside the root, a = f0 / sqrt(eps + |f0|^2). (Zhang et al., CVPR 2018, arXiv:1801.03924.)

Where the norm is 0 so is a, and its derivative is defined as 0; autograd's sqrt would give NaN there. The difference
is taken before it is squared: |a|^2 - 2ab + |b|^2 cancels for near-identical images. Sums run in float32, in float64
for float64 features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over features of type `dtype` are taken, and of the head's results."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalize_channels(feats: Tensor, eps: float, eps_inside_sqrt: bool) -> Tensor:
    """Divides features [N, C, H, W] by their norm over channels; 0, with zero gradient, where the norm is 0."""
    feats = feats.to(accumulation_dtype(feats.dtype))
    radicand = (feats * feats).sum(dim=1, keepdim=True)
    if eps_inside_sqrt:
        radicand = radicand + eps
    zero = radicand == 0
    norm = torch.where(zero, 1.0, radicand).sqrt()
    return torch.where(zero, 0.0, feats / (norm if eps_inside_sqrt else norm + eps))


def head_maps_ref(
    feats0: Sequence[Tensor],
    feats1: Sequence[Tensor],
    weights: Sequence[Tensor],
    eps: float,
    eps_inside_sqrt: bool,
) -> list[Tensor]:
    """d(n, p) of every layer: a list of [N, 1, H, W]."""
    maps = []
    for f0, f1, w in zip(feats0, feats1, weights, strict=True):
        diff = normalize_channels(f0, eps, eps_inside_sqrt) - normalize_channels(f1, eps, eps_inside_sqrt)
        maps.append((w.view(1, -1, 1, 1) * (diff * diff)).sum(dim=1, keepdim=True))
    return maps


def head_ref(
    feats0: Sequence[Tensor],
    feats1: Sequence[Tensor],
    weights: Sequence[Tensor],
    eps: float,
    eps_inside_sqrt: bool,
) -> Tensor:
    """D(n, l), [N, L]."""
    maps = head_maps_ref(feats0, feats1, weights, eps, eps_inside_sqrt)
    return torch.stack([m.mean(dim=(1, 2, 3)) for m in maps], dim=1)

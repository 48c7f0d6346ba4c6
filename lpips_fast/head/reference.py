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

from lpips_fast._torch_state import to_dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over features of type `dtype` are taken, and of the head's results."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalize_channels(feats: Tensor, eps: float, eps_inside_sqrt: bool) -> Tensor:
    """Divides features [N, C, H, W] by their norm over channels; 0, with zero gradient, where the norm is 0."""
    feats = to_dtype(feats, accumulation_dtype(feats.dtype))
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


def head_bwd_ref(
    grads: Sequence[Tensor],
    feats0: Sequence[Tensor],
    feats1: Sequence[Tensor],
    weights: Sequence[Tensor],
    eps: float,
    eps_inside_sqrt: bool,
    mean: bool,
    need_feats0: bool,
    need_feats1: bool,
    need_weights: bool,
) -> list[Tensor]:
    """The gradients in closed form, where autograd is not to be had; as the contract of `head_bwd` in ops.py has it.

    With s = dL/dd at a pixel and u_c = 2 s w_c (a_c - b_c):

        dL/df0_c = r0 (u_c - a_c (sum_k u_k a_k) q0)       r = 1 / (|f| + eps), q = (|f| + eps) / |f|
        dL/df1_c = r1 (-u_c + b_c (sum_k u_k b_k) q1)      or with the eps inside, r = 1 / sqrt(eps + |f|^2), q = 1
        dL/dw_c  = sum_{n,p} s (a_c - b_c)^2
    """
    d_feats0, d_feats1, d_weights = [], [], []
    for layer, (f0, f1, w) in enumerate(zip(feats0, feats1, weights, strict=True)):
        (a, r0, q0), (b, r1, q1) = (_normalized_with_factors(f, eps, eps_inside_sqrt) for f in (f0, f1))
        s = grads[0][:, layer].view(-1, 1, 1, 1) / (f0.shape[2] * f0.shape[3]) if mean else grads[layer]
        diff = a - b
        u = 2 * s * w.view(1, -1, 1, 1) * diff
        if need_feats0:
            d_feats0.append((r0 * (u - a * ((u * a).sum(dim=1, keepdim=True) * q0))).to(f0.dtype))
        if need_feats1:
            d_feats1.append((r1 * (b * ((u * b).sum(dim=1, keepdim=True) * q1) - u)).to(f1.dtype))
        if need_weights:
            d_weights.append((s * diff * diff).sum(dim=(0, 2, 3)))
    return d_feats0 + d_feats1 + d_weights


def _normalized_with_factors(feats: Tensor, eps: float, eps_inside_sqrt: bool) -> tuple[Tensor, Tensor, Tensor]:
    """a, r and q above; all 0 where the norm is 0."""
    feats = feats.to(accumulation_dtype(feats.dtype))
    radicand = (feats * feats).sum(dim=1, keepdim=True)
    if eps_inside_sqrt:
        radicand = radicand + eps
    zero = radicand == 0
    norm = torch.where(zero, 1.0, radicand).sqrt()
    guarded = norm if eps_inside_sqrt else norm + eps
    r = torch.where(zero, 0.0, 1 / guarded)
    # 1 + eps / |f| and not (|f| + eps) / |f|: where |f| has overflowed the gradient is 0 then, and no NaN.
    q = torch.ones_like(r) if eps_inside_sqrt else 1 + eps / norm
    return feats * r, r, torch.where(zero, 0.0, q)

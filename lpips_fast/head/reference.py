"""The head of LPIPS in plain torch: the oracle of every backend, and the fallback where no other backend works.

Let f0 and f1 be the features of one layer, [N, C, H, W], and |.| the norm over channels:

    a = f0 / (|f0| + eps),  b = f1 / (|f1| + eps)
    d(n, p) = sum_c w_c (a_c - b_c)^2            one number a pixel p
    D(n, l) = mean_p d(n, p)

or, with the eps inside the root, a = f0 / sqrt(eps + |f0|^2). (Zhang et al., CVPR 2018, arXiv:1801.03924.)

The gradients, with s = dL/dd at a pixel (dL/dD over the number of pixels) and u_c = 2 s w_c (a_c - b_c):

    dL/df0_c = r0 (u_c - a_c (sum_k u_k a_k) q0)       r = 1 / (|f| + eps), q = (|f| + eps) / |f|
    dL/df1_c = r1 (-u_c + b_c (sum_k u_k b_k) q1)      or with the eps inside, r = 1 / sqrt(eps + |f|^2), q = 1
    dL/dw_c  = sum_{n,p} s (a_c - b_c)^2

Where the norm is 0, a is 0 and its derivative is defined as 0; autograd's derivative of sqrt would be NaN there. The
difference is taken before it is squared: |a|^2 - 2ab + |b|^2 cancels for near-identical images. Sums run in float32, or
in float64 for float64 features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpips_fast._torch_state import to_dtype
from lpips_fast.head.operators import HeadInput, Norm, accumulation_dtype


def normalize_channels(feats: Tensor, norm: Norm) -> Tensor:
    """Divides features [N, C, H, W] by their norm over channels; 0, with zero gradient, where the norm is 0."""
    feats = to_dtype(feats, accumulation_dtype(feats.dtype))
    radicand = (feats * feats).sum(dim=1, keepdim=True)
    if norm.inside_sqrt:
        radicand = radicand + norm.eps
    zero = radicand == 0
    root = torch.where(zero, 1.0, radicand).sqrt()
    return torch.where(zero, 0.0, feats / (root if norm.inside_sqrt else root + norm.eps))


def head_maps_ref(inputs: HeadInput) -> list[Tensor]:
    """d(n, p) of every layer: L tensors [N, 1, H, W]."""
    maps = []
    for f0, f1, w in zip(inputs.feats0, inputs.feats1, inputs.weights, strict=True):
        diff = normalize_channels(f0, inputs.norm) - normalize_channels(f1, inputs.norm)
        maps.append((w.view(1, -1, 1, 1) * (diff * diff)).sum(dim=1, keepdim=True))
    return maps


def head_ref(inputs: HeadInput) -> Tensor:
    """D(n, l), [N, L]."""
    return torch.stack([m.mean(dim=(1, 2, 3)) for m in head_maps_ref(inputs)], dim=1)


def head_bwd_ref(
    inputs: HeadInput, grads: Sequence[Tensor], *, mean: bool, need0: bool, need1: bool, need_weights: bool
) -> list[Tensor]:
    """The gradients in closed form, for where autograd is not available; `head_bwd` has the contract."""
    d_feats0, d_feats1, d_weights = [], [], []
    for layer, (f0, f1, w) in enumerate(zip(inputs.feats0, inputs.feats1, inputs.weights, strict=True)):
        (a, r0, q0), (b, r1, q1) = (_normalized_with_factors(f, inputs.norm) for f in (f0, f1))
        s = grads[0][:, layer].view(-1, 1, 1, 1) / (f0.shape[2] * f0.shape[3]) if mean else grads[layer]
        diff = a - b
        u = 2 * s * w.view(1, -1, 1, 1) * diff
        if need0:
            d_feats0.append((r0 * (u - a * ((u * a).sum(dim=1, keepdim=True) * q0))).to(f0.dtype))
        if need1:
            d_feats1.append((r1 * (b * ((u * b).sum(dim=1, keepdim=True) * q1) - u)).to(f1.dtype))
        if need_weights:
            d_weights.append((s * diff * diff).sum(dim=(0, 2, 3)))
    return d_feats0 + d_feats1 + d_weights


def _normalized_with_factors(feats: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor]:
    """a, r and q of the formulas above; all are 0 where the norm is 0."""
    feats = feats.to(accumulation_dtype(feats.dtype))
    radicand = (feats * feats).sum(dim=1, keepdim=True)
    if norm.inside_sqrt:
        radicand = radicand + norm.eps
    zero = radicand == 0
    root = torch.where(zero, 1.0, radicand).sqrt()
    r = torch.where(zero, 0.0, 1 / (root if norm.inside_sqrt else root + norm.eps))
    # 1 + eps / |f| and not (|f| + eps) / |f|: where |f| overflows, the gradient is then 0 and not NaN.
    q = torch.ones_like(r) if norm.inside_sqrt else 1 + norm.eps / root
    return feats * r, r, torch.where(zero, 0.0, q)

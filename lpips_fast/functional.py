"""The fused head of LPIPS as functions on features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lpips_fast.head import autograd, backends
from lpips_fast.head.inputs import checked_input
from lpips_fast.head.operators import Norm


def lpips_head(
    feats0: Sequence[Tensor],
    feats1: Sequence[Tensor],
    weights: Sequence[Tensor] | None,
    *,
    eps: float = Norm().eps,
    eps_inside_sqrt: bool = Norm().inside_sqrt,
    backend: str = "auto",
) -> Tensor:
    """Weighted distance of channel-normalised features, averaged over space, for all layers in one call.

    D(n, l) = mean_p sum_c w_c (a_c - b_c)^2, with a = f0 / (|f0| + eps), b = f1 / (|f1| + eps) and |.| over channels;
    with eps_inside_sqrt a = f0 / sqrt(eps + |f0|^2), and likewise b. LPIPS is the sum of D over the layers (Zhang et
    al., CVPR 2018, arXiv:1801.03924). D is twice differentiable in all three lists. The gradient to a feature whose
    norm is 0 is 0.

    Args:
        feats0, feats1: lists over the L layers of features [N, C_l, H_l, W_l], in NCHW, channels-last or any other
            strides, all of one floating type and on one device. A batch of 1 is broadcast against N.
        weights: a list over the layers of weights with C_l elements in any shape ([C_l], [1, C_l, 1, 1]), or None for
            weights of 1.
        eps: keeps the division from dividing by 0; 1e-10 unless given. It is added to the norm.
        eps_inside_sqrt: whether eps is added to the square of the norm instead.
        backend: 'auto', 'reference', 'cpu', 'cuda' or 'triton'; `lpips_fast.backends()` says which are available.

    Returns:
        [N, L], float32 (float64 for float64 features). Sums are taken in that type and in a fixed order.

    Raises:
        TypeError, ValueError: lists, shapes, types or devices do not fit together, eps is negative, or the backend is
            unknown.
        RuntimeError: the backend is not available.

    In float32 a norm below 1e-18 counts as 0, and one above 1e18 as infinite.
    """
    inputs = checked_input(feats0, feats1, weights, Norm(eps, eps_inside_sqrt))
    return autograd.head(backends.choose(backend, feats0[0].device), inputs)


def lpips_head_maps(
    feats0: Sequence[Tensor],
    feats1: Sequence[Tensor],
    weights: Sequence[Tensor] | None,
    *,
    eps: float = Norm().eps,
    eps_inside_sqrt: bool = Norm().inside_sqrt,
    backend: str = "auto",
) -> list[Tensor]:
    """`lpips_head` before the mean over space: the maps sum_c w_c (a_c - b_c)^2, L tensors [N, 1, H_l, W_l]."""
    inputs = checked_input(feats0, feats1, weights, Norm(eps, eps_inside_sqrt))
    return autograd.head_maps(backends.choose(backend, feats0[0].device), inputs)

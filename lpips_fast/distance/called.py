"""The distance by calling the layers, as `lpips` does, in plain torch.

The fused path computes what the stock layers compute, without calling them. Layers that were replaced, hooked or set
otherwise compute something else, so they are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lpips_fast._torch_state import to_dtype
from lpips_fast.head.operators import Norm
from lpips_fast.head.reference import normalize_channels
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.stock import call_frozen


def taps(
    trunk: nn.Module, scaling: nn.Module | None, x: Tensor, normalize: bool, n_taps: int, frozen: bool
) -> tuple[Tensor, ...]:
    """The taps of images.

    Args:
        trunk: any module that gives a sequence of taps.
        scaling: the module that images go through before the trunk, or None.
        x: images in [-1, 1], or in [0, 1] with `normalize`.
        frozen: whether the modules' parameters get no gradient, whatever their `requires_grad` says.
    """
    x = 2 * x - 1 if normalize else x
    found = _called(trunk, x if scaling is None else _called(scaling, x, frozen), frozen)
    return tuple(found[k] for k in range(n_taps))


def maps(
    taps0: Sequence[Tensor],
    taps1: Sequence[Tensor],
    lins: Sequence[nn.Module] | None,
    weights: Sequence[Tensor] | None,
    norm: Norm,
    frozen: bool,
) -> list[Tensor]:
    """Each layer's map of distances, [N, 1, H_l, W_l].

    Args:
        lins: the linear layers, which are called on the squared differences; None without linear layers.
        weights: without linear layers, the weights of the channels; None if all are 1.
    """
    found = []
    for k, (f0, f1) in enumerate(zip(taps0, taps1, strict=True)):
        squares = (normalize_channels(f0, norm) - normalize_channels(f1, norm)) ** 2
        if lins is not None:
            own = next((p.dtype for p in lins[k].parameters()), squares.dtype)
            found.append(to_dtype(_called(lins[k], to_dtype(squares, own), frozen), squares.dtype))
        else:
            if weights is not None:
                squares = weights[k].to(squares.dtype) * squares
            found.append(squares.sum(dim=1, keepdim=True))
    return found


def _called(module: nn.Module, x: Tensor, frozen: bool) -> Any:
    freezes_itself = isinstance(module, Trunk) and not module.trainable and "forward" not in module.__dict__
    return call_frozen(module, x) if frozen and not freezes_itself else module(x)

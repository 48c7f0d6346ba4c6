"""The head's operators: their contract, and what torch needs to know of them (schemas, fakes, FLOP formulas).

A backend has three operators, `lpips_fast::{head_fwd,head_maps_fwd,head_bwd}_{cpu,cuda,triton}`; each has one schema
for all backends. csrc/ implements the operators of `cpu` and `cuda`, kernels/ the operators of `triton`. Schemas and
fakes stand here in Python: torch.compile and fake tensors then work without the compiled library, too.

Contract of an implementation:
  * feats0[l] and feats1[l] are [N, C_l, H_l, W_l], all of one floating type, with any strides (0 in an expanded view).
  * weights[l] is [C_l], contiguous, of the accumulation type: float64 for float64 features, float32 for all others.
  * head_fwd returns D [N, L] and head_maps_fwd returns the maps d, L contiguous tensors [N, 1, H_l, W_l]; both are of
    the accumulation type. reference.py has the formulas of d and D.
  * head_bwd takes dL/dD as grads = [D_grad] ([N, L]) when mean is true, else dL/dd as L maps [N, 1, H_l, W_l] of any
    strides. It returns d_feats0 (L tensors, if need_feats0), then d_feats1 (likewise), then d_weights (likewise).
    d_feats have the type of their feature and the layout of `grad_like`; d_weights have the type and shape of weights.
  * N = 0 and H_l W_l = 0 are legal. As in torch, a sum over nothing is 0 and a mean over nothing is NaN.

`lpips_fast::cuda_error` says why the compiled CUDA kernels cannot run on the GPU of an index, or '' if they can. It
launches nothing and waits for nothing. backends.py calls it, by its dispatch key: it takes no tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpips_fast import _flops
from lpips_fast._library import define, library

COMPILED_BACKENDS = ("cpu", "cuda", "triton")


class Norm(NamedTuple):
    """What features are divided by: |f| + eps, or sqrt(eps + |f|^2); |f| is the norm over channels.

    The defaults are what `lpips` does.
    """

    eps: float = 1e-10
    inside_sqrt: bool = False


class HeadInput(NamedTuple):
    """The features of two images, a list over layers each, and the linear weights, as the contract says."""

    feats0: Sequence[Tensor]
    feats1: Sequence[Tensor]
    weights: Sequence[Tensor]
    norm: Norm

    def operands(self) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], float, bool]:
        """The arguments that the schemas of all operators share."""
        return self.feats0, self.feats1, self.weights, self.norm.eps, self.norm.inside_sqrt


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of sums over features of type `dtype`, and of the head's results."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def grad_like(feats: Tensor) -> Tensor:
    """An empty gradient for `feats`: channels-last where its channels are adjacent in memory, else contiguous."""
    channels_last = feats.shape[1] > 1 and feats.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(feats.shape, dtype=feats.dtype, device=feats.device, memory_format=memory_format)


def head_flops(feats0: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """FLOPs of the head's forward by the shapes of the features: it counts as 1x1 convolutions (see _flops.py)."""
    return sum(2 * prod(shape) for shape in feats0)


def _head_fwd_fake(feats0, feats1, weights, eps, eps_inside_sqrt):
    acc = accumulation_dtype(feats0[0].dtype)
    return feats0[0].new_empty((feats0[0].shape[0], len(feats0)), dtype=acc)


def _head_maps_fwd_fake(feats0, feats1, weights, eps, eps_inside_sqrt):
    acc = accumulation_dtype(feats0[0].dtype)
    return [f.new_empty((f.shape[0], 1, f.shape[2], f.shape[3]), dtype=acc) for f in feats0]


def _head_bwd_fake(grads, feats0, feats1, weights, eps, eps_inside_sqrt, mean, need_feats0, need_feats1, need_weights):
    d_feats0 = [grad_like(f) for f in feats0] if need_feats0 else []
    d_feats1 = [grad_like(f) for f in feats1] if need_feats1 else []
    d_weights = [torch.empty_like(w) for w in weights] if need_weights else []
    return d_feats0 + d_feats1 + d_weights


def _head_bwd_flops(
    grads, feats0, feats1, weights, eps, eps_inside_sqrt, mean, need_feats0, need_feats1, need_weights, **_
):
    # A 1x1 convolution's gradient to its input (the squared differences) costs as much as the gradient to its weights.
    return head_flops(feats0) * ((need_feats0 or need_feats1) + need_weights)


class _Operator(NamedTuple):
    schema: str
    fake: Callable[..., Any]
    flops: _flops.Formula


_OPERANDS = "Tensor[] feats0, Tensor[] feats1, Tensor[] weights, float eps, bool eps_inside_sqrt"
_OPERATORS = {
    "head_fwd": _Operator(f"({_OPERANDS}) -> Tensor", _head_fwd_fake, head_flops),
    "head_maps_fwd": _Operator(f"({_OPERANDS}) -> Tensor[]", _head_maps_fwd_fake, head_flops),
    "head_bwd": _Operator(
        f"(Tensor[] grads, {_OPERANDS}, bool mean, bool need_feats0, bool need_feats1, bool need_weights) -> Tensor[]",
        _head_bwd_fake,
        _head_bwd_flops,
    ),
}

for _backend in COMPILED_BACKENDS:
    for _name, _operator in _OPERATORS.items():
        define(f"{_name}_{_backend}", _operator.schema, _operator.fake)
        _flops.register({f"{_name}_{_backend}": _operator.flops})

library.define("cuda_error(int device) -> str")

"""The head as torch operators: schemas, fake implementations and autograd.

Three operators a backend, `lpips_fast::{head_fwd,head_maps_fwd,head_bwd}_{cpu,cuda,triton}`, with one schema each.
csrc/ implements those of `cpu` and `cuda`, kernels/ those of `triton`. Schemas and fakes live here in Python, so that
torch.compile and fake tensors work where the compiled library is not.

Contract of an implementation:
  * feats0[l], feats1[l]: [N, C_l, H_l, W_l], one floating type throughout, any strides (0 in an expanded view, too);
  * weights[l]: [C_l], contiguous, in the accumulation type: float64 for float64 features, float32 for all others;
  * head_fwd returns D [N, L], head_maps_fwd the maps d, L tensors [N, 1, H_l, W_l], contiguous, in that same type;
  * head_bwd takes dL/dD as grads = [D_grad] ([N, L]) when mean is true, else dL/dd as L maps [N, 1, H_l, W_l] of any
    strides. It returns d_feats0 (L tensors, if need_feats0), then d_feats1 (likewise), then d_weights (likewise).
    d_feats have their feature's type and the layout that `grad_like` gives; d_weights are as weights.
  * N = 0 and H_l W_l = 0 are legal: sums over nothing are 0, means over nothing NaN, as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from lpips_fast import _flops as flops
from lpips_fast._library import define
from lpips_fast._torch_state import is_batched, is_differentiated, plain_torch_only, with_signature
from lpips_fast.head.reference import accumulation_dtype, head_bwd_ref, head_maps_ref, head_ref

COMPILED_BACKENDS = ("cpu", "cuda", "triton")

_PAIR = "Tensor[] feats0, Tensor[] feats1, Tensor[] weights, float eps, bool eps_inside_sqrt"
_SCHEMAS = {
    "head_fwd": f"({_PAIR}) -> Tensor",
    "head_maps_fwd": f"({_PAIR}) -> Tensor[]",
    "head_bwd": (
        f"(Tensor[] grads, {_PAIR}, bool mean, bool need_feats0, bool need_feats1, bool need_weights) -> Tensor[]"
    ),
}


def grad_like(feats: Tensor) -> Tensor:
    """An empty gradient for `feats`: channels-last where its channels are adjacent in memory, else contiguous."""
    channels_last = feats.shape[1] > 1 and feats.stride(1) == 1
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(feats.shape, dtype=feats.dtype, device=feats.device, memory_format=memory_format)


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


_FAKES: dict[str, Callable[..., Any]] = {
    "head_fwd": _head_fwd_fake,
    "head_maps_fwd": _head_maps_fwd_fake,
    "head_bwd": _head_bwd_fake,
}

for _backend in COMPILED_BACKENDS:
    for _name, _schema in _SCHEMAS.items():
        define(f"{_name}_{_backend}", _schema, _FAKES[_name])


def head_flops(feats0: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """FLOPs of the 1x1 convolutions that the head counts as (flops.py), of the features' shapes."""
    return sum(2 * prod(shape) for shape in feats0)


def _head_bwd_flops(
    grads, feats0, feats1, weights, eps, eps_inside_sqrt, mean, need_feats0, need_feats1, need_weights, **_
):
    # The convolution's gradient to its input, the squared differences, and the one to its weights cost the same.
    return head_flops(feats0) * ((need_feats0 or need_feats1) + need_weights)


_FLOPS: dict[str, flops.Formula] = {"head_fwd": head_flops, "head_maps_fwd": head_flops, "head_bwd": _head_bwd_flops}
flops.register({f"{name}_{backend}": _FLOPS[name] for name in _FLOPS for backend in COMPILED_BACKENDS})


def _forward_op(backend: str, maps: bool) -> Callable[..., Any]:
    return getattr(torch.ops.lpips_fast, f"{'head_maps_fwd' if maps else 'head_fwd'}_{backend}")


class _Head(torch.autograd.Function):
    """D [N, L], or the L maps, of a compiled backend; tensors are feats0, feats1 and weights, one after the other."""

    @staticmethod
    @with_signature
    def forward(backend, maps, eps, eps_inside_sqrt, *tensors):
        out = _forward_op(backend, maps)(*_split(tensors), eps, eps_inside_sqrt)
        return tuple(out) if maps else out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.backend, ctx.maps, ctx.eps, ctx.eps_inside_sqrt, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        if is_differentiated(*tensors, *grads):
            return None, None, None, None, *_differentiable_backward(ctx, grads, tensors, needs)
        asked = [any(part) for part in _split(needs)]
        pair = (*_split(tensors), ctx.eps, ctx.eps_inside_sqrt)
        d_all = iter(head_bwd(ctx.backend, grads, *pair, not ctx.maps, *asked))
        d_tensors = [next(d_all) if asked[i // (len(tensors) // 3)] else None for i in range(len(tensors))]
        return None, None, None, None, *d_tensors


def _split(flat: Any) -> tuple[list[Any], list[Any], list[Any]]:
    n = len(flat) // 3
    return list(flat[:n]), list(flat[n : 2 * n]), list(flat[2 * n :])


def _differentiable_backward(ctx, grads, tensors, needs):
    """The gradients through the plain-torch head, as functions of `tensors` and `grads`."""
    ref = head_maps_ref if ctx.maps else head_ref
    out = ref(*_split(tensors), ctx.eps, ctx.eps_inside_sqrt)
    wanted = [t for t, need in zip(tensors, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grads if ctx.maps else grads[0], create_graph=True))
    return [next(found) if need else None for need in needs]


def _needs_graph(*tensors: Tensor) -> bool:
    """Without, an autograd.Function is overhead, and torch.compile of torch 2.14 fails at it."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def head(backend, feats0, feats1, weights, eps, eps_inside_sqrt):
    """D [N, L] by the named backend; arguments as in the contract above."""
    if backend == "reference" or plain_torch_only():
        return head_ref(feats0, feats1, weights, eps, eps_inside_sqrt)
    if not _needs_graph(*feats0, *feats1, *weights):
        return _forward_op(backend, False)(feats0, feats1, weights, eps, eps_inside_sqrt)
    return _Head.apply(backend, False, eps, eps_inside_sqrt, *feats0, *feats1, *weights)


def head_maps(backend, feats0, feats1, weights, eps, eps_inside_sqrt):
    """The L maps d by the named backend."""
    if backend == "reference" or plain_torch_only():
        return head_maps_ref(feats0, feats1, weights, eps, eps_inside_sqrt)
    if not _needs_graph(*feats0, *feats1, *weights):
        return _forward_op(backend, True)(feats0, feats1, weights, eps, eps_inside_sqrt)
    return list(_Head.apply(backend, True, eps, eps_inside_sqrt, *feats0, *feats1, *weights))


def head_bwd(
    backend, grads, feats0, feats1, weights, eps, eps_inside_sqrt, mean, need_feats0, need_feats1, need_weights
):
    """The gradients by the named backend, without autograd; arguments and result as in the contract above."""
    plain = backend == "reference" or is_batched(*grads)
    op = head_bwd_ref if plain else getattr(torch.ops.lpips_fast, f"head_bwd_{backend}")
    return op(list(grads), feats0, feats1, weights, eps, eps_inside_sqrt, mean, need_feats0, need_feats1, need_weights)

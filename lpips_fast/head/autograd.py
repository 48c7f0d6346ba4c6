"""The head by a named backend, and its derivatives.

The gradient is an operator of the backend. The gradient of the gradient goes through the reference in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lpips_fast._torch_state import is_batched, is_differentiated, plain_torch_only, with_signature
from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_bwd_ref, head_maps_ref, head_ref


def head(backend: str, inputs: HeadInput) -> Tensor:
    """D [N, L] by the named backend; operators.py has the contract of the inputs."""
    if backend == "reference" or plain_torch_only():
        return head_ref(inputs)
    if _needs_graph(inputs):
        return _Head.apply(backend, "head_fwd", inputs.norm, *inputs.feats0, *inputs.feats1, *inputs.weights)
    return getattr(torch.ops.lpips_fast, f"head_fwd_{backend}")(*inputs.operands())


def head_maps(backend: str, inputs: HeadInput) -> list[Tensor]:
    """The maps d, L tensors [N, 1, H_l, W_l], by the named backend."""
    if backend == "reference" or plain_torch_only():
        return head_maps_ref(inputs)
    if _needs_graph(inputs):
        return list(_Head.apply(backend, "head_maps_fwd", inputs.norm, *inputs.feats0, *inputs.feats1, *inputs.weights))
    return getattr(torch.ops.lpips_fast, f"head_maps_fwd_{backend}")(*inputs.operands())


def head_backward(
    backend: str,
    inputs: HeadInput,
    grads: Sequence[Tensor],
    *,
    mean: bool,
    need0: bool,
    need1: bool,
    need_weights: bool,
) -> list[Tensor]:
    """The gradients by the named backend, without autograd, with the arguments and results of `head_bwd`."""
    if backend == "reference" or is_batched(*grads):
        return head_bwd_ref(inputs, grads, mean=mean, need0=need0, need1=need1, need_weights=need_weights)
    operator = getattr(torch.ops.lpips_fast, f"head_bwd_{backend}")
    return operator(list(grads), *inputs.operands(), mean, need0, need1, need_weights)


def _needs_graph(inputs: HeadInput) -> bool:
    """Whether anything needs a gradient.

    If not, the autograd.Function is skipped: it costs time, and torch.compile of torch 2.14 fails on it.
    """
    return torch.is_grad_enabled() and any(
        t.requires_grad for tensors in (inputs.feats0, inputs.feats1, inputs.weights) for t in tensors
    )


class _Head(torch.autograd.Function):
    """The operator `head_fwd` or `head_maps_fwd` of a backend; `tensors` are feats0, then feats1, then weights."""

    @staticmethod
    @with_signature
    def forward(backend, operator, norm, *tensors):
        inputs = HeadInput(*_split(tensors), norm)
        out = getattr(torch.ops.lpips_fast, f"{operator}_{backend}")(*inputs.operands())
        return out if isinstance(out, Tensor) else tuple(out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.backend, ctx.operator, ctx.norm, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        mean = ctx.operator == "head_fwd"
        if is_differentiated(*tensors, *grads):
            return None, None, None, *_differentiable_gradients(tensors, ctx.norm, grads, mean, needs)
        need0, need1, need_weights = asked = [any(part) for part in _split(needs)]
        inputs = HeadInput(*_split(tensors), ctx.norm)
        found = iter(
            head_backward(ctx.backend, inputs, grads, mean=mean, need0=need0, need1=need1, need_weights=need_weights)
        )
        return None, None, None, *(next(found) if asked[3 * i // len(needs)] else None for i in range(len(needs)))


def _split(flat: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Three lists of one length."""
    n = len(flat) // 3
    return list(flat[:n]), list(flat[n : 2 * n]), list(flat[2 * n :])


def _differentiable_gradients(
    tensors: Sequence[Tensor], norm: Norm, grads: Sequence[Tensor], mean: bool, needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients through the reference, as functions of `tensors` and `grads`; None where none is needed."""
    inputs = HeadInput(*_split(tensors), norm)
    out = [head_ref(inputs)] if mean else head_maps_ref(inputs)
    wanted = [t for t, need in zip(tensors, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grads, create_graph=True))
    return [next(found) if need else None for need in needs]

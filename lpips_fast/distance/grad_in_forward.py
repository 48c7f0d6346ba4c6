"""LPIPS with its gradient to the images computed in the forward, a few pairs at a time.

LPIPS(n) is one number a pair, so dLPIPS(n)/dimage can be had as soon as LPIPS(n) is, and the incoming gradient, one
number a pair, scales it later. Only tensors of the size of the images survive the forward, and pairs can go through
in chunks: the memory is that of one chunk, whatever the batch.

In float16 the gradient of a mean over pixels, small factors times 1 / (H W), falls below the smallest number there is,
and no scaling of the loss reaches it here; so the gradient is taken of the distance times a power of 2 near H W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_fast._torch_state import with_signature
from lpips_fast.distance.pixel_weights import shares, weighted_mean
from lpips_fast.head import operators
from lpips_fast.trunk.cpu_filters import CpuTensors
from lpips_fast.trunk.execute import layers_of, run, run_backward
from lpips_fast.trunk.program import Affine, Setting

_EPS = 1e-10
_CPU_PIXELS = 1 << 16  # of the pairs that go through at once: the larger a batch of small images, the faster


class Job(NamedTuple):
    """What does not depend on tensors; torch.compile takes it for a constant."""

    setting: Setting
    backend: str  # of the head
    chunk_size: int | None
    need1: bool  # whether x1 needs a gradient; x0 always does


def distance_with_gradient(
    job: Job,
    x0: Tensor,
    x1: Tensor | Sequence[Tensor],
    pixel_weight: Tensor | None,
    affine: Affine,
    tensors: Sequence[Tensor],
    linear: Sequence[Tensor],
) -> Tensor:
    """LPIPS [N] of images, differentiable once: in x0 and, if the job says so, in x1.

    Args:
        x0: images [N, 3, H, W].
        x1: images, or the taps of images, of batch N, or 1 where they need no gradient.
        pixel_weight: the weights of the mean over pixels, [N, 1, H, W], or None.
        affine, tensors: the trunk's, as `frozen.run` takes them.
        linear: the linear weights, a [C] a layer, in the head's accumulation type.
    """
    others = [x1] if isinstance(x1, Tensor) else list(x1)
    masks = [] if pixel_weight is None else [pixel_weight]
    counts = (len(others), len(masks), len(tensors))
    cpu_tensors = tensors if isinstance(tensors, CpuTensors) else None  # whole, with the filters that it keeps
    return _DistanceWithGradient.apply(job, cpu_tensors, counts, x0, *affine, *others, *masks, *tensors, *linear)[0]


class _DistanceWithGradient(torch.autograd.Function):
    """LPIPS [N] and, for the backward, its gradients to x0 and x1 (empty where it needs none), in float32 at least."""

    @staticmethod
    @with_signature
    def forward(job, cpu_tensors, counts, x0, shift, scale, *rest):
        affine = shift, scale
        others, masks, tensors, linear = _split(rest, counts)
        tensors = cpu_tensors or tensors
        if len(others) == 1 and others[0].shape[0] == 1 and not job.need1:  # one image for all: its taps, once
            others, _ = run(job.setting, others, affine, tensors)
        n = x0.shape[0]
        # On the CPU the order of a convolution's sums depends on its batch, so that chunks are what the images' size
        # says and the result is the same, to the bit, whatever the chunk size: a pair, or more where they are small.
        # Not when compiled: a loop over the batch would make that a graph for every batch size.
        chunk = job.chunk_size
        if x0.device.type == "cpu" and not torch.compiler.is_compiling():
            chunk = max(_CPU_PIXELS // max(x0.shape[2] * x0.shape[3], 1), 1)
        parts = [slice(None)] if chunk is None else [slice(i, i + chunk) for i in range(0, max(n, 1), chunk)]
        values = []
        d_x0 = torch.empty_like(x0, dtype=torch.promote_types(x0.dtype, torch.float32))
        x1 = others[0] if job.need1 else x0[:0]
        d_x1 = torch.empty_like(x1, dtype=torch.promote_types(x1.dtype, torch.float32))
        for part in parts:
            pair = [x0[part], *(t if t.shape[0] == 1 else t[part] for t in others)]
            mask = masks[0][part] if masks else None
            value, d_pair = _chunk(job, pair[0], pair[1:], mask, affine, tensors, linear)
            values.append(value)
            d_x0[part] = d_pair[0]
            if job.need1:
                d_x1[part] = d_pair[1]
        return torch.cat(values), d_x0, d_x1

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.job, _, _, x0, _, _, *rest = inputs
        ctx.dtypes = x0.dtype, rest[0].dtype
        ctx.n_rest = len(rest)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx, grad, *_):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "grad_in_forward=True keeps no graph to differentiate the gradient of LPIPS by (create_graph=True): "
                "use LPIPS(grad_in_forward=False) for that"
            )
        needed = ctx.saved_tensors[: 1 + ctx.job.need1]
        d_x0, *d_x1 = ((d * grad.view(-1, 1, 1, 1)).to(dtype) for d, dtype in zip(needed, ctx.dtypes))
        return None, None, None, d_x0, None, None, *(d_x1 or [None]), *(None for _ in range(ctx.n_rest - 1))


def _split(rest, counts):
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    starts = [0, *ends]
    return [list(rest[i:j]) for i, j in zip(starts, [*ends, len(rest)], strict=True)]


def _chunk(job, x0, others, mask, affine, tensors, linear):
    """LPIPS [k] of k pairs and its gradients to x0 and, if needed, x1."""
    setting, k = job.setting, x0.shape[0]
    if job.need1:
        taps, signs = run(setting, (x0, others[0]), affine, tensors, keep=True)
        taps0, taps1 = [t[:k] for t in taps], [t[k:] for t in taps]
    else:
        taps, signs = run(setting, (x0,), affine, tensors, keep=True)
        taps0 = taps
        taps1 = run(setting, others, affine, tensors)[0] if len(others) == 1 else others
        taps1 = [t.expand_as(t0) for t, t0 in zip(taps1, taps0, strict=True)]
    height, width = x0.shape[2:]
    scale = 2.0 ** ((height * width).bit_length() - 1) if setting.dtype == torch.float16 else 1.0
    if mask is None:
        distances = operators.head(job.backend, taps0, taps1, linear, _EPS, False)
        grads = [torch.full_like(distances, scale)]
    else:
        tap_shares = shares(mask, [(t.shape[2], t.shape[3]) for t in taps0])
        distances = weighted_mean(operators.head_maps(job.backend, taps0, taps1, linear, _EPS, False), tap_shares)
        grads = [s * scale for s in tap_shares]
    d_taps = layers_of(setting).head_gradients(
        job.backend, grads, taps0, taps1, linear, _EPS, mean=mask is None, need1=job.need1
    )
    d_x = run_backward(setting, x0.shape[1:], affine, tensors, taps, signs, d_taps)
    d_x = d_x.to(torch.promote_types(d_x.dtype, torch.float32))
    d_x = d_x if scale == 1.0 else d_x / scale
    return distances.sum(dim=1), (d_x[:k], d_x[k:])

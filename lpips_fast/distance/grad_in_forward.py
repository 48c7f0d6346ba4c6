"""LPIPS with its gradient to the images computed in the forward, a chunk of pairs at a time.

LPIPS(n) is one number a pair, so dLPIPS(n)/dimage can be computed as soon as LPIPS(n) is; the incoming gradient, one
number a pair, scales it later. Only tensors of the images' size survive the forward, and one chunk determines the
memory, whatever the batch.

In float16 the gradient of a mean over pixels underflows: it holds small factors times 1 / (H W). No scaling of the loss
reaches it, because it is computed before the loss is known. So the distance is multiplied by a power of 2 near H W
before its gradient is computed, and the gradient is divided by that power afterwards.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from lpips_fast._torch_state import with_signature
from lpips_fast.distance.chunks import in_chunks, pairs_at_a_time
from lpips_fast.distance.compare import Comparison, Side, batch_of, compare
from lpips_fast.distance.pixel_weights import shares
from lpips_fast.head.inputs import checked_input
from lpips_fast.head.operators import Norm
from lpips_fast.trunk.execute import layers_of, run, run_backward
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.program import Affine, Conv, Setting


class Job(NamedTuple):
    """The arguments that are no tensors; torch.compile takes them as a constant."""

    setting: Setting  # of the trunk
    backend: str  # of the head
    norm: Norm
    pairs_at_a_time: int | None
    image1: bool  # whether x1 is an image, or else taps
    need1: bool  # whether x1 needs a gradient; x0 always does


def distance_with_gradient(
    trunk: Trunk,
    n_taps: int,
    how: Comparison,
    x0: Tensor,
    x1: Side,
    pixel_weight: Tensor | None,
    affine: Affine,
    chunk_size: int | str | None,
) -> Tensor:
    """LPIPS [N, 1, 1, 1] of pairs, differentiable once, in the images alone.

    Args:
        x0: images, [N, 3, H, W] or one for all.
        x1: images likewise, or their taps. At least one side must be images that need a gradient.
        pixel_weight: the weights of the mean over pixels, [N, 1, H, W], or None.
        affine: shift and scale of the images, as `execute.run` takes them.
    """
    if not x0.requires_grad:
        assert isinstance(x1, Tensor)
        x0, x1 = x1, x0  # the distance is symmetric
    n = max(batch_of(x0), batch_of(x1))
    image1 = isinstance(x1, Tensor)
    need1 = isinstance(x1, Tensor) and x1.requires_grad
    stride = cast(Conv, trunk.plan[0]).stride
    at_a_time = pairs_at_a_time(x0, chunk_size, stride, grad_in_forward=True)
    job = Job(trunk.setting(x0.device, n_taps), how.backend, how.norm, at_a_time, image1, need1)
    tensors = trunk.tensors(job.setting, gradient=True)
    cpu_tensors = tensors if job.setting.layers == "cpu" else None  # passed whole: it keeps filters
    others = [x1.expand(n if need1 else -1, -1, -1, -1)] if isinstance(x1, Tensor) else list(x1)
    masks = [] if pixel_weight is None else [pixel_weight]
    linear = [w.detach() for w in how.linear or ()]
    counts = (len(others), len(masks), len(tensors))
    all_tensors = (x0.expand(n, -1, -1, -1), *affine, *others, *masks, *tensors, *linear)
    return _DistanceWithGradient.apply(job, cpu_tensors, counts, *all_tensors)[0].view(-1, 1, 1, 1)


class _DistanceWithGradient(torch.autograd.Function):
    """LPIPS [N] and, for the backward, its gradients to x0 and x1, in float32 at least; x1's may be empty."""

    @staticmethod
    @with_signature
    def forward(job, cpu_tensors, counts, x0, shift, scale, *rest):
        affine, setting = (shift, scale), job.setting
        x1, mask, tensors, linear = _split(rest, counts)
        tensors = cpu_tensors or tensors
        how = Comparison(job.backend, job.norm, linear or None)
        image1 = job.image1
        if image1 and x1[0].shape[0] == 1 < x0.shape[0] and not job.need1:  # one image for all goes through once
            x1, _ = run(setting, x1, affine, tensors)
            image1 = False
        _, _, *size = x0.shape
        unit = 2.0 ** ((size[0] * size[1]).bit_length() - 1) if setting.tap_dtype == torch.float16 else 1.0
        d_x0, d_x1 = _empty_gradient(x0), _empty_gradient(x1[0] if job.need1 else x0[:0])
        values = []
        for a, b, weight, d_a, d_b in in_chunks(
            x0.shape[0], job.pairs_at_a_time, x0, x1, mask[0] if mask else None, d_x0, d_x1 if job.need1 else None
        ):
            k = a.shape[0]
            both = image1 and (job.need1 or setting.layers == "cpu")  # as in Trunk.pair
            taps, signs = run(setting, (a, b[0]) if both else (a,), affine, tensors, keep=True)
            if both:
                taps0, taps1 = [t[:k] for t in taps], [t[k:] for t in taps]
                if not job.need1:
                    taps, signs = taps0, [t[:k] for t in signs]
            else:
                taps0, taps1 = taps, run(setting, b, affine, tensors)[0] if image1 else b
            inputs = checked_input(taps0, taps1, how.linear, how.norm)
            tap_shares = None if weight is None else shares(weight, [t.shape[2:] for t in taps0])
            value, _ = compare(how, inputs, tap_shares, size)
            values.append(value.flatten())
            mean = tap_shares is None
            grads = [value.new_full((k, len(taps0)), unit)] if tap_shares is None else [s * unit for s in tap_shares]
            d_taps = layers_of(setting).head_gradients(job.backend, inputs, grads, mean=mean, need1=job.need1)
            d_x = run_backward(setting, a.shape[1:], affine, tensors, taps, signs, d_taps)
            d_x = d_x.to(torch.promote_types(d_x.dtype, torch.float32))
            d_x = d_x if unit == 1.0 else d_x / unit
            d_a.copy_(d_x[:k])
            if job.need1:
                d_b.copy_(d_x[k:])
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


def _empty_gradient(x):
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))

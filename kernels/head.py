"""The head in Triton, forward and backward, for NVIDIA and AMD GPUs and, in Triton's interpreter, for the CPU.

One pixel has the features f0 and f1 (over channels c) and the norms n0 = |f0| and n1 = |f1|:

    a_c = f0_c r0,  b_c = f1_c r1           r = 1 / (n + eps), or 1 / sqrt(eps + n^2) with the eps inside the root;
                                            r = 0 where the root is 0
    d = sum_c w_c (a_c - b_c)^2             D(n, l) = mean of d over the pixels

and backward, with s = dL/dd (dL/dD over the number of pixels) and u_c = 2 s w_c (a_c - b_c):

    dL/df0_c = r0 (u_c - a_c q0 sum_k u_k a_k)       q = 1 + eps / n, or 1 with the eps inside
    dL/df1_c = r1 (b_c q1 sum_k u_k b_k - u_c)
    dL/dw_c  = sum over n and pixels of s (a_c - b_c)^2

Memory bounds the work, and the least traffic is one read of f0 and f1. A program therefore holds BLOCK_P pixels of one
image with all of their channels in registers: the norms, the sums over channels and the gradients read nothing twice.
The tile shrinks in pixels as it grows in channels, so that each tensor takes 32 registers a thread on NVIDIA. It takes
half as many on AMD, and in the backward, which has more tensors. Nothing spills up to 4096 channels.

Each layer has its own launch. Layers differ in the shape of their tile: one kernel for all of them would take the
registers of the largest, and would be compiled anew for each combination of layers. The forward leaves one sum a
program in [N, L, programs], the backward one row of weight gradients a program in [programs, C], and one torch.sum adds
them up. There are no atomics, so the same inputs give the same bits.

The kernels are compiled with enable_fp_fusion=False. Otherwise a - b is contracted to fma(f0, r0, -(f1 r1)), and for
identical images that is the rounding error of one product instead of 0.

Strides are arbitrary. Where each row of pixels follows the last without a gap (FLAT), pixels have one stride. Triton
compiles a stride of 1 in as a constant and knows which strides are multiples of 16; so it vectorises along pixels in
NCHW and along channels in channels-last by itself. eps is compiled in, too: a float argument would be float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpips_fast.head.operators import accumulation_dtype, grad_like
from lpips_fast.kernels.common import block_of_all_channels, cdiv, normalized_values, register

NUM_WARPS = 8
# Bytes of a program's tile of one feature, in the accumulation type. A tile takes 32 registers in each of 256 threads
# forward and 16 backward, so that most variants stay under 128 registers in all. A multiprocessor then has room for two
# programs, and one computes while the other loads. The interpreter's time grows with the number of programs, so there
# they are larger and fewer.
FWD_TILE, BWD_TILE = (131072, 131072) if triton.knobs.runtime.interpret else (32768, 16384)
SUMS_ALIGNMENT = 16  # rows of sums begin at multiples of this, so that the launches of all layers are compiled alike


@triton.jit
def _pixel_coordinates(offs_p, W, FLAT: tl.constexpr):
    """Row and column of pixels that are counted along rows; if FLAT, all pixels count as row 0."""
    if FLAT:
        return 0, offs_p.to(tl.int64)
    else:
        return (offs_p // W).to(tl.int64), (offs_p % W).to(tl.int64)


@triton.jit
def _normalized(
    f_ptr, offs_c, y, x, mask, stride_c, stride_h, stride_w,
    ACC_DTYPE: tl.constexpr, EPS: tl.constexpr, EPS_INSIDE_SQRT: tl.constexpr,
):  # fmt: skip
    """a [BLOCK_C, BLOCK_P], r and q [BLOCK_P] of the header for the features of one image; a = 0 where masked."""
    offs = offs_c.to(tl.int64)[:, None] * stride_c + (y * stride_h + x * stride_w)[None, :]
    return normalized_values(tl.load(f_ptr + offs, mask=mask, other=0.0).to(ACC_DTYPE), EPS, EPS_INSIDE_SQRT)


@triton.jit
def _head_fwd_kernel(
    f0_ptr, f1_ptr, w_ptr, out_ptr, C, W, pixels,
    f0_stride_n, f0_stride_c, f0_stride_h, f0_stride_w,
    f1_stride_n, f1_stride_c, f1_stride_h, f1_stride_w,
    out_stride_n,
    EPS: tl.constexpr, EPS_INSIDE_SQRT: tl.constexpr, FLAT: tl.constexpr, MEAN: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """d of BLOCK_P pixels of one image or, if MEAN, their sum divided by `pixels`; the grid is images times blocks."""
    ACC_DTYPE: tl.constexpr = w_ptr.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK_P)
    block = tl.program_id(0) % blocks
    n = (tl.program_id(0) // blocks).to(tl.int64)
    offs_c = tl.arange(0, BLOCK_C)
    offs_p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_c, mask_p = offs_c < C, offs_p < pixels
    mask = mask_c[:, None] & mask_p[None, :]
    y, x = _pixel_coordinates(offs_p, W, FLAT)
    f0_ptr += n * f0_stride_n
    f1_ptr += n * f1_stride_n
    a, _, _ = _normalized(
        f0_ptr, offs_c, y, x, mask, f0_stride_c, f0_stride_h, f0_stride_w, ACC_DTYPE, EPS, EPS_INSIDE_SQRT
    )
    b, _, _ = _normalized(
        f1_ptr, offs_c, y, x, mask, f1_stride_c, f1_stride_h, f1_stride_w, ACC_DTYPE, EPS, EPS_INSIDE_SQRT
    )
    w = tl.load(w_ptr + offs_c, mask=mask_c, other=0.0)
    diff = a - b
    d = tl.sum(w[:, None] * (diff * diff), axis=0)
    if MEAN:
        tl.store(out_ptr + n * out_stride_n + block, tl.sum(d, axis=0) / pixels)
    else:
        tl.store(out_ptr + n * out_stride_n + offs_p, d, mask=mask_p)


# dL/dD of a layer is a column of [N, L]. Its alignment differs between layers; a variant for each is not worthwhile.
@triton.jit(do_not_specialize=("grad_ptr",))
def _head_bwd_kernel(
    grad_ptr, f0_ptr, f1_ptr, w_ptr, d_f0_ptr, d_f1_ptr, d_w_ptr, C, W, pixels, divisor,
    grad_stride_n, grad_stride_h, grad_stride_w,
    f0_stride_n, f0_stride_c, f0_stride_h, f0_stride_w,
    f1_stride_n, f1_stride_c, f1_stride_h, f1_stride_w,
    d_f0_stride_n, d_f0_stride_c, d_f0_stride_p,
    d_f1_stride_n, d_f1_stride_c, d_f1_stride_p,
    EPS: tl.constexpr, EPS_INSIDE_SQRT: tl.constexpr, FLAT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The gradients whose pointer is given, at BLOCK_P pixels of one image; d_w gets this program's row of sums."""
    ACC_DTYPE: tl.constexpr = w_ptr.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0).to(tl.int64)
    n = program // blocks
    offs_c = tl.arange(0, BLOCK_C)
    offs_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_c, mask_p = offs_c < C, offs_p < pixels
    mask = mask_c[:, None] & mask_p[None, :]
    y, x = _pixel_coordinates(offs_p, W, FLAT)
    f0_ptr += n * f0_stride_n
    f1_ptr += n * f1_stride_n
    a, r0, q0 = _normalized(
        f0_ptr, offs_c, y, x, mask, f0_stride_c, f0_stride_h, f0_stride_w, ACC_DTYPE, EPS, EPS_INSIDE_SQRT
    )
    b, r1, q1 = _normalized(
        f1_ptr, offs_c, y, x, mask, f1_stride_c, f1_stride_h, f1_stride_w, ACC_DTYPE, EPS, EPS_INSIDE_SQRT
    )
    w = tl.load(w_ptr + offs_c, mask=mask_c, other=0.0)
    grad_offs = n * grad_stride_n + y * grad_stride_h + x * grad_stride_w
    s = tl.load(grad_ptr + grad_offs, mask=mask_p, other=0.0).to(ACC_DTYPE) / divisor
    diff = a - b
    if d_w_ptr is not None:
        d_w = tl.sum(s[None, :] * (diff * diff), axis=1)
        tl.store(d_w_ptr + program * C + offs_c, d_w, mask=mask_c)
    u = (2 * s)[None, :] * w[:, None] * diff
    offs_c = offs_c.to(tl.int64)[:, None]
    offs_p = offs_p.to(tl.int64)[None, :]
    if d_f0_ptr is not None:
        dot = q0 * tl.sum(u * a, axis=0)
        d_f0 = r0[None, :] * (u - a * dot[None, :])
        d_f0_ptrs = d_f0_ptr + n * d_f0_stride_n + offs_c * d_f0_stride_c + offs_p * d_f0_stride_p
        tl.store(d_f0_ptrs, d_f0.to(d_f0_ptr.dtype.element_ty), mask=mask)
    if d_f1_ptr is not None:
        dot = q1 * tl.sum(u * b, axis=0)
        d_f1 = r1[None, :] * (b * dot[None, :] - u)
        d_f1_ptrs = d_f1_ptr + n * d_f1_stride_n + offs_c * d_f1_stride_c + offs_p * d_f1_stride_p
        tl.store(d_f1_ptrs, d_f1.to(d_f1_ptr.dtype.element_ty), mask=mask)


def _blocks(feats: Tensor, tile: int) -> tuple[int, int, int]:
    """BLOCK_C and BLOCK_P for a tile of `tile` bytes, and the number of programs an image."""
    _, channels, height, width = feats.shape
    block_c = block_of_all_channels(channels)
    block_p = max(1, tile // accumulation_dtype(feats.dtype).itemsize // block_c)
    return block_c, block_p, cdiv(height * width, block_p)


def _is_flat(x: Tensor) -> bool:
    """Whether one stride leads through all pixels of x [N, C, H, W]."""
    return x.shape[2] == 1 or x.shape[3] == 1 or x.stride(2) == x.shape[3] * x.stride(3)


def _strides(x: Tensor) -> tuple[int, int, int, int]:
    """Strides of x [N, C, H, W]; where x is flat, the last one leads from pixel to pixel."""
    stride_n, stride_c, stride_h, stride_w = x.stride()
    return stride_n, stride_c, stride_h, stride_h if x.shape[3] == 1 else stride_w


def _launch_head_fwd(
    f0: Tensor, f1: Tensor, weight: Tensor, out: Tensor, eps: float, eps_inside_sqrt: bool, mean: bool
) -> None:
    """Writes one layer's d to out [N, 1, H, W] or, for the mean, the sums of its programs to out [N, programs]."""
    block_c, block_p, blocks = _blocks(f0, FWD_TILE)
    n, channels, height, width = f0.shape
    if n * blocks:
        _head_fwd_kernel[(n * blocks,)](
            f0, f1, weight, out, channels, width, height * width, *_strides(f0), *_strides(f1), out.stride(0),
            EPS=eps, EPS_INSIDE_SQRT=eps_inside_sqrt, FLAT=_is_flat(f0) and _is_flat(f1), MEAN=mean,
            BLOCK_C=block_c, BLOCK_P=block_p, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def head_fwd_triton(
    feats0: list[Tensor], feats1: list[Tensor], weights: list[Tensor], eps: float, eps_inside_sqrt: bool
) -> Tensor:
    """D [N, L]; lpips_fast/head/operators.py has the contract."""
    slots = SUMS_ALIGNMENT * cdiv(max(_blocks(f, FWD_TILE)[2] for f in feats0), SUMS_ALIGNMENT)
    sums = weights[0].new_zeros((feats0[0].shape[0], len(feats0), slots))
    with torch.cuda.device_of(feats0[0]):
        for layer, (f0, f1, weight) in enumerate(zip(feats0, feats1, weights, strict=True)):
            out = sums[:, layer]
            if f0.shape[2] * f0.shape[3] == 0:
                out.fill_(torch.nan)
            _launch_head_fwd(f0, f1, weight, out, eps, eps_inside_sqrt, mean=True)
    return sums.sum(dim=2)


def head_maps_fwd_triton(
    feats0: list[Tensor], feats1: list[Tensor], weights: list[Tensor], eps: float, eps_inside_sqrt: bool
) -> list[Tensor]:
    """The maps d, L tensors [N, 1, H, W]; lpips_fast/head/operators.py has the contract."""
    maps = [w.new_empty((f.shape[0], 1, *f.shape[2:])) for f, w in zip(feats0, weights, strict=True)]
    with torch.cuda.device_of(feats0[0]):
        for f0, f1, weight, out in zip(feats0, feats1, weights, maps, strict=True):
            _launch_head_fwd(f0, f1, weight, out, eps, eps_inside_sqrt, mean=False)
    return maps


def _launch_head_bwd(
    grad: Tensor, f0: Tensor, f1: Tensor, weight: Tensor, eps: float, eps_inside_sqrt: bool,
    *, divisor: int, d_f0: Tensor | None, d_f1: Tensor | None, d_w_rows: Tensor | None,
) -> None:  # fmt: skip
    """Writes one layer's gradients to the outputs that are given; dL/dd is grad [N, 1, H, W] / divisor."""
    block_c, block_p, blocks = _blocks(f0, BWD_TILE)
    n, channels, height, width = f0.shape
    grad_stride_n, _, grad_stride_h, grad_stride_w = _strides(grad)
    d_strides = [0 if d is None else d.stride(dim) for d in (d_f0, d_f1) for dim in (0, 1, 3)]
    if n * blocks:
        _head_bwd_kernel[(n * blocks,)](
            grad, f0, f1, weight, d_f0, d_f1, d_w_rows, channels, width, height * width, divisor,
            grad_stride_n, grad_stride_h, grad_stride_w, *_strides(f0), *_strides(f1), *d_strides,
            EPS=eps, EPS_INSIDE_SQRT=eps_inside_sqrt, FLAT=_is_flat(f0) and _is_flat(f1) and _is_flat(grad),
            BLOCK_C=block_c, BLOCK_P=block_p, num_warps=NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip


def head_bwd_triton(
    grads: list[Tensor], feats0: list[Tensor], feats1: list[Tensor], weights: list[Tensor],
    eps: float, eps_inside_sqrt: bool, mean: bool, need_feats0: bool, need_feats1: bool, need_weights: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the head; lpips_fast/head/operators.py has the contract."""
    d_feats0 = [grad_like(f) for f in feats0] if need_feats0 else []
    d_feats1 = [grad_like(f) for f in feats1] if need_feats1 else []
    d_weights = []
    with torch.cuda.device_of(feats0[0]):
        for layer, (f0, f1, weight) in enumerate(zip(feats0, feats1, weights, strict=True)):
            n, channels, height, width = f0.shape
            grad = grads[0][:, layer, None, None, None].expand(n, 1, height, width) if mean else grads[layer]
            d_w_rows = weight.new_empty((n * _blocks(f0, BWD_TILE)[2], channels)) if need_weights else None
            _launch_head_bwd(
                grad, f0, f1, weight, eps, eps_inside_sqrt, divisor=height * width if mean else 1,
                d_f0=d_feats0[layer] if need_feats0 else None, d_f1=d_feats1[layer] if need_feats1 else None,
                d_w_rows=d_w_rows,
            )  # fmt: skip
            if d_w_rows is not None:
                d_weights.append(d_w_rows.sum(dim=0))
    return d_feats0 + d_feats1 + d_weights


register(head_fwd_triton, head_maps_fwd_triton, head_bwd_triton)

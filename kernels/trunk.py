"""The trunk's layers between its convolutions, in Triton, for NVIDIA and AMD GPUs and, in its interpreter, for the CPU.

Memory bounds most of these layers, so successive ones share a pass:

    first_conv_relu images -> relu(conv((image - shift) / scale) + bias) of the trunk's first layer; the ReLU's signs
    bias_relu       a convolution's output -> relu(y + bias) in place; the ReLU's signs; the maxima of 2x2 windows
    pack_signs      the signs of a ReLU's output
    max_pool        the maxima of windows, without indices
    mask_by_signs   the gradient back through a ReLU whose signs are kept, in place
    tap_bwd         the gradient at a tap: the head's plus the later layers', through the pool if there is one, and
                    back through the tap's ReLU
    head_tap_bwd    the same, but it also computes the head's gradient

Let f be the tap, t the head's gradient to it (head.py has its formula), g the gradient from the later layers (`behind`)
and v(p) the windows that contain p:

    dL/d(before the ReLU)(p) = (t(p) + sum over v(p) of g(v) [p is where v has its maximum]) [f(p) > 0]

The place of the maximum is found anew from f: it is the first maximum, or the last NaN, as in torch. A ReLU blocks the
gradient where its output is <= 0, and passes it elsewhere, at NaN, too. Bit c % 8 of byte c // 8 is the sign of channel
c: 1 where the ReLU passes the gradient.

Tensors are dense and channels-last, so that a pixel's channels are adjacent. Sums and products are float32, except that
the factors of the first layer's products have the trunk's type (TF32 for float32 where that is allowed).

The first layer has 3 channels, which are too few for cuDNN's kernels, and it writes more than any other layer. Here a
program reads the 3 k k values in the windows of BLOCK_P pixels straight from the images, in any type and layout, and
multiplies them by the filters, which lie in memory as [C, k k 3].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lpips_fast.kernels.common import block_of_all_channels, cdiv, next_power_of_2, normalized_values, register
from lpips_fast.trunk.convolution import allows_tf32
from lpips_fast.trunk.operators import empty_nhwc, empty_signs

NUM_WARPS = 4
# The interpreter's time grows with the number of programs, so there they are larger and fewer. Its products of bfloat16
# are wrong.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# The size of a program's tile, in bytes or values.
BIAS_RELU_TILE_BYTES = 131072 if INTERPRETED.value else 8192
POOL_TILE = 32768 if INTERPRETED.value else 1024
SIGNS_TILE = 32768 if INTERPRETED.value else 1024
TAP_TILE_BYTES = 131072 if INTERPRETED.value else 4096
HEAD_TAP_TILE_BYTES = 131072 if INTERPRETED.value else 4096
FIRST_TILE = 512 if INTERPRETED.value else 128  # pixels; half as many where the filters take several steps
FIRST_BLOCK_C, FIRST_BLOCK_K = 64, 32
KEEP_NAN = tl.constexpr(tl.PropagateNan.ALL)  # of maxima


@triton.jit(do_not_specialize=("N0",))  # so that no batch size compiles it anew
def _first_conv_relu_kernel(
    x0_ptr, x1_ptr, shift_ptr, scale_ptr, w_ptr, bias_ptr, y_ptr, signs_ptr, N0, H, W, OUT_H, OUT_W, C_OUT,
    x0_stride_n, x0_stride_c, x0_stride_h, x0_stride_w,
    x1_stride_n, x1_stride_c, x1_stride_h, x1_stride_w,
    C_IN: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """BLOCK_P pixels of one image's output, BLOCK_C channels of each; the first N0 images are x0's, the rest x1's."""
    K: tl.constexpr = KERNEL * KERNEL * C_IN
    blocks = tl.cdiv(OUT_H * OUT_W, BLOCK_P)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    offs_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    top, left = offs_p // OUT_W * STRIDE - PADDING, offs_p % OUT_W * STRIDE - PADDING
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_p, mask_c = offs_p < OUT_H * OUT_W, offs_c < C_OUT
    y = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, K, BLOCK_K):
        # Pixels are the last dimension: in NCHW they are adjacent.
        offs_k = start + tl.arange(0, BLOCK_K)
        c, tap = offs_k % C_IN, offs_k // C_IN
        row, column = top[None, :] + (tap // KERNEL)[:, None], left[None, :] + (tap % KERNEL)[:, None]
        mask = (row >= 0) & (row < H) & (column >= 0) & (column < W) & (offs_k < K)[:, None] & mask_p[None, :]
        row, column, channel = row.to(tl.int64), column.to(tl.int64), c.to(tl.int64)[:, None]
        if n < N0:
            offs = n * x0_stride_n + channel * x0_stride_c + row * x0_stride_h + column * x0_stride_w
            x = tl.load(x0_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        else:
            offs = (n - N0) * x1_stride_n + channel * x1_stride_c + row * x1_stride_h + column * x1_stride_w
            x = tl.load(x1_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        if shift_ptr is not None:
            shift, scale = tl.load(shift_ptr + c).to(tl.float32), tl.load(scale_ptr + c).to(tl.float32)
            x = tl.where(mask, (x - shift[:, None]) / scale[:, None], 0.0)  # padding is 0 after scaling
        mask = (offs_k < K)[:, None] & mask_c[None, :]
        w = tl.load(w_ptr + offs_c[None, :] * K + offs_k[:, None], mask=mask, other=0.0)
        x = tl.trans(x.to(w.dtype))
        if INTERPRETED:
            y += tl.dot(x.to(tl.float32), w.to(tl.float32), input_precision="ieee")
        else:
            y = tl.dot(x, w, y, input_precision=PRECISION)
    y += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
    y = tl.maximum(y, 0.0, propagate_nan=KEEP_NAN).to(y_ptr.dtype.element_ty)
    pixel = n * OUT_H * OUT_W + offs_p
    tl.store(y_ptr + pixel[:, None] * C_OUT + offs_c[None, :], y, mask=mask_p[:, None] & mask_c[None, :])
    if signs_ptr is not None:
        passes = (
            tl.where(y.to(tl.float32) <= 0, 0, 1).reshape(BLOCK_P, BLOCK_C // 8, 8) << tl.arange(0, 8)[None, None, :]
        )
        offs_b = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
        signs_offs = pixel[:, None] * (C_OUT // 8) + offs_b[None, :]
        signs_mask = mask_p[:, None] & (offs_b * 8 < C_OUT)[None, :]
        tl.store(signs_ptr + signs_offs, tl.sum(passes, axis=2).to(tl.uint8), mask=signs_mask)


@triton.jit
def _bias_relu_kernel(
    y_ptr, bias_ptr, signs_ptr, pooled_ptr, C, H, W,
    SIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_P windows of SIDE x SIDE pixels of one image, BLOCK_C channels of each."""
    windows_w = tl.cdiv(W, SIDE)
    windows = tl.cdiv(H, SIDE) * windows_w
    blocks = tl.cdiv(windows, BLOCK_P)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    offs_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = offs_p // windows_w * SIDE, offs_p % windows_w * SIDE
    # Channels come by eights: each eight is one byte of signs.
    offs_b = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
    bit = tl.arange(0, 8)
    offs_c = offs_b[:, None] * 8 + bit[None, :]
    mask_c = offs_c < C
    bias = tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    # All loads come before the first store: the compiler moves no load over a store to the same tensor.
    values = ()
    for i in tl.static_range(SIDE * SIDE):
        y, x = row + i // SIDE, column + i % SIDE
        inside = (offs_p < windows) & (y < H) & (x < W)
        offs = ((n * H + y) * W + x)[:, None, None] * C + offs_c[None, :, :]
        mask = inside[:, None, None] & mask_c[None, :, :]
        values += (tl.load(y_ptr + offs, mask=mask, other=0.0),)  # type: ignore[assignment]
    best = tl.full((BLOCK_P, BLOCK_C // 8, 8), float("-inf"), tl.float32)
    for i in tl.static_range(SIDE * SIDE):
        y, x = row + i // SIDE, column + i % SIDE
        inside = (offs_p < windows) & (y < H) & (x < W)
        pixel = (n * H + y) * W + x
        offs = pixel[:, None, None] * C + offs_c[None, :, :]
        mask = inside[:, None, None] & mask_c[None, :, :]
        value = values[i].to(tl.float32) + bias[None, :, :]
        value = tl.maximum(value, 0.0, propagate_nan=KEEP_NAN).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + offs, value, mask=mask)
        value = value.to(tl.float32)
        if signs_ptr is not None:
            passes = tl.where(mask & ~(value <= 0), 1, 0) << bit[None, None, :]
            signs_offs = pixel[:, None] * tl.cdiv(C, 8) + offs_b[None, :]
            signs_mask = inside[:, None] & (offs_b * 8 < C)[None, :]
            tl.store(signs_ptr + signs_offs, tl.sum(passes, axis=2).to(tl.uint8), mask=signs_mask)
        if pooled_ptr is not None:
            best = tl.maximum(best, value, propagate_nan=KEEP_NAN)
    if pooled_ptr is not None:
        whole = (offs_p < windows) & (row + SIDE <= H) & (column + SIDE <= W)
        pixel = (n * (H // SIDE) + row // SIDE) * (W // SIDE) + column // SIDE
        offs = pixel[:, None, None] * C + offs_c[None, :, :]
        mask = whole[:, None, None] & mask_c[None, :, :]
        tl.store(pooled_ptr + offs, best.to(pooled_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _max_pool_kernel(
    x_ptr, out_ptr, C, H, W, OUT_H, OUT_W,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """BLOCK_P windows of one image, BLOCK_C channels of each; pixels outside the image are ignored."""
    blocks = tl.cdiv(OUT_H * OUT_W, BLOCK_P)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    offs_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_p, mask_c = offs_p < OUT_H * OUT_W, offs_c < C
    best = tl.full((BLOCK_P, BLOCK_C), float("-inf"), tl.float32)
    for i in tl.static_range(KERNEL * KERNEL):
        y, x = offs_p // OUT_W * STRIDE + i // KERNEL, offs_p % OUT_W * STRIDE + i % KERNEL
        mask = (mask_p & (y < H) & (x < W))[:, None] & mask_c[None, :]
        offs = ((n * H + y) * W + x)[:, None] * C + offs_c[None, :]
        value = tl.load(x_ptr + offs, mask=mask, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, value, propagate_nan=KEEP_NAN)
    offs = (n * OUT_H * OUT_W + offs_p)[:, None] * C + offs_c[None, :]
    tl.store(out_ptr + offs, best.to(out_ptr.dtype.element_ty), mask=mask_p[:, None] & mask_c[None, :])


@triton.jit
def _pack_signs_kernel(y_ptr, signs_ptr, n_bytes, BLOCK_B: tl.constexpr):
    """BLOCK_B bytes of signs. Channels come by eights, so byte i has the signs of the eight values from 8 i on."""
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    bit = tl.arange(0, 8)[None, :]
    mask = offs_b < n_bytes
    y = tl.load(y_ptr + offs_b[:, None] * 8 + bit, mask=mask[:, None], other=0.0).to(tl.float32)
    tl.store(signs_ptr + offs_b, tl.sum(tl.where(y <= 0, 0, 1) << bit, axis=1).to(tl.uint8), mask=mask)


@triton.jit
def _mask_by_signs_kernel(d_ptr, signs_ptr, addend_ptr, n_bytes, BLOCK_B: tl.constexpr):
    """The values that BLOCK_B bytes of signs belong to, in the order of _pack_signs_kernel."""
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    bit = tl.arange(0, 8)[None, :]
    offs, mask = offs_b[:, None] * 8 + bit, (offs_b < n_bytes)[:, None]
    signs = tl.load(signs_ptr + offs_b, mask=offs_b < n_bytes, other=0).to(tl.int32)
    d = tl.load(d_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if addend_ptr is not None:
        d += tl.load(addend_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    tl.store(d_ptr + offs, tl.where((signs[:, None] >> bit) & 1 != 0, d, 0.0).to(d_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_window(f_ptr, offs_c, row, column, mask_c, mask_p, C, H, W, SIDE: tl.constexpr):
    """The pixels of windows of SIDE x SIDE in one image: a [BLOCK_C, BLOCK_P] for each place; 0 outside the image."""
    values = ()
    for i in tl.static_range(SIDE * SIDE):
        y, x = row + i // SIDE, column + i % SIDE
        mask = mask_c[:, None] & (mask_p & (y < H) & (x < W))[None, :]
        offs = offs_c[:, None] + ((y * W + x).to(tl.int64) * C)[None, :]
        values += (tl.load(f_ptr + offs, mask=mask, other=0.0),)  # type: ignore[assignment]
    return values


@triton.jit
def _maximum_of_window(values, row, column, H, W, SIDE: tl.constexpr):
    """The place in each window that has the maximum, for each channel: the first maximum, or the last NaN."""
    best = tl.full(values[0].shape, float("-inf"), tl.float32)
    winner = tl.zeros(values[0].shape, tl.int32)
    for i in tl.static_range(SIDE * SIDE):
        inside = ((row + i // SIDE < H) & (column + i % SIDE < W))[None, :]
        value = tl.where(inside, values[i].to(tl.float32), float("-inf"))
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        winner = tl.where(better, i, winner)
    return winner


@triton.jit
def _from_overlapping(
    behind_ptr, f_ptr, offs_c, y, x, mask_c, mask_p, C, H, W, BEHIND_H, BEHIND_W,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The later layers' gradient to pixels of one image, back through windows that overlap."""
    OVERLAP: tl.constexpr = (KERNEL + STRIDE - 1) // STRIDE
    d = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for i in range(OVERLAP * OVERLAP):  # not unrolled: all of the loads would be in registers at once
        window_y, window_x = y // STRIDE - i // OVERLAP, x // STRIDE - i % OVERLAP
        in_y, in_x = y - window_y * STRIDE, x - window_x * STRIDE
        there = mask_p & (window_y >= 0) & (window_y < BEHIND_H) & (in_y < KERNEL)
        there = there & (window_x >= 0) & (window_x < BEHIND_W) & (in_x < KERNEL)
        best = tl.full((BLOCK_C, BLOCK_P), float("-inf"), tl.float32)
        winner = tl.zeros((BLOCK_C, BLOCK_P), tl.int32)
        for j in tl.range(KERNEL * KERNEL, loop_unroll_factor=1):
            row, column = window_y * STRIDE + j // KERNEL, window_x * STRIDE + j % KERNEL
            inside = there & (row < H) & (column < W)
            offs = offs_c[:, None] + ((row * W + column).to(tl.int64) * C)[None, :]
            value = tl.load(f_ptr + offs, mask=mask_c[:, None] & inside[None, :], other=float("-inf")).to(tl.float32)
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            winner = tl.where(better, j, winner)
        offs = offs_c[:, None] + ((window_y * BEHIND_W + window_x).to(tl.int64) * C)[None, :]
        g = tl.load(behind_ptr + offs, mask=mask_c[:, None] & there[None, :], other=0.0).to(tl.float32)
        d += tl.where(winner == (in_y * KERNEL + in_x)[None, :], g, 0.0)
    return d


@triton.jit
def _tap_bwd_of_window(
    f, f_ptr, g_ptr, d_f_ptr, w, grad_ptr, grad_stride_h, grad_stride_w, divisor, behind_ptr, out_ptr,
    offs_c, row, column, mask_c, mask_p, C, H, W, BEHIND_H, BEHIND_W,
    EPS: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Writes the gradient at the pixels of windows, whose values are f; the pointers point to one image.

    The head's gradient is read from d_f or, without d_f, computed from f and g, the features of the other image.
    """
    if d_f_ptr is None:
        g = _load_window(g_ptr, offs_c, row, column, mask_c, mask_p, C, H, W, SIDE)
    else:
        g = _load_window(d_f_ptr, offs_c, row, column, mask_c, mask_p, C, H, W, SIDE)
    if SIDE > 1:
        winner = _maximum_of_window(f, row, column, H, W, SIDE)
        window_y, window_x = row // SIDE, column // SIDE
        mask = mask_c[:, None] & (mask_p & (window_y < BEHIND_H) & (window_x < BEHIND_W))[None, :]
        offs = offs_c[:, None] + ((window_y * BEHIND_W + window_x).to(tl.int64) * C)[None, :]
        behind = tl.load(behind_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    for i in tl.static_range(SIDE * SIDE):
        y, x = row + i // SIDE, column + i % SIDE
        inside = mask_p & (y < H) & (x < W)
        offs = offs_c[:, None] + ((y * W + x).to(tl.int64) * C)[None, :]
        value = f[i].to(tl.float32)
        if d_f_ptr is None:
            a, r, q = normalized_values(value, EPS, False)
            b, _, _ = normalized_values(g[i].to(tl.float32), EPS, False)
            grad_offs = y.to(tl.int64) * grad_stride_h + x.to(tl.int64) * grad_stride_w
            s = tl.load(grad_ptr + grad_offs, mask=inside, other=0.0).to(tl.float32) / divisor
            u = (2 * s)[None, :] * w[:, None] * (a - b)
            d = r[None, :] * (u - a * (q * tl.sum(u * a, axis=0))[None, :])
        else:
            d = g[i].to(tl.float32)
        if SIDE > 1:
            d += tl.where(winner == i, behind, 0.0)
        elif behind_ptr is not None:
            if KERNEL == 0:
                d += tl.load(behind_ptr + offs, mask=mask_c[:, None] & inside[None, :], other=0.0).to(tl.float32)
            else:
                d += _from_overlapping(
                    behind_ptr, f_ptr, offs_c, y, x, mask_c, inside, C, H, W, BEHIND_H, BEHIND_W,
                    KERNEL, STRIDE, BLOCK_C, BLOCK_P,
                )  # fmt: skip
        d = tl.where(value <= 0, 0.0, d).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offs, d, mask=mask_c[:, None] & inside[None, :])


@triton.jit
def _windows(H, W, SIDE: tl.constexpr, BLOCK_P: tl.constexpr):
    """The image of this program, the first row and column of its windows, and which of its windows exist."""
    windows_w = tl.cdiv(W, SIDE)
    windows = tl.cdiv(H, SIDE) * windows_w
    blocks = tl.cdiv(windows, BLOCK_P)
    offs_p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    return n, offs_p // windows_w * SIDE, offs_p % windows_w * SIDE, offs_p < windows


@triton.jit
def _tap_bwd_kernel(
    f_ptr, d_f_ptr, behind_ptr, out_ptr, C, H, W, BEHIND_H, BEHIND_W,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """BLOCK_P windows of one image, BLOCK_C channels of each; d_f has the head's gradient.

    SIDE is the side of a window: the pool's or, where its windows overlap or there is no pool, one pixel.
    """
    n, row, column, mask_p = _windows(H, W, SIDE, BLOCK_P)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    f_ptr += n * H * W * C
    if behind_ptr is not None:
        behind_ptr += n * BEHIND_H * BEHIND_W * C
    f = _load_window(f_ptr, offs_c, row, column, mask_c, mask_p, C, H, W, SIDE)
    _tap_bwd_of_window(
        f, f_ptr, None, d_f_ptr + n * H * W * C, None, None, 0, 0, 1, behind_ptr, out_ptr + n * H * W * C,
        offs_c, row, column, mask_c, mask_p, C, H, W, BEHIND_H, BEHIND_W,
        0.0, KERNEL, STRIDE, SIDE, BLOCK_C, BLOCK_P,
    )  # fmt: skip


@triton.jit(do_not_specialize=("grad_ptr", "N"))
def _head_tap_bwd_kernel(
    grad_ptr, f0_ptr, f1_ptr, w_ptr, behind_ptr, out_ptr, N, C, H, W, BEHIND_H, BEHIND_W, divisor,
    grad_stride_n, grad_stride_h, grad_stride_w, f1_stride_n,
    EPS: tl.constexpr, BOTH: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, SIDE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """BLOCK_P windows of one pair with all channels; out gets the gradients of f0 and then, if BOTH, of f1.

    The distance is symmetric: its gradient to f1 is the one to f0 with the features exchanged.
    """
    n, row, column, mask_p = _windows(H, W, SIDE, BLOCK_P)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    w = tl.load(w_ptr + offs_c, mask=mask_c, other=0.0)
    grad_ptr += n * grad_stride_n
    f0_ptr += n * H * W * C
    f1_ptr += n * f1_stride_n
    out_ptr += n * H * W * C
    if behind_ptr is not None:
        behind_ptr += n * BEHIND_H * BEHIND_W * C
    f = _load_window(f0_ptr, offs_c, row, column, mask_c, mask_p, C, H, W, SIDE)
    _tap_bwd_of_window(
        f, f0_ptr, f1_ptr, None, w, grad_ptr, grad_stride_h, grad_stride_w, divisor, behind_ptr, out_ptr,
        offs_c, row, column, mask_c, mask_p, C, H, W, BEHIND_H, BEHIND_W,
        EPS, KERNEL, STRIDE, SIDE, BLOCK_C, BLOCK_P,
    )  # fmt: skip
    if BOTH:
        out_ptr += tl.cast(N, tl.int64) * H * W * C  # the gradients of all second images follow those of the first
        if behind_ptr is not None:
            behind_ptr += tl.cast(N, tl.int64) * BEHIND_H * BEHIND_W * C
        f = _load_window(f1_ptr, offs_c, row, column, mask_c, mask_p, C, H, W, SIDE)
        _tap_bwd_of_window(
            f, f1_ptr, f0_ptr, None, w, grad_ptr, grad_stride_h, grad_stride_w, divisor, behind_ptr, out_ptr,
            offs_c, row, column, mask_c, mask_p, C, H, W, BEHIND_H, BEHIND_W,
            EPS, KERNEL, STRIDE, SIDE, BLOCK_C, BLOCK_P,
        )  # fmt: skip


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _blocks(channels: int, pixels: int, tile: int) -> tuple[int, int, int, int]:
    """BLOCK_P and BLOCK_C for a tile of `tile` values, and the numbers of blocks of pixels and of channels."""
    block_c = min(next_power_of_2(max(channels, 8)), 256)
    block_p = max(1, min(tile // block_c, next_power_of_2(max(pixels, 1))))
    return block_p, block_c, cdiv(pixels, block_p), cdiv(channels, block_c)


def _precision(dtype: torch.dtype, tf32: bool | None) -> str:
    """The input_precision of tl.dot. Only NVIDIA has TF32. Its flag is read here, so that compiled graphs heed it."""
    takes_tf32 = dtype == torch.float32 and torch.version.hip is None and allows_tf32(tf32)
    return "tf32" if takes_tf32 else "ieee"


def first_conv_relu_triton(
    images: Sequence[Tensor], shift: Tensor | None, scale: Tensor | None, weight: Tensor, bias: Tensor,
    stride: int, padding: int, tf32: bool | None, keep_signs: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """[N, C, OUT_H, OUT_W] for one or two batches of images, and its signs; trunk/operators.py has the contract."""
    assert weight.is_contiguous(memory_format=torch.channels_last)
    x0, x1 = images[0], images[-1]
    (c_out, c_in, kernel, _), (n0, _, h, w) = weight.shape, x0.shape
    out_h, out_w = ((side + 2 * padding - kernel) // stride + 1 for side in (h, w))
    n = sum(image.shape[0] for image in images)
    out = empty_nhwc(x0, n, c_out, out_h, out_w, weight.dtype)
    signs = empty_signs(out) if keep_signs else None
    block_p = FIRST_TILE if kernel * kernel * c_in <= FIRST_BLOCK_K else FIRST_TILE // 2
    blocks = cdiv(out_h * out_w, block_p)
    if n * blocks:
        with torch.cuda.device_of(x0):
            _first_conv_relu_kernel[(n * blocks, cdiv(c_out, FIRST_BLOCK_C))](
                x0, x1, shift, scale, weight, bias, out, signs, n0, h, w, out_h, out_w, c_out,
                *x0.stride(), *x1.stride(),
                C_IN=c_in, KERNEL=kernel, STRIDE=stride, PADDING=padding, PRECISION=_precision(weight.dtype, tf32),
                BLOCK_P=block_p, BLOCK_C=FIRST_BLOCK_C, BLOCK_K=FIRST_BLOCK_K,
                num_warps=NUM_WARPS,
            )  # fmt: skip
    return out, out.new_empty(0, dtype=torch.uint8) if signs is None else signs


def bias_relu_triton(y: Tensor, bias: Tensor, signs: Tensor | None, pooled: Tensor | None) -> None:
    """Changes y in place, and fills signs and pooled if given; trunk/operators.py has the contract."""
    assert y.is_contiguous(memory_format=torch.channels_last)  # the kernel writes it in place, in this order
    n, c, h, w = y.shape
    side = 1 if pooled is None else 2
    windows = cdiv(h, side) * cdiv(w, side)
    block_p, block_c, blocks, blocks_c = _blocks(c, windows, BIAS_RELU_TILE_BYTES // y.element_size() // side**2)
    if n * blocks:
        with torch.cuda.device_of(y):
            _bias_relu_kernel[(n * blocks, blocks_c)](
                y, bias, signs, pooled, c, h, w,
                SIDE=side, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=NUM_WARPS,
            )  # fmt: skip


def pack_signs_triton(y: Tensor) -> Tensor:
    """[N, H, W, C / 8]; trunk/operators.py has the contract."""
    assert y.is_contiguous(memory_format=torch.channels_last)
    signs = empty_signs(y)
    block_b = SIGNS_TILE // 8
    if signs.numel():
        with torch.cuda.device_of(y):
            _pack_signs_kernel[(cdiv(signs.numel(), block_b),)](
                y, signs, signs.numel(), BLOCK_B=block_b, num_warps=NUM_WARPS
            )
    return signs


def max_pool_triton(x: Tensor, kernel: int, stride: int, out_h: int, out_w: int) -> Tensor:
    """[N, C, out_h, out_w]; trunk/operators.py has the contract."""
    x = _dense(x)
    n, c, h, w = x.shape
    out = empty_nhwc(x, n, c, out_h, out_w, x.dtype)
    block_p, block_c, blocks, blocks_c = _blocks(c, out_h * out_w, POOL_TILE)
    if n * blocks:
        with torch.cuda.device_of(x):
            _max_pool_kernel[(n * blocks, blocks_c)](
                x, out, c, h, w, out_h, out_w,
                KERNEL=kernel, STRIDE=stride, BLOCK_P=block_p, BLOCK_C=block_c, num_warps=NUM_WARPS,
            )  # fmt: skip
    return out


def mask_by_signs_triton(d: Tensor, signs: Tensor, addend: Tensor | None) -> None:
    """Changes d in place; trunk/operators.py has the contract."""
    assert d.is_contiguous(memory_format=torch.channels_last)  # the kernel writes it in place, in this order
    block_b = SIGNS_TILE // 8
    if signs.numel():
        with torch.cuda.device_of(d):
            _mask_by_signs_kernel[(cdiv(signs.numel(), block_b),)](
                d, signs, None if addend is None else _dense(addend), signs.numel(),
                BLOCK_B=block_b, num_warps=NUM_WARPS,
            )  # fmt: skip


def _window_side(kernel: int, stride: int) -> int:
    """The side of the pool's windows; 1 where they overlap or there is no pool."""
    return stride if kernel == stride else 1


def tap_bwd_triton(tap: Tensor, d_tap: Tensor, behind: Tensor | None, kernel: int, stride: int) -> Tensor:
    """[N, C, H, W]; trunk/operators.py has the contract."""
    tap, d_tap, behind = _dense(tap), _dense(d_tap), None if behind is None else _dense(behind)
    n, c, h, w = tap.shape
    out = empty_nhwc(tap, n, c, h, w, tap.dtype)
    side = _window_side(kernel, stride)
    windows = cdiv(h, side) * cdiv(w, side)
    block_p, block_c, blocks, blocks_c = _blocks(c, windows, TAP_TILE_BYTES // tap.element_size() // side)
    behind_h, behind_w = (0, 0) if behind is None else behind.shape[2:]
    if n * blocks:
        with torch.cuda.device_of(tap):
            _tap_bwd_kernel[(n * blocks, blocks_c)](
                tap, d_tap, behind, out, c, h, w, behind_h, behind_w,
                KERNEL=kernel, STRIDE=stride, SIDE=side, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=NUM_WARPS,
            )  # fmt: skip
    return out


def head_tap_bwd_triton(
    grad: Tensor, f0: Tensor, f1: Tensor, weight: Tensor, eps: float, divisor: int, both: bool,
    behind: Tensor | None, kernel: int, stride: int,
) -> Tensor:  # fmt: skip
    """[N, C, H, W], or [2 N, C, H, W] for both images; trunk/operators.py has the contract."""
    n, c, h, w = f0.shape
    one_for_all = f1.stride(0) == 0
    f1_stride_n = 0 if one_for_all else c * h * w
    f0, f1 = _dense(f0), _dense(f1[:1] if one_for_all else f1)
    behind = None if behind is None else _dense(behind)
    out = empty_nhwc(f0, 2 * n if both else n, c, h, w, f0.dtype)
    side = _window_side(kernel, stride)
    block_c = block_of_all_channels(c)
    # Sums across warps take registers, and so does the search in windows that overlap: the tile is half as large then.
    tile = HEAD_TAP_TILE_BYTES // f0.element_size() // (2 if c > 256 or kernel > stride else 1)
    block_p = max(1, tile // block_c // side)
    blocks = cdiv(cdiv(h, side) * cdiv(w, side), block_p)
    behind_h, behind_w = (0, 0) if behind is None else behind.shape[2:]
    if n * blocks:
        with torch.cuda.device_of(f0):
            _head_tap_bwd_kernel[(n * blocks,)](
                grad, f0, f1, weight, behind, out, n, c, h, w, behind_h, behind_w, divisor,
                grad.stride(0), grad.stride(2), grad.stride(3), f1_stride_n,
                EPS=eps, BOTH=both, KERNEL=kernel, STRIDE=stride, SIDE=side, BLOCK_C=block_c, BLOCK_P=block_p,
                num_warps=NUM_WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return out


register(
    first_conv_relu_triton, bias_relu_triton, pack_signs_triton, max_pool_triton, mask_by_signs_triton, tap_bwd_triton,
    head_tap_bwd_triton,
)  # fmt: skip

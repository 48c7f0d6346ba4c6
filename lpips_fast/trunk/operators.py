"""The trunk's operators in torch's library: their contract, schemas, fake implementations and FLOP formulas.

The compiled library implements the CPU's operators (`*_cpu`), kernels/trunk.py the GPU's (`*_triton`), and
gpu_layers.py `conv_relu_cudnn`. Schemas and fakes are Python, so that torch.compile and fake tensors work where an
implementation is missing.

Activations and gradients are [N, C, H, W]; results are channels-last. The backward of a ReLU needs only the signs of
its output y, one bit for each value:

    signs are uint8 [N, H, W, ceil(C / 8)]; bit c % 8 of byte c // 8 is 1 unless y <= 0 in channel c.

So a ReLU passes the gradient where y is NaN, as in torch.

CPU. Types are float32. Inputs may have any layout; those whose channels are not adjacent in memory are copied.

  * conv3x3_fwd_cpu: [y] with y = relu(conv(x) + bias), padding 1; if asked for, then max_pool2d(y, 2), then y's signs.
  * conv3x3_bwd_cpu: conv(d_y) with turned filters, plus `addend`; 0 where x is <= 0. `mask` is x, or x's signs.
  * conv3x3_first_cpu: conv3x3_fwd_cpu of (x - shift) / scale, zero-padded after the scaling; for few input channels.
  * pack_signs_cpu: the signs of y.
  * mask_by_signs_cpu: d_y + addend where the bit is 1, else 0.
  * relu_pool_bwd_cpu: d_head + (d_pooled taken back through max_pool2d(tap, 2)), 0 where tap is <= 0.

GPU. Activations, taps and gradients d are channels-last and of the trunk's type; with signs C is a multiple of 8.

  * first_conv_relu_triton: relu(conv((x - shift) / scale) + bias) and its signs, which are empty without `keep_signs`.
    The images x are one batch or two, the second after the first, of any types and layouts. Shift and scale may be
    missing. tf32 is as in convolution.conv2d.
  * conv_relu_cudnn: relu(conv(x) + bias).
  * bias_relu_triton: relu(y + bias) replaces y, which is dense; its signs and max_pool2d(y, 2) go into given tensors.
  * pack_signs_triton: the signs of y.
  * max_pool_triton: the maxima of windows, which may overrun x at the end as in ceil_mode; a NaN is the maximum.
  * mask_by_signs_triton: d + addend where the bit is 1, else 0, replaces d, which is dense.
  * tap_bwd_triton: the sum of d_tap and of `behind` taken back to the tap, 0 where tap is <= 0. `behind` is the
    gradient of the layers after the tap, and may be missing: dL/d(output of the pool), or dL/dtap if kernel is 0 (no
    pool).
  * head_tap_bwd_triton: tap_bwd_triton with d_tap = the head's gradient to f0, where the gradient to the map of
    distances is grad / divisor, grad [N, 1, H, W] of any strides. f1 may be one image, expanded. With `both`, the
    result and `behind` are of f0 and then of f1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from lpips_fast import _flops as flops
from lpips_fast._library import define
from lpips_fast.head.operators import head_flops


def empty_nhwc(like: Tensor, n: int, channels: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Memory for a channels-last tensor on the device of `like`."""
    shape = (n, channels, h, w)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def empty_signs(y: Tensor) -> Tensor:
    """Memory for the signs of y."""
    n, c, h, w = y.shape
    return torch.empty((n, h, w, -(-c // 8)), dtype=torch.uint8, device=y.device)


# ---- CPU


def _conv3x3_fwd_fake(x, filters, bias, pool, signs):
    (n, _, h, w), channels = x.shape, bias.shape[0]
    y = empty_nhwc(x, n, channels, h, w, x.dtype)
    pooled = [empty_nhwc(x, n, channels, h // 2, w // 2, x.dtype)] if pool else []
    return [y, *pooled, *([empty_signs(y)] if signs else [])]


def _conv3x3_bwd_fake(d_y, filters, channels, addend, mask):
    n, _, h, w = d_y.shape
    return empty_nhwc(d_y, n, channels, h, w, d_y.dtype)


def _conv3x3_first_fake(x, shift, scale, filters, bias, channels, signs):
    n, _, h, w = x.shape
    y = empty_nhwc(x, n, channels, h, w, x.dtype)
    return [y, empty_signs(y)] if signs else [y]


def _mask_by_signs_cpu_fake(d_y, signs, addend):
    return torch.empty_like(d_y, memory_format=torch.channels_last)


def _relu_pool_bwd_fake(tap, d_head, d_pooled):
    return torch.empty_like(tap, memory_format=torch.channels_last)


_CPU_OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
    "conv3x3_fwd_cpu": (
        "(Tensor x, Tensor filters, Tensor bias, bool pool, bool signs) -> Tensor[]",
        _conv3x3_fwd_fake,
    ),
    "conv3x3_bwd_cpu": (
        "(Tensor d_y, Tensor filters, int channels, Tensor? addend, Tensor? mask) -> Tensor",
        _conv3x3_bwd_fake,
    ),
    "conv3x3_first_cpu": (
        "(Tensor x, Tensor shift, Tensor scale, Tensor filters, Tensor bias, int channels, bool signs) -> Tensor[]",
        _conv3x3_first_fake,
    ),
    "pack_signs_cpu": ("(Tensor y) -> Tensor", empty_signs),
    "mask_by_signs_cpu": ("(Tensor d_y, Tensor signs, Tensor? addend) -> Tensor", _mask_by_signs_cpu_fake),
    "relu_pool_bwd_cpu": ("(Tensor tap, Tensor? d_head, Tensor? d_pooled) -> Tensor", _relu_pool_bwd_fake),
}


# ---- GPU


def _first_conv_relu_fake(images, shift, scale, weight, bias, stride, padding, tf32, keep_signs):
    y = _conv_fake(weight, sum(image.shape[0] for image in images), images[0].shape[2:], stride, padding)
    return y, empty_signs(y) if keep_signs else y.new_empty(0, dtype=torch.uint8)


def _conv_relu_cudnn_fake(x, weight, bias, stride, padding):
    return _conv_fake(weight, x.shape[0], x.shape[2:], stride, padding)


def _conv_fake(weight, n, size, stride, padding):
    h, w = ((side + 2 * padding - k) // stride + 1 for side, k in zip(size, weight.shape[2:], strict=True))
    return empty_nhwc(weight, n, weight.shape[0], h, w, weight.dtype)


def _bias_relu_fake(y, bias, signs, pooled):
    return None


def _max_pool_fake(x, kernel, stride, out_h, out_w):
    return empty_nhwc(x, x.shape[0], x.shape[1], out_h, out_w, x.dtype)


def _mask_by_signs_triton_fake(d, signs, addend):
    return None


def _tap_bwd_fake(tap, d_tap, behind, kernel, stride):
    return torch.empty_like(tap, memory_format=torch.channels_last)


def _head_tap_bwd_fake(grad, f0, f1, weight, eps, divisor, both, behind, kernel, stride):
    n, c, h, w = f0.shape
    return empty_nhwc(f0, 2 * n if both else n, c, h, w, f0.dtype)


_GPU_OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
    "first_conv_relu_triton": (
        "(Tensor[] images, Tensor? shift, Tensor? scale, Tensor weight, Tensor bias, int stride, int padding, "
        "bool? tf32, bool keep_signs) -> (Tensor, Tensor)",
        _first_conv_relu_fake,
    ),
    "conv_relu_cudnn": (
        "(Tensor x, Tensor weight, Tensor bias, int stride, int padding) -> Tensor",
        _conv_relu_cudnn_fake,
    ),
    "bias_relu_triton": ("(Tensor(a!) y, Tensor bias, Tensor(b!)? signs, Tensor(c!)? pooled) -> ()", _bias_relu_fake),
    "pack_signs_triton": ("(Tensor y) -> Tensor", empty_signs),
    "max_pool_triton": ("(Tensor x, int kernel, int stride, SymInt out_h, SymInt out_w) -> Tensor", _max_pool_fake),
    "mask_by_signs_triton": ("(Tensor(a!) d, Tensor signs, Tensor? addend) -> ()", _mask_by_signs_triton_fake),
    "tap_bwd_triton": ("(Tensor tap, Tensor d_tap, Tensor? behind, int kernel, int stride) -> Tensor", _tap_bwd_fake),
    "head_tap_bwd_triton": (
        "(Tensor grad, Tensor f0, Tensor f1, Tensor weight, float eps, SymInt divisor, bool both, Tensor? behind, "
        "int kernel, int stride) -> Tensor",
        _head_tap_bwd_fake,
    ),
}

for _name, (_schema, _fake) in {**_CPU_OPERATORS, **_GPU_OPERATORS}.items():
    define(_name, _schema, _fake)


# ---- FLOPs: functions of the operators' arguments, with a shape in place of each tensor


def _conv_flops(weight: Sequence[int], y: Sequence[int]) -> int:
    return 2 * y[0] * y[2] * y[3] * prod(weight)


flops.register(
    {
        # A convolution's own multiplications, though Winograd's algorithm does fewer (_flops.py).
        "conv3x3_fwd_cpu": lambda x, filters, bias, *_, **__: 2 * 9 * prod(x) * bias[0],
        "conv3x3_bwd_cpu": lambda d_y, filters, channels, *_, **__: 2 * 9 * prod(d_y) * channels,
        "conv3x3_first_cpu": lambda x, shift, scale, filters, bias, channels, *_, **__: 2 * 9 * prod(x) * channels,
        "first_conv_relu_triton": lambda images, shift, scale, weight, *_, out_shape, **__: _conv_flops(
            weight, out_shape[0]
        ),
        "conv_relu_cudnn": lambda x, weight, *_, out_shape, **__: _conv_flops(weight, out_shape),
        "head_tap_bwd_triton": lambda grad, f0, *_, **__: head_flops([f0]),
    }
)

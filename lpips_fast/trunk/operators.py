"""The trunk's operators in torch's library: their contract, schemas, fake implementations and FLOP formulas.

The compiled library implements the CPU's operators (`*_cpu`), kernels/trunk.py the GPU's (`*_triton`), and
gpu_layers.py `conv_relu_cudnn`. Schemas and fakes are Python, so that torch.compile and fake tensors work where an
implementation is missing.

Activations and gradients are [N, C, H, W]; results are channels-last. The backward of a ReLU needs only the signs of
its output y, one bit for each value:

    signs are uint8 [N, H, W, ceil(C / 8)]; bit c % 8 of byte c // 8 is 1 unless y <= 0 in channel c.

So a ReLU passes the gradient where y is NaN, as in torch.

CPU. A whole frozen trunk is one operator forward and one backward, in float32. `program` says what they compute: the
integers of a `CpuConv` for each convolution, in the order of execution. A convolution is y = relu(conv(x) + bias); if
the next one is joined to it, both take the same x, and what is said of y is said of both, concatenated along the
channels. The pool takes y and gives the next convolution's x. A program may end after any tap, which then has no pool.

  * trunk_fwd_cpu: the taps, in order; then, with `signs`, the signs of every y that is no tap, in order. The images are
    one batch of any layout, or two of one size, the second after the first. The trunk takes (x - shift) / scale, padded
    with zeros after the scaling; shift and scale have C elements, or are missing. `filters` are two tensors for each
    convolution, its filters and its bias.
  * trunk_bwd_cpu: dL/dimages, contiguous, from the taps and signs of these images and dL/dtaps of any layout. `scale`
    is that of the forward. `filters` are one tensor for each convolution, for its gradient. The gradient passes a tap's
    ReLU unless the tap is <= 0. It passes a pool to each window's first maximum, or to its last NaN.

cpu_filters.py makes the filters; a bias is padded to whole panels of 16 channels. `CpuConv.algorithm` and `.gradient`
are one of these:

  * FIRST (forward): direct convolution of the image's planes, which are scaled on the way; for a trunk's first layer.
  * DIRECT: direct convolution of stride 1, channels-last.
  * WINOGRAD: Winograd's F(4x4, 3x3) or F(4x4, 5x5), of stride 1.
  * PHASES: for a trunk's first layer with a stride s. The scaled and padded image is cut into its s x s phases, which
    become channels, (c s + row) s + column; so are the filters, padded with zeros at their end. What remains is a
    convolution of stride 1 with filters of 3 x 3, by Winograd's algorithm.
  * TRANSPOSED (backward): WINOGRAD for 3x3 with the filters of the forward, which are transposed part by part while
    they are used. Both channels are multiples of 16.
  * COLUMNS (backward): for a trunk's first layer. The product of dL/dy at each pixel with the weights [cout, cin k k],
    whose results are added up in the image.

A program that begins with DIRECT or WINOGRAD takes any x as its image, in one batch and without scaling. Of two joined
convolutions the first one has 8 k output channels; they have a gradient only if they follow a convolution that is no
tap. The number of threads changes no bit of a result. Outputs of a convolution whose inputs are equal to the bit are
so, too.

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

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpips_fast import _flops as flops
from lpips_fast._library import define
from lpips_fast.head.operators import head_flops
from lpips_fast.trunk.program import Pool, conv_side


def empty_nhwc(like: Tensor, n: int, channels: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """Memory for a channels-last tensor on the device of `like`."""
    shape = (n, channels, h, w)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def empty_signs(y: Tensor) -> Tensor:
    """Memory for the signs of y."""
    n, c, h, w = y.shape
    return torch.empty((n, h, w, -(-c // 8)), dtype=torch.uint8, device=y.device)


# ---- CPU


class Algorithm(IntEnum):
    FIRST = 0
    DIRECT = 1
    WINOGRAD = 2
    PHASES = 3
    COLUMNS = 4
    TRANSPOSED = 5


class CpuConv(NamedTuple):
    """A convolution in a program of the CPU's operators, which take its fields as integers, one after the other."""

    algorithm: int  # an Algorithm
    gradient: int  # the Algorithm of the gradient to the input
    cin: int
    cout: int
    kernel: int
    stride: int
    padding: int
    joined: int  # 1: the next convolution is joined to this one, and has the tap and the pool of both
    tap: int = 0  # 1: y is a tap
    pool_kernel: int = 0  # 0: no pool
    pool_stride: int = 0
    pool_ceil_mode: int = 0


def _with_sizes(program: Sequence[int], h: int, w: int) -> Iterator[tuple[CpuConv, int, int]]:
    """Each convolution of a program, with height and width of its y, for images of h x w."""
    size = len(CpuConv._fields)
    for at in range(0, len(program), size):
        conv = CpuConv(*program[at : at + size])
        y_h, y_w = (conv_side(side, conv.kernel, conv.stride, conv.padding) for side in (h, w))
        yield conv, y_h, y_w
        if conv.pool_kernel:
            pool = Pool(conv.pool_kernel, conv.pool_stride, bool(conv.pool_ceil_mode))
            h, w = pool.side(y_h), pool.side(y_w)
        elif not conv.joined:
            h, w = y_h, y_w


def _trunk_fwd_fake(images, shift, scale, filters, program, signs):
    n, taps, found_signs, joined = sum(image.shape[0] for image in images), [], [], 0
    for conv, h, w in _with_sizes(program, *images[0].shape[2:]):
        channels = joined + conv.cout
        joined = channels if conv.joined else 0
        if conv.tap:
            taps.append(empty_nhwc(images[0], n, channels, h, w, images[0].dtype))
        elif signs and not conv.joined:
            found_signs.append(images[0].new_empty((n, h, w, -(-channels // 8)), dtype=torch.uint8))
    return taps + found_signs


def _trunk_bwd_fake(taps, signs, d_taps, scale, filters, program, height, width):
    return taps[0].new_empty((taps[0].shape[0], CpuConv(*program[: len(CpuConv._fields)]).cin, height, width))


_CPU_OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
    "trunk_fwd_cpu": (
        "(Tensor[] images, Tensor? shift, Tensor? scale, Tensor[] filters, int[] program, bool signs) -> Tensor[]",
        _trunk_fwd_fake,
    ),
    "trunk_bwd_cpu": (
        "(Tensor[] taps, Tensor[] signs, Tensor[] d_taps, Tensor? scale, Tensor[] filters, int[] program, "
        "SymInt height, SymInt width) -> Tensor",
        _trunk_bwd_fake,
    ),
}


# ---- GPU


def _first_conv_relu_fake(images, shift, scale, weight, bias, stride, padding, tf32, keep_signs):
    y = _conv_fake(weight, sum(image.shape[0] for image in images), images[0].shape[2:], stride, padding)
    return y, empty_signs(y) if keep_signs else y.new_empty(0, dtype=torch.uint8)


def _conv_relu_cudnn_fake(x, weight, bias, stride, padding):
    return _conv_fake(weight, x.shape[0], x.shape[2:], stride, padding)


def _conv_fake(weight, n, size, stride, padding):
    h, w = (conv_side(side, weight.shape[2], stride, padding) for side in size)
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


def _program_flops(program: Sequence[int], n: int, h: int, w: int) -> int:
    """Those of the convolutions, whatever the algorithm (_flops.py)."""
    return sum(
        _conv_flops((conv.cout, conv.cin, conv.kernel, conv.kernel), (n, conv.cout, y_h, y_w))
        for conv, y_h, y_w in _with_sizes(program, h, w)
    )


flops.register(
    {
        "trunk_fwd_cpu": lambda images, shift, scale, filters, program, *_, **__: _program_flops(
            program, sum(image[0] for image in images), *images[0][2:]
        ),
        "trunk_bwd_cpu": lambda taps, signs, d_taps, scale, filters, program, h, w, **__: _program_flops(
            program, taps[0][0], h, w
        ),
        "first_conv_relu_triton": lambda images, shift, scale, weight, *_, out_shape, **__: _conv_flops(
            weight, out_shape[0]
        ),
        "conv_relu_cudnn": lambda x, weight, *_, out_shape, **__: _conv_flops(weight, out_shape),
        "head_tap_bwd_triton": lambda grad, f0, *_, **__: head_flops([f0]),
    }
)

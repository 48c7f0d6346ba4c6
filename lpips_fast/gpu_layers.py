"""A frozen trunk on a GPU, in channels-last: torch's convolutions, and ours for what lies between them.

Schemas and fake implementations of the operators that kernels/trunk.py implements, and how the layers use them.
Activations y, taps and gradients d are [N, C, H, W], channels-last, all of the trunk's type; signs are as in layers.py.

  * prepare: (x - shift) / scale of images of any types and layouts, one batch or two, the second following on the
    first; shift and scale may be missing; channels of zeros are added up to `channels`.
  * bias_relu: y becomes relu(y + bias), dense y; its signs and max_pool2d(y, 2) go into those given.
  * max_pool: the maxima of windows, which may overrun x at the end as in ceil_mode; a NaN is a maximum.
  * mask_by_signs: d becomes d + addend where the signs say so, else 0; dense d.
  * tap_bwd: (d_tap + what comes from behind) where tap is not <= 0, else 0. What comes from behind is dL/d(pool's
    output), or, with kernel 0, dL/dtap; or it is missing.
  * head_tap_bwd: the same with d_tap = the head's gradient for dL/dd = grad / divisor, grad [N, 1, H, W] of any
    strides; f1 may be one image, expanded. With `both`, of f0 and then of f1, and `behind`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import extension, flops
from .convolution import conv2d
from .ops import head_flops, library
from .plan import Affine, Conv, Pool, Setting


def empty_nhwc(like: Tensor, n: int, channels: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    shape = (n, channels, h, w)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _prepare_fake(images, shift, scale, channels, dtype):
    h, w = images[0].shape[2:]
    return empty_nhwc(images[0], sum(image.shape[0] for image in images), channels, h, w, dtype)


def _bias_relu_fake(y, bias, signs, pooled):
    return None


def _max_pool_fake(x, kernel, stride, out_h, out_w):
    return empty_nhwc(x, x.shape[0], x.shape[1], out_h, out_w, x.dtype)


def _mask_by_signs_fake(d, signs, addend):
    return None


def _tap_bwd_fake(tap, d_tap, behind, kernel, stride):
    return torch.empty_like(tap, memory_format=torch.channels_last)


def _head_tap_bwd_fake(grad, f0, f1, weight, eps, divisor, both, behind, kernel, stride):
    n, c, h, w = f0.shape
    return empty_nhwc(f0, 2 * n if both else n, c, h, w, f0.dtype)


_OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
    "prepare": (
        "(Tensor[] images, Tensor? shift, Tensor? scale, int channels, ScalarType dtype) -> Tensor",
        _prepare_fake,
    ),
    "bias_relu": ("(Tensor(a!) y, Tensor bias, Tensor(b!)? signs, Tensor(c!)? pooled) -> ()", _bias_relu_fake),
    "max_pool": ("(Tensor x, int kernel, int stride, SymInt out_h, SymInt out_w) -> Tensor", _max_pool_fake),
    "mask_by_signs": ("(Tensor(a!) d, Tensor signs, Tensor? addend) -> ()", _mask_by_signs_fake),
    "tap_bwd": ("(Tensor tap, Tensor d_tap, Tensor? behind, int kernel, int stride) -> Tensor", _tap_bwd_fake),
    "head_tap_bwd": (
        "(Tensor grad, Tensor f0, Tensor f1, Tensor weight, float eps, SymInt divisor, bool both, Tensor? behind, "
        "int kernel, int stride) -> Tensor",
        _head_tap_bwd_fake,
    ),
}

for _name, (_schema, _fake) in _OPERATORS.items():
    library.define(f"{_name}_triton{_schema}")
    torch.library.register_fake(f"lpips_fast::{_name}_triton", _fake, lib=library)

flops.register({"head_tap_bwd_triton": lambda grad, f0, *_, **__: head_flops([f0])})


def available() -> bool:
    return extension.backends()["triton"] is None


# As in extension.choose: a constant to torch.compile.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _padded_channels(dtype: torch.dtype) -> int:
    """To how many channels images are filled up: 16 bytes a pixel, the least that matrix units load at once."""
    return 16 // dtype.itemsize


def padded(weight: Tensor) -> Tensor:
    """The first convolution's weight for images that `prepare` has filled up."""
    return F.pad(weight, (0, 0, 0, 0, 0, _padded_channels(weight.dtype) - weight.shape[1]))


class HeadGradient(NamedTuple):
    """The head's gradient at a tap, not yet computed; arguments as in functional.lpips_head, one layer's.

    It is dL/d(the map of distances) = grad / divisor, taken back to f0 or, if `both`, to cat(f0, f1), the tap.
    """

    grad: Tensor
    divisor: int
    f0: Tensor
    f1: Tensor
    weight: Tensor
    eps: float
    both: bool


def prepare(setting: Setting, images: Sequence[Tensor], affine: Affine) -> Tensor:
    shift, scale = (None if t is None else t.flatten() for t in affine)
    channels = _padded_channels(setting.dtype)
    return torch.ops.lpips_fast.prepare_triton(images, shift, scale, channels, setting.dtype)


def conv_relu(
    setting: Setting, weight: Tensor, bias: Tensor, conv: Conv, x: Tensor, keep_signs: bool, pools: bool
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """As layers.conv_relu; `pools` asks for the pool of 2 x 2 after it, too."""
    y = _dense(conv2d(x, weight, None, conv.stride, conv.padding, setting.tf32))
    n, c, h, w = y.shape
    signs = torch.empty((n, h, w, -(-c // 8)), dtype=torch.uint8, device=y.device) if keep_signs else None
    pooled = empty_nhwc(y, n, c, h // 2, w // 2, y.dtype) if pools else None
    torch.ops.lpips_fast.bias_relu_triton(y, bias, signs, pooled)
    return y, [] if signs is None else [signs], pooled


def relu_backward(d: Tensor, addend: Tensor | HeadGradient | None, passes: Tensor) -> Tensor:
    """(d + addend) back through a ReLU, given its output, a tap, or its signs."""
    if passes.dtype != torch.uint8:
        assert addend is not None
        return tap_backward(passes, addend, d, None)
    assert not isinstance(addend, HeadGradient)
    d = _dense(d)
    torch.ops.lpips_fast.mask_by_signs_triton(d, passes, addend)
    return d


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def max_pool(x: Tensor, pool: Pool) -> Tensor:
    out_h, out_w = (_pooled_side(side, pool) for side in x.shape[2:])
    return torch.ops.lpips_fast.max_pool_triton(x, pool.kernel, pool.stride, out_h, out_w)


def _pooled_side(side: int, pool: Pool) -> int:
    extra = pool.stride - 1 if pool.ceil_mode else 0
    windows = (side - pool.kernel + extra) // pool.stride + 1
    # Like torch: a window that begins outside does not count.
    return windows - 1 if pool.ceil_mode and (windows - 1) * pool.stride >= side else windows


def tap_backward(tap: Tensor, d_tap: Tensor | HeadGradient, behind: Tensor | None, pool: Pool | None) -> Tensor:
    """As layers.tap_backward; without a pool, `behind` is what comes to the tap itself."""
    window = (0, 1) if pool is None else (pool.kernel, pool.stride)
    if isinstance(d_tap, HeadGradient):
        grad, divisor, f0, f1, weight, eps, both = d_tap
        return torch.ops.lpips_fast.head_tap_bwd_triton(grad, f0, f1, weight, eps, divisor, both, behind, *window)
    return torch.ops.lpips_fast.tap_bwd_triton(tap, d_tap, behind, *window)

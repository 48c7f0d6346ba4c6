"""A frozen trunk on a GPU, in channels-last: cuDNN's convolutions, and ours for the first and what lies between them.

cuDNN's convolution adds the bias and applies the ReLU on its way. But its ReLU makes 0 of NaN for some shapes and types
(float32, filters of 1 x 1), and a NaN in an image must not be lost: so as far as the first tap ours is used. The two
convolutions at the end of a Fire, of 1 x 1 and 3 x 3, are one of 3 x 3, whose filters are 0 around those of 1 x 1:
SqueezeNet's time goes by the number of its kernels, and nothing has to be put together. The gradient of a convolution
of stride 1 is a convolution with turned filters, for which cuDNN's kernels are as fast and torch copies nothing.

Schemas and fake implementations of the operators that kernels/trunk.py implements, and how the layers use them.
Activations y, taps and gradients d are [N, C, H, W], channels-last, all of the trunk's type; signs are as in layers.py,
C being a multiple of 8.

  * first_conv_relu: relu(conv((x - shift) / scale) + bias) of images of any types and layouts, one batch or two, the
    second following on the first; shift and scale may be missing; tf32 as in convolution.conv2d. And its signs, empty
    unless they are to be kept.
  * conv_relu_cudnn: relu(conv(x) + bias).
  * bias_relu: y becomes relu(y + bias), dense y; its signs and max_pool2d(y, 2) go into those given.
  * pack_signs: the signs of a ReLU's output.
  * max_pool: the maxima of windows, which may overrun x at the end as in ceil_mode; a NaN is a maximum.
  * mask_by_signs: d becomes d + addend where the signs say so, else 0; dense d.
  * tap_bwd: (d_tap + what comes from behind) where tap is not <= 0, else 0. What comes from behind is dL/d(pool's
    output), or, with kernel 0, dL/dtap; or it is missing.
  * head_tap_bwd: the same with d_tap = the head's gradient for dL/dd = grad / divisor, grad [N, 1, H, W] of any
    strides; f1 may be one image, expanded. With `both`, of f0 and then of f1, and `behind`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast import _flops as flops
from lpips_fast._library import define, library
from lpips_fast.head import backends
from lpips_fast.head.operators import head_flops
from lpips_fast.trunk.convolution import allows_tf32, conv2d, conv2d_input
from lpips_fast.trunk.program import Affine, Conv, Fire, Plan, Pool, Setting


def empty_nhwc(like: Tensor, n: int, channels: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    shape = (n, channels, h, w)
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def _first_conv_relu_fake(images, shift, scale, weight, bias, stride, padding, tf32, keep_signs):
    y = _conv_fake(weight, sum(image.shape[0] for image in images), images[0].shape[2:], stride, padding)
    return y, empty_signs(y) if keep_signs else y.new_empty(0, dtype=torch.uint8)


def _conv_relu_cudnn_fake(x, weight, bias, stride, padding):
    return _conv_fake(weight, x.shape[0], x.shape[2:], stride, padding)


def _conv_fake(weight, n, size, stride, padding):
    h, w = _convolved(size, weight, stride, padding)
    return empty_nhwc(weight, n, weight.shape[0], h, w, weight.dtype)


def _convolved(size: Sequence[int], weight: Tensor, stride: int, padding: int) -> list[int]:
    """The height and width of a convolution's output."""
    return [(side + 2 * padding - k) // stride + 1 for side, k in zip(size, weight.shape[2:], strict=True)]


def _bias_relu_fake(y, bias, signs, pooled):
    return None


def empty_signs(y: Tensor) -> Tensor:
    """Memory for the signs of y."""
    n, c, h, w = y.shape
    return torch.empty((n, h, w, c // 8), dtype=torch.uint8, device=y.device)


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
    "mask_by_signs_triton": ("(Tensor(a!) d, Tensor signs, Tensor? addend) -> ()", _mask_by_signs_fake),
    "tap_bwd_triton": ("(Tensor tap, Tensor d_tap, Tensor? behind, int kernel, int stride) -> Tensor", _tap_bwd_fake),
    "head_tap_bwd_triton": (
        "(Tensor grad, Tensor f0, Tensor f1, Tensor weight, float eps, SymInt divisor, bool both, Tensor? behind, "
        "int kernel, int stride) -> Tensor",
        _head_tap_bwd_fake,
    ),
}

for _name, (_schema, _fake) in _OPERATORS.items():
    define(_name, _schema, _fake)


def _conv_relu_cudnn(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    return _dense(torch.cudnn_convolution_relu(x, weight, bias, (stride,) * 2, (padding,) * 2, (1, 1), 1))


library.impl("conv_relu_cudnn", _conv_relu_cudnn, "CUDA")


def _conv_flops(weight: Sequence[int], y: Sequence[int]) -> int:
    return 2 * y[0] * y[2] * y[3] * prod(weight)


flops.register(
    {
        "first_conv_relu_triton": lambda images, shift, scale, weight, *_, out_shape, **__: _conv_flops(
            weight, out_shape[0]
        ),
        "conv_relu_cudnn": lambda x, weight, *_, out_shape, **__: _conv_flops(weight, out_shape),
        "head_tap_bwd_triton": lambda grad, f0, *_, **__: head_flops([f0]),
    }
)


def available(device: torch.device | None = None) -> bool:
    """Whether Triton's kernels are there and, on NVIDIA's, the matrix units that they are made for, from Ampere on."""
    if backends.backends()["triton"] is not None:
        return False
    if device is None or torch.version.hip is not None or not torch.cuda.is_available():  # tensors without values
        return True
    return backends.is_from_ampere_on(device)


def cudnn_applies_relu(dtype: torch.dtype, tf32: bool | None) -> bool:
    """Whether torch has cuDNN's convolution with bias and ReLU, as it is asked for.

    It goes by torch's flag for TF32, and by none that asks for deterministic algorithms.
    """
    flags = torch.backends.cudnn
    deterministic = flags.deterministic or torch.are_deterministic_algorithms_enabled()
    follows_flag = dtype != torch.float32 or tf32 is None or tf32 == allows_tf32(None)
    return torch.version.cuda is not None and flags.enabled and follows_flag and not deterministic


# As in backends.choose: constants to torch.compile.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]
cudnn_applies_relu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def fused(setting: Setting, plan: Plan) -> Setting:
    """A setting with what is here, and the plan of `without_fires`."""
    cudnn_relu = cudnn_applies_relu(setting.dtype, setting.tf32)
    return setting._replace(plan=plan, triton=True, cudnn_relu=cudnn_relu, plain_plan=setting.plan)


def without_fires(plan: Plan) -> Plan:
    """A trunk's plan with two convolutions for each Fire, the second by the tensors of `merged_filters`.

    These follow on the trunk's own.
    """
    at = 2 * sum(3 if isinstance(step, Fire) else isinstance(step, Conv) for step in plan)
    found: list[Conv | Pool | Fire] = []
    for step in plan:
        if isinstance(step, Fire):
            found += [step.squeeze, Conv(at, 1, 1, step.tap)]
            at += 2
        else:
            found.append(step)
    return tuple(found)


def merged_filters(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A weight and a bias for each Fire of a plan, which do its expand1x1 and expand3x3 in one."""
    merged = []
    for step in plan:
        if isinstance(step, Fire):
            (weight1, bias1), (weight3, bias3) = (tensors[c.at : c.at + 2] for c in (step.expand1x1, step.expand3x3))
            merged += [torch.cat((F.pad(weight1, (1, 1, 1, 1)), weight3)), torch.cat((bias1, bias3))]
    return merged


def gradient_filters(tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each weight of a trunk's tensors, weight, bias, weight, ..., that by which `conv_backward` goes.

    The first's has its input filled up with channels of zeros to 16 bytes a pixel, the least that matrix units load at
    once; but for filters of 11 x 11 in 16-bit types cuDNN is faster with three channels. The others are turned.
    """
    first, *others = tensors[::2]
    if not (first.shape[2] == 11 and first.dtype.itemsize == 2):
        first = F.pad(first, (0, 0, 0, 0, 0, 16 // first.dtype.itemsize - first.shape[1]))
    return [first, *(weight.flip(2, 3).transpose(0, 1) for weight in others)]


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


def first_conv_relu(
    setting: Setting,
    weight: Tensor,
    bias: Tensor,
    conv: Conv,
    images: Sequence[Tensor],
    affine: Affine,
    keep_signs: bool,
) -> tuple[Tensor, list[Tensor], None]:
    """As layers.first_conv_relu."""
    shift, scale = (None if t is None else t.flatten() for t in affine)
    y, signs = torch.ops.lpips_fast.first_conv_relu_triton(
        images, shift, scale, weight, bias, conv.stride, conv.padding, setting.tf32, keep_signs
    )
    return y, [signs] if keep_signs else [], None


def conv_relu(
    setting: Setting, weight: Tensor, bias: Tensor, conv: Conv, x: Tensor, keep_signs: bool, pools: bool, exact: bool
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """As layers.conv_relu; `pools` asks for the pool of 2 x 2 after it, too, if it costs nothing."""
    outputs = x.numel() // weight.shape[1] * weight.shape[0]
    if setting.cudnn_relu and not exact and outputs < 2**31:  # beyond, torch's convolution knows what to do
        # An operator is for torch.compile and for those who watch; to call it takes the host longer.
        watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or x.device.type != "cuda"
        function = torch.ops.lpips_fast.conv_relu_cudnn if watched else _conv_relu_cudnn
        y = function(x, weight, bias, conv.stride, conv.padding)
        return y, [torch.ops.lpips_fast.pack_signs_triton(y)] if keep_signs else [], None
    y = _dense(conv2d(x, weight, None, conv.stride, conv.padding, setting.tf32))
    n, c, h, w = y.shape
    signs = empty_signs(y) if keep_signs else None
    pooled = empty_nhwc(y, n, c, h // 2, w // 2, y.dtype) if pools else None
    torch.ops.lpips_fast.bias_relu_triton(y, bias, signs, pooled)
    return y, [] if signs is None else [signs], pooled


def conv_backward(
    setting: Setting,
    tensors: Sequence[Tensor],
    conv: Conv,
    grad: Tensor,
    size: Sequence[int],
    addend: Tensor | HeadGradient | None,
    passes: Tensor | None,
) -> Tensor:
    """As layers.conv_backward, for x of that size; after the trunk's tensors come its `gradient_filters`."""
    filters = tensors[len(tensors) // 3 * 2 + conv.at // 2]
    if conv.at > 0:
        d_x = conv2d(grad, filters, None, 1, filters.shape[2] - 1 - conv.padding, setting.tf32)
    else:
        n, c, h, w = size
        d_x = conv2d_input((n, filters.shape[1], h, w), filters, grad, conv.stride, conv.padding, setting.tf32)[:, :c]
    return d_x if passes is None else relu_backward(d_x, addend, passes)


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

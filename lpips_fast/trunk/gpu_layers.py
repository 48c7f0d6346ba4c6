"""A frozen trunk's layers on a GPU, channels-last: cuDNN's convolutions, and Triton's kernels around them.

cuDNN's convolution adds the bias and applies the ReLU on its way. But its ReLU makes 0 of NaN for some shapes and types
(float32, filters of 1 x 1), and a NaN in an image must not be lost. So Triton's kernels apply the ReLUs up to the first
tap.

The two convolutions of an `Expand`, of 1 x 1 and 3 x 3, are merged into one of 3 x 3: the filters of 1 x 1 get zeros
around them. SqueezeNet's time depends on the number of its kernels, and the merged output needs no concatenation.

The gradient of a convolution of stride 1 is computed as a convolution with turned filters: cuDNN is as fast at it, and
torch copies nothing.

`execute.Layers` documents the functions of the two files of layers. Here `tensors` are the trunk's own, followed by
`merged_filters` and, for a backward, by `gradient_filters` of all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast._library import library
from lpips_fast.head import backends
from lpips_fast.head.operators import HeadInput
from lpips_fast.trunk.convolution import allows_tf32, conv2d, conv2d_input
from lpips_fast.trunk.operators import empty_nhwc, empty_signs
from lpips_fast.trunk.program import POOL_2X2, Affine, Conv, Expand, Plan, Pool, Setting


def available(device: torch.device | None = None) -> bool:
    """Whether Triton's kernels can run on the device, by default on the current GPU.

    On NVIDIA's GPUs the first layer's kernel needs matrix units that Triton can use, those of Ampere or newer. Without
    them it multiplies single numbers, and spills registers.
    """
    return backends.why_not("triton", device or torch.device("cuda"), backends.AMPERE) is None


def cudnn_applies_relu(dtype: torch.dtype, tf32: bool | None) -> bool:
    """Whether cuDNN's convolution with bias and ReLU, as torch offers it, computes what is asked for.

    It follows torch's flag for TF32 and ignores torch's flags for deterministic algorithms.
    """
    flags = torch.backends.cudnn
    deterministic = flags.deterministic or torch.are_deterministic_algorithms_enabled()
    follows_flag = dtype != torch.float32 or tf32 is None or tf32 == allows_tf32(None)
    return torch.version.cuda is not None and flags.enabled and follows_flag and not deterministic


# torch.compile takes the answers as constants, as in backends.choose.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]
cudnn_applies_relu._dynamo_marked_constant = True  # type: ignore[attr-defined]


def merged_filters(plan: Plan, tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each `Expand` of a plan, the weight and the bias of one convolution that replaces its two."""
    merged = []
    for step in plan:
        if isinstance(step, Expand):
            (weight1, bias1), (weight3, bias3) = (tensors[c.at : c.at + 2] for c in (step.conv1x1, step.conv3x3))
            merged += [torch.cat((F.pad(weight1, (1, 1, 1, 1)), weight3)), torch.cat((bias1, bias3))]
    return merged


def gradient_filters(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The filters that `conv_backward` uses, one tensor for each weight of weight, bias, weight, bias, ...

    The first weight gets input channels of zeros, up to 16 bytes a pixel, the least that matrix units load at once. For
    filters of 11 x 11 in 16-bit types cuDNN is faster with three channels. The other weights are turned.
    """
    first, *others = tensors[::2]
    if not (first.shape[2] == 11 and first.dtype.itemsize == 2):
        first = F.pad(first, (0, 0, 0, 0, 0, 16 // first.dtype.itemsize - first.shape[1]))
    return [first, *(weight.flip(2, 3).transpose(0, 1) for weight in others)]


def steps(plan: Plan) -> Plan:
    return tuple(
        Conv(step.merged_at, 3, 1, 1, step.tap, step.pool) if isinstance(step, Expand) else step for step in plan
    )


def first_conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, images: Sequence[Tensor], affine: Affine, keep_signs: bool
) -> tuple[Tensor, Tensor | None, None]:
    shift, scale = (None if t is None else t.flatten() for t in affine)
    weight, bias = tensors[conv.at], tensors[conv.at + 1]
    y, signs = torch.ops.lpips_fast.first_conv_relu_triton(
        images, shift, scale, weight, bias, conv.stride, conv.padding, setting.tf32, keep_signs
    )
    return y, signs if keep_signs else None, None


def conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, x: Tensor, keep_signs: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    weight, bias = tensors[conv.at], tensors[conv.at + 1]
    outputs = x.numel() // weight.shape[1] * weight.shape[0]
    if setting.cudnn_relu and not conv.keeps_nan and outputs < 2**31:  # torch's convolution handles more
        # torch.compile and dispatch modes must see an operator; calling the function takes the host less time.
        watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0 or x.device.type != "cuda"
        function = torch.ops.lpips_fast.conv_relu_cudnn if watched else _conv_relu_cudnn
        y = function(x, weight, bias, conv.stride, conv.padding)
        return y, torch.ops.lpips_fast.pack_signs_triton(y) if keep_signs else None, None
    y = _dense(conv2d(x, weight, None, conv.stride, conv.padding, setting.tf32))
    n, c, h, w = y.shape
    signs = empty_signs(y) if keep_signs else None
    pooled = empty_nhwc(y, n, c, h // 2, w // 2, y.dtype) if conv.pool == POOL_2X2 else None
    torch.ops.lpips_fast.bias_relu_triton(y, bias, signs, pooled)
    return y, signs, pooled


def _conv_relu_cudnn(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    return _dense(torch.cudnn_convolution_relu(x, weight, bias, (stride,) * 2, (padding,) * 2, (1, 1), 1))


library.impl("conv_relu_cudnn", _conv_relu_cudnn, "CUDA")


def max_pool(x: Tensor, pool: Pool) -> Tensor:
    out_h, out_w = map(pool.side, x.shape[2:])
    return torch.ops.lpips_fast.max_pool_triton(x, pool.kernel, pool.stride, out_h, out_w)


class HeadGradient(NamedTuple):
    """The head's gradient at a tap, for `tap_backward` to compute; f0, f1 and weight are one layer's of the head.

    The gradient to the layer's map of distances is grad / divisor. `tap_backward` takes it back to f0 or, with `both`,
    to the tap cat(f0, f1).
    """

    grad: Tensor
    divisor: int
    f0: Tensor
    f1: Tensor
    weight: Tensor
    eps: float
    both: bool


def head_gradients(
    backend: str, inputs: HeadInput, grads: Sequence[Tensor], *, mean: bool, need1: bool
) -> list[HeadGradient]:
    feats0, feats1, weights, norm = inputs
    if mean:
        maps = [grads[0][:, i, None, None, None].expand(-1, 1, *f.shape[2:]) for i, f in enumerate(feats0)]
        divisors = [f.shape[2] * f.shape[3] for f in feats0]
    else:
        maps, divisors = list(grads), [1] * len(feats0)
    layers = zip(maps, divisors, feats0, feats1, weights, strict=True)
    return [HeadGradient(*layer, norm.eps, need1) for layer in layers]


def conv_backward(
    setting: Setting,
    tensors: Sequence[Tensor],
    conv: Conv,
    grad: Tensor,
    *,
    size: tuple[int, int] | None = None,
    addend: Tensor | HeadGradient | None = None,
    passes: Tensor | None = None,
) -> Tensor:
    filters = tensors[len(tensors) // 3 * 2 + conv.at // 2]
    if conv.at > 0:
        d_x = conv2d(grad, filters, None, 1, filters.shape[2] - 1 - conv.padding, setting.tf32)
    else:
        assert size is not None
        channels = tensors[conv.at].shape[1]
        x_size = grad.shape[0], filters.shape[1], *size
        d_x = conv2d_input(x_size, filters, grad, conv.stride, conv.padding, setting.tf32)[:, :channels]
    if passes is None:
        return d_x
    if passes.dtype != torch.uint8:  # a tap
        assert addend is not None
        return tap_backward(passes, addend, d_x)
    assert not isinstance(addend, HeadGradient)
    d_x = _dense(d_x)
    torch.ops.lpips_fast.mask_by_signs_triton(d_x, passes, addend)
    return d_x


def tap_backward(
    tap: Tensor, d_tap: Tensor | HeadGradient, grad: Tensor | None = None, pool: Pool | None = None
) -> Tensor:
    window = (0, 1) if pool is None else (pool.kernel, pool.stride)
    if isinstance(d_tap, HeadGradient):
        d_map, divisor, f0, f1, weight, eps, both = d_tap
        return torch.ops.lpips_fast.head_tap_bwd_triton(d_map, f0, f1, weight, eps, divisor, both, grad, *window)
    return torch.ops.lpips_fast.tap_bwd_triton(tap, d_tap, grad, *window)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)

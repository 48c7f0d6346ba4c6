"""The layers of a frozen trunk, forwards and backwards: convolution with its ReLU, and pooling.

A convolution is torch's or, on the CPU in float32, for 3x3 filters, Winograd's where it is faster (cpu_layers.py). On
a GPU what lies between convolutions is fused (gpu_layers.py); otherwise it is torch's. A ReLU's backward needs only
where its output was positive, one bit a value:

    signs of [N, C, H, W] are uint8 [N, H, W, ceil(C / 8)]; bit c % 8 of byte c // 8 is channel c's.

A ReLU passes the gradient where its output is not <= 0: where it is NaN, too, as in torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast._torch_state import to_dtype
from lpips_fast.trunk import cpu_layers, gpu_layers
from lpips_fast.trunk.convolution import conv2d, conv2d_input
from lpips_fast.trunk.gpu_layers import HeadGradient
from lpips_fast.trunk.program import Affine, Conv, Fire, Pool, Setting


def first_conv_relu(
    setting: Setting,
    tensors: Sequence[Tensor],
    conv: Conv,
    images: Sequence[Tensor],
    affine: Affine,
    keep_signs: bool,
    following: Conv | Pool | Fire | None,
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """As `conv_relu`, of one or two batches of images as one, the second after the first.

    Images of two types are promoted to the wider one, and scaled in it or, if that is wider, in that of `affine`.
    """
    if setting.triton:
        weight, bias = tensors[conv.at], tensors[conv.at + 1]
        return gpu_layers.first_conv_relu(setting, weight, bias, conv, images, affine, keep_signs)
    x = images[0] if len(images) == 1 else torch.cat(list(images))
    return conv_relu(setting, tensors, conv, x, keep_signs, affine, following)


def conv_relu(
    setting: Setting,
    tensors: Sequence[Tensor],
    conv: Conv,
    x: Tensor,
    keep_signs: bool,
    affine: Affine = (None, None),
    following: Conv | Pool | Fire | None = None,
    exact: bool = False,
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """y = relu(conv((x - shift) / scale)), [its signs] if asked for, and the pool of y, where that comes with it.

    Args:
        affine: shift and scale, for a trunk's first layer.
        following: the next step.
        exact: whether NaN must come out as NaN, which some of cuDNN's kernels miss.
    """
    weight, bias = tensors[conv.at], tensors[conv.at + 1]
    filters = cpu_layers.filters_for(setting, conv, weight, x)
    pools = following == Pool(2, 2, False)
    if filters is not None:
        return cpu_layers.conv_relu(filters, conv, bias, x, keep_signs, affine, pools)
    if setting.triton:
        return gpu_layers.conv_relu(setting, weight, bias, conv, x, keep_signs, pools, exact)
    shift, scale = affine
    if shift is not None and scale is not None:
        x = (x - shift) / scale
    if setting.filters is not None:
        weight = setting.filters.direct(conv)
    x = to_dtype(x, setting.dtype).contiguous(memory_format=setting.layout)
    y = conv2d(x, weight, bias, conv.stride, conv.padding, setting.tf32).relu_()
    return y, [pack_signs(setting, y)] if keep_signs else [], None


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
    """dL/dx of a convolution from dL/dy, plus `addend`; and on through the ReLU that x came from.

    `passes` is that ReLU's output, or its signs (None: there is no ReLU); `size` the height and width of x where the
    stride is not 1.
    """
    weight = tensors[conv.at]
    filters = cpu_layers.filters_for(setting, conv, weight, grad, backward=True)
    if filters is not None:
        assert not isinstance(addend, HeadGradient)
        return cpu_layers.conv_backward(filters, conv, weight.shape[1], grad, addend, passes)
    if size is None:
        height, width = (side + weight.shape[2] - 1 - 2 * conv.padding for side in grad.shape[2:])
    else:
        height, width = size
    x_size = (grad.shape[0], weight.shape[1], height, width)
    if setting.triton:
        return gpu_layers.conv_backward(setting, tensors, conv, grad, x_size, addend, passes)
    assert not isinstance(addend, HeadGradient)
    if setting.filters is not None:
        weight = setting.filters.direct(conv)
    d_x = conv2d_input(x_size, weight, grad, conv.stride, conv.padding, setting.tf32)
    if passes is not None and passes.dtype == torch.uint8:
        return mask_by_signs(setting, d_x, passes, addend)
    if addend is not None:
        d_x = d_x + addend
    return d_x if passes is None else _relu_backward(d_x, passes)


def max_pool(setting: Setting, x: Tensor, pool: Pool) -> Tensor:
    if setting.triton:
        return gpu_layers.max_pool(x, pool)
    return F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)


def tap_backward(
    setting: Setting, tap: Tensor, d_tap: Tensor | HeadGradient, grad: Tensor | None = None, pool: Pool | None = None
) -> Tensor:
    """dL/d(what goes into the ReLU of a tap), from the head's part, d_tap, and that of the pool after it, if any."""
    if setting.triton:
        return gpu_layers.tap_backward(tap, d_tap, grad, pool)
    assert isinstance(d_tap, Tensor)
    if cpu_layers.unpools(setting, pool):
        return cpu_layers.tap_backward(tap, d_tap, grad)
    if pool is None or grad is None:
        return _relu_backward(d_tap, tap)
    window = ((pool.kernel,) * 2, (pool.stride,) * 2, (0, 0), (1, 1), pool.ceil_mode)
    _, winners = torch.ops.aten.max_pool2d_with_indices(tap, *window)
    unpooled = torch.ops.aten.max_pool2d_with_indices_backward(grad, tap, *window, winners)
    return _relu_backward(unpooled + d_tap, tap)


def _relu_backward(grad: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, y, 0)


def pack_signs(setting: Setting, y: Tensor) -> Tensor:
    """The signs of y [N, C, H, W]."""
    if setting.filters is not None:
        return torch.ops.lpips_fast.pack_signs_cpu(y)
    passes = (~(y.movedim(1, -1) <= 0)).to(torch.uint8)
    passes = F.pad(passes, (0, -passes.shape[-1] % 8)).unflatten(-1, (-1, 8))
    signs = passes[..., 0].clone()
    for i in range(1, 8):
        signs |= passes[..., i] << i
    return signs


def mask_by_signs(setting: Setting, grad: Tensor, signs: Tensor, addend: Tensor | None) -> Tensor:
    """grad [N, C, H, W], plus `addend`, where its bit is set, else 0."""
    if setting.filters is not None:
        return torch.ops.lpips_fast.mask_by_signs_cpu(grad, signs, addend)
    if addend is not None:
        grad = grad + addend
    passes = torch.stack([(signs >> i) & 1 for i in range(8)], dim=-1).flatten(-2)[..., : grad.shape[1]]
    return torch.where(passes.bool().movedim(-1, 1), grad, 0)

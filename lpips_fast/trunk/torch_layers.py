"""A trunk's layers by torch's operators, which autograd can differentiate and torch.func can transform.

`execute.Layers` documents the functions of the two files of layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast._torch_state import to_dtype
from lpips_fast.head.autograd import head_backward
from lpips_fast.head.operators import HeadInput
from lpips_fast.trunk.convolution import conv2d, conv2d_input
from lpips_fast.trunk.program import Affine, Conv, Plan, Pool, Setting


def steps(plan: Plan) -> Plan:
    return plan


def first_conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, images: Sequence[Tensor], affine: Affine, keep_signs: bool
) -> tuple[Tensor, Tensor | None, None]:
    return conv_relu(setting, tensors, conv, scaled(images, affine), keep_signs)


def scaled(images: Sequence[Tensor], affine: Affine) -> Tensor:
    """(x - shift) / scale of all images x, in one batch, in the widest type of the images and of shift and scale."""
    x = images[0] if len(images) == 1 else torch.cat(list(images))
    shift, scale = affine
    return x if shift is None or scale is None else (x - shift) / scale


def conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, x: Tensor, keep_signs: bool
) -> tuple[Tensor, Tensor | None, None]:
    x = to_dtype(x, setting.dtype).contiguous(memory_format=setting.layout)
    y = conv2d(x, tensors[conv.at], tensors[conv.at + 1], conv.stride, conv.padding, setting.tf32).relu_()
    return y, pack_signs(y) if keep_signs else None, None


def max_pool(x: Tensor, pool: Pool) -> Tensor:
    return F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)


def conv_backward(
    setting: Setting,
    tensors: Sequence[Tensor],
    conv: Conv,
    grad: Tensor,
    *,
    size: tuple[int, int] | None = None,
    addend: Tensor | None = None,
    passes: Tensor | None = None,
) -> Tensor:
    weight = tensors[conv.at]
    if size is None:  # with stride 1
        height, width = (side + conv.kernel - 1 - 2 * conv.padding for side in grad.shape[2:])
    else:
        height, width = size
    x_size = grad.shape[0], weight.shape[1], height, width
    d_x = conv2d_input(x_size, weight, grad, conv.stride, conv.padding, setting.tf32)
    if passes is not None and passes.dtype == torch.uint8:
        return mask_by_signs(d_x, passes, addend)
    return relu_backward(d_x, addend, passes)


def relu_backward(grad: Tensor, addend: Tensor | None, y: Tensor | None) -> Tensor:
    """grad + addend, but 0 where the ReLU's output y is <= 0 (not where y is NaN); without y there is no ReLU."""
    if addend is not None:
        grad = grad + addend
    return grad if y is None else torch.ops.aten.threshold_backward(grad, y, 0)


def tap_backward(tap: Tensor, d_tap: Tensor, grad: Tensor | None = None, pool: Pool | None = None) -> Tensor:
    if pool is None or grad is None:
        return relu_backward(d_tap, None, tap)
    window = ((pool.kernel,) * 2, (pool.stride,) * 2, (0, 0), (1, 1), pool.ceil_mode)
    _, winners = torch.ops.aten.max_pool2d_with_indices(tap, *window)
    unpooled = torch.ops.aten.max_pool2d_with_indices_backward(grad, tap, *window, winners)
    return relu_backward(unpooled, d_tap, tap)


def head_gradients(
    backend: str, inputs: HeadInput, grads: Sequence[Tensor], *, mean: bool, need1: bool
) -> list[Tensor]:
    found = head_backward(backend, inputs, grads, mean=mean, need0=True, need1=need1, need_weights=False)
    taps = len(inputs.feats0)
    return [torch.cat(pair) for pair in zip(found[:taps], found[taps:], strict=True)] if need1 else found


def pack_signs(y: Tensor) -> Tensor:
    """The signs of y; operators.py says how they are laid out."""
    passes = (~(y.movedim(1, -1) <= 0)).to(torch.uint8)
    passes = F.pad(passes, (0, -passes.shape[-1] % 8)).unflatten(-1, (-1, 8))
    signs = passes[..., 0].clone()
    for i in range(1, 8):
        signs |= passes[..., i] << i
    return signs


def mask_by_signs(grad: Tensor, signs: Tensor, addend: Tensor | None) -> Tensor:
    """grad + addend where the signs are 1, else 0."""
    if addend is not None:
        grad = grad + addend
    passes = torch.stack([(signs >> i) & 1 for i in range(8)], dim=-1).flatten(-2)[..., : grad.shape[1]]
    return torch.where(passes.bool().movedim(-1, 1), grad, 0)

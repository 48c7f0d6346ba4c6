"""A frozen trunk's layers on the CPU in float32, channels-last: the compiled library's operators.

The library computes 3x3 convolutions by Winograd's algorithm where that is faster, with bias, ReLU, signs and the 2x2
pool in the same pass. torch computes the other convolutions; the library keeps and applies the signs of their ReLUs.

`execute.Layers` documents the functions of the three files of layers; here `tensors` are `CpuTensors`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lpips_fast._torch_state import to_dtype
from lpips_fast.trunk import torch_layers
from lpips_fast.trunk.cpu_filters import PANEL, CpuTensors, winograd_pays
from lpips_fast.trunk.program import POOL_2X2, Affine, Conv, Pool, Setting

CHOICES = ("auto", "winograd", "direct")  # of `LPIPS(cpu_conv=...)`

steps = torch_layers.steps
max_pool = torch_layers.max_pool
head_gradients = torch_layers.head_gradients


def available() -> bool:
    """Whether the compiled library is there and has these operators for this processor."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("lpips_fast::conv3x3_fwd_cpu", "CPU")


def _by_winograd(setting: Setting, conv: Conv, x: Tensor) -> bool:
    """Whether Winograd's algorithm convolves x; for a gradient x is dL/dy."""
    if (conv.kernel, conv.stride, conv.padding) != (3, 1, 1):
        return False
    return setting.always_winograd or winograd_pays(*x.shape)


def first_conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, images: Sequence[Tensor], affine: Affine, keep_signs: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    assert isinstance(tensors, CpuTensors)
    if (conv.kernel, conv.stride, conv.padding) != (3, 1, 1):
        x = to_dtype(torch_layers.scaled(images, affine), setting.dtype)
        return conv_relu(setting, tensors, conv, x, keep_signs)
    x, bias = images[0] if len(images) == 1 else torch.cat(list(images)), tensors[conv.at + 1]
    shift, scale = affine
    if shift is None or scale is None:
        shift, scale = bias.new_zeros(x.shape[1]), bias.new_ones(x.shape[1])
    y, *signs = torch.ops.lpips_fast.conv3x3_first_cpu(
        x.to(bias.dtype),
        shift.flatten(),
        scale.flatten(),
        tensors.first(conv),
        bias.view(-1, PANEL),
        bias.shape[0],
        keep_signs,
    )
    return y, signs[0] if keep_signs else None, None


def conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, x: Tensor, keep_signs: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    assert isinstance(tensors, CpuTensors)
    bias = tensors[conv.at + 1]
    if not _by_winograd(setting, conv, x):
        x = x.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, tensors.direct(conv), bias, conv.stride, conv.padding).relu_()
        return y, torch.ops.lpips_fast.pack_signs_cpu(y) if keep_signs else None, None
    pools = conv.pool == POOL_2X2
    y, *others = torch.ops.lpips_fast.conv3x3_fwd_cpu(x, tensors.winograd(conv), bias, pools, keep_signs)
    return y, others[-1] if keep_signs else None, others[0] if pools else None


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
    assert isinstance(tensors, CpuTensors)
    if _by_winograd(setting, conv, grad):
        channels = tensors[conv.at].shape[1]
        return torch.ops.lpips_fast.conv3x3_bwd_cpu(grad, tensors.turned(conv), channels, addend, passes)
    d_x = torch_layers.conv_input_gradient(setting, conv, grad, tensors.direct(conv), size)
    if passes is not None and passes.dtype == torch.uint8:
        return torch.ops.lpips_fast.mask_by_signs_cpu(d_x, passes, addend)
    return torch_layers.relu_backward(d_x, addend, passes)


def tap_backward(tap: Tensor, d_tap: Tensor, grad: Tensor | None = None, pool: Pool | None = None) -> Tensor:
    if pool in (None, POOL_2X2):
        return torch.ops.lpips_fast.relu_pool_bwd_cpu(tap, d_tap, grad)
    return torch_layers.tap_backward(tap, d_tap, grad, pool)

"""A frozen trunk's 3x3 convolutions on the CPU by Winograd's algorithm, and what the same compiled library fuses.

A trunk's tensors then go on, after weights and biases, with one tensor a convolution of transformed filters, and
another one of those for the gradient; None for a convolution that is not done so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import winograd
from .plan import Affine, Conv, Pool, Setting

CHOICES = ("auto", "winograd", "direct")


def transformed(convolutions: Sequence[nn.Conv2d], turned: bool) -> list[Tensor | None]:
    """The filters of a trunk's convolutions, in their order, for the forward or, turned, for the gradient."""
    out: list[Tensor | None] = []
    for i, conv in enumerate(convolutions):
        if conv.bias is None or not _fits(conv.weight, conv.stride[0], int(conv.padding[0])):
            out.append(None)
        elif i == 0 and not turned:
            out.append(winograd.first_filters(conv.weight, conv.bias)[0])
        else:
            out.append(winograd.winograd_filters(conv.weight, turned))
    return out


def is_used(setting: Setting, conv: Conv, weight: Tensor, x: Tensor, backward: bool = False) -> bool:
    """Whether Winograd is to do this convolution of x, or take x back through it."""
    if setting.cpu_conv == "direct" or not _fits(weight, conv.stride, conv.padding):
        return False
    if setting.cpu_conv == "winograd" or (conv.at == 0 and not backward):  # the first has a kernel of its own
        return True
    cout, cin = weight.shape[:2]
    if backward:
        cout, cin = cin, cout
    return winograd.winograd_pays(x.shape[0], cin, cout, x.shape[2], x.shape[3])


def _fits(weight: Tensor, stride: int, padding: int) -> bool:
    return weight.shape[2:] == (3, 3) and stride == 1 and padding == 1


def conv_relu(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, x: Tensor, keep_signs: bool, affine: Affine, pools: bool
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """As layers.conv_relu; `pools` asks for the pool of 2 x 2 after it, too."""
    filters, bias = tensors[2 * setting.n_convs + conv.at // 2], tensors[conv.at + 1]
    if conv.at == 0:
        shift, scale = affine
        if shift is None or scale is None:
            shift, scale = bias.new_zeros(x.shape[1]), bias.new_ones(x.shape[1])
        out = torch.ops.lpips_fast.conv3x3_first_cpu(
            x, shift.flatten(), scale.flatten(), filters, bias.view(-1, winograd.PANEL), bias.shape[0], keep_signs
        )
        return out[0], out[1:], None
    out = torch.ops.lpips_fast.conv3x3_fwd_cpu(x, filters, bias, pools, keep_signs)
    return out[0], out[1 + pools :], out[1] if pools else None


def conv_backward(
    setting: Setting, tensors: Sequence[Tensor], conv: Conv, grad: Tensor, addend: Tensor | None, passes: Tensor | None
) -> Tensor:
    """As layers.conv_backward."""
    filters, channels = tensors[3 * setting.n_convs + conv.at // 2], tensors[conv.at].shape[1]
    return torch.ops.lpips_fast.conv3x3_bwd_cpu(grad, filters, channels, addend, passes)


def unpools(setting: Setting, pool: Pool | None) -> bool:
    """Whether `tap_backward` is to be used for a tap that this pool follows, or none."""
    return setting.cpu_conv != "direct" and pool in (None, Pool(2, 2, False))


def tap_backward(tap: Tensor, d_tap: Tensor, grad: Tensor | None) -> Tensor:
    """As layers.tap_backward, grad having come through a pool of 2 x 2."""
    return torch.ops.lpips_fast.relu_pool_bwd_cpu(tap, d_tap, grad)

"""A frozen trunk on the CPU: 3x3 convolutions by Winograd's algorithm, and what the same compiled library fuses.

Which convolutions are Winograd's depends on the images' size, so filters are transformed where they are first used,
and kept: a `Filters` in the trunk's setting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lpips_fast._torch_state import unobserved
from lpips_fast.trunk import winograd
from lpips_fast.trunk.program import Affine, Conv, Pool, Setting

CHOICES = ("auto", "winograd", "direct")


class Filters:
    """The filters of a trunk's convolutions as the CPU's kernels want them, each made at its first use and kept.

    Args:
        tensors: the trunk's: weight, bias, weight, bias, ...
        always: whether every convolution that can be is done so, or only where that is faster.
    """

    def __init__(self, tensors: Sequence[Tensor], always: bool) -> None:
        self.always = always
        self._tensors = tensors
        self._made: dict[tuple[str, int], Tensor] = {}

    def forward(self, conv: Conv) -> Tensor:
        if conv.at == 0:
            return self._get("forward", conv, lambda weight: winograd.first_filters(weight, self._tensors[1])[0])
        return self._get("forward", conv, winograd.winograd_filters)

    def backward(self, conv: Conv) -> Tensor:
        return self._get("backward", conv, lambda weight: winograd.winograd_filters(weight, turned=True))

    def direct(self, conv: Conv) -> Tensor:
        return self._get("direct", conv, lambda weight: weight.contiguous(memory_format=torch.channels_last))

    def _get(self, use: str, conv: Conv, make: Callable[[Tensor], Tensor]) -> Tensor:
        key = use, conv.at
        if key not in self._made:
            # Not inference tensors, though this call may be under inference_mode: the next may be a training step.
            with torch.inference_mode(False), torch.no_grad(), unobserved():
                self._made[key] = make(self._tensors[conv.at].detach())
        return self._made[key]


def filters_for(setting: Setting, conv: Conv, weight: Tensor, x: Tensor, backward: bool = False) -> Filters | None:
    """The filters, if Winograd is to do this convolution of x, or take x back through it."""
    filters = setting.filters
    if filters is None or (weight.shape[2:], conv.stride, conv.padding) != ((3, 3), 1, 1):
        return None
    if filters.always or (conv.at == 0 and not backward):  # the first has a kernel of its own
        return filters
    cout, cin = weight.shape[:2]
    if backward:
        cout, cin = cin, cout
    return filters if winograd.winograd_pays(x.shape[0], cin, cout, x.shape[2], x.shape[3]) else None


def conv_relu(
    filters: Filters, conv: Conv, bias: Tensor, x: Tensor, keep_signs: bool, affine: Affine, pools: bool
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """As layers.conv_relu; `pools` asks for the pool of 2 x 2 after it, too."""
    if conv.at == 0:
        shift, scale = affine
        if shift is None or scale is None:
            shift, scale = bias.new_zeros(x.shape[1]), bias.new_ones(x.shape[1])
        out = torch.ops.lpips_fast.conv3x3_first_cpu(
            x.to(bias.dtype),
            shift.flatten(),
            scale.flatten(),
            filters.forward(conv),
            bias.view(-1, winograd.PANEL),
            bias.shape[0],
            keep_signs,
        )
        return out[0], out[1:], None
    out = torch.ops.lpips_fast.conv3x3_fwd_cpu(x, filters.forward(conv), bias, pools, keep_signs)
    return out[0], out[1 + pools :], out[1] if pools else None


def conv_backward(
    filters: Filters, conv: Conv, channels: int, grad: Tensor, addend: Tensor | None, passes: Tensor | None
) -> Tensor:
    """As layers.conv_backward, to an input of so many channels."""
    return torch.ops.lpips_fast.conv3x3_bwd_cpu(grad, filters.backward(conv), channels, addend, passes)


def unpools(setting: Setting, pool: Pool | None) -> bool:
    """Whether `tap_backward` is to be used for a tap that this pool follows, or none."""
    return setting.filters is not None and pool in (None, Pool(2, 2, False))


def tap_backward(tap: Tensor, d_tap: Tensor, grad: Tensor | None) -> Tensor:
    """As layers.tap_backward, grad having come through a pool of 2 x 2."""
    return torch.ops.lpips_fast.relu_pool_bwd_cpu(tap, d_tap, grad)

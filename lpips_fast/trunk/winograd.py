"""The trunk's 3x3 convolutions on the CPU, by Winograd's algorithm F(4x4, 3x3): schemas, filters and when it pays.

csrc/winograd.cpp implements the operators; activations are float32 and channels-last throughout.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from lpips_fast import _flops as flops
from lpips_fast._library import define

TILE = 4  # outputs of a tile in each direction
POINTS = 36
PANEL = 16  # output channels of a packed panel of filters

# The points 0, a, -a, b, -b (and infinity) of csrc/winograd/transforms.inl, which says why these.
_A, _B = 0.625, 1.5


def _filter_matrix() -> Tensor:
    """G of U = G g G^T, [6, 3]."""
    points = torch.tensor([0.0, _A, -_A, _B, -_B], dtype=torch.float64)
    differences = points[:, None] - points + torch.eye(5, dtype=torch.float64)
    powers = torch.stack([torch.ones_like(points), points, points**2], 1)
    return torch.cat([powers / differences.prod(1, keepdim=True), torch.tensor([[0.0, 0.0, 1.0]])])


def _panels(x: Tensor) -> Tensor:
    """[..., C] as [..., ceil(C / 16), 16], filled up with zeros."""
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % PANEL))
    return x.unflatten(-1, (-1, PANEL))


def winograd_filters(weight: Tensor, turned: bool = False) -> Tensor:
    """The filters of a 3x3 convolution as `conv3x3_fwd_cpu` takes them, U = G g G^T.

    Args:
        weight: [cout, cin, 3, 3].
        turned: for the gradient to the input instead (`conv3x3_bwd_cpu`): filters turned by 180 degrees, input and
            output channels exchanged.

    Returns:
        Float32 [36, ceil(cout / 16), cin, 16], four times the size of `weight`; cout and cin exchanged where turned.
    """
    weight = weight.detach().cpu()
    if turned:
        weight = weight.flip(2, 3).transpose(0, 1)
    g = _filter_matrix()
    cout, cin = weight.shape[:2]
    filters = torch.zeros(POINTS, -(-cout // PANEL), cin, PANEL)
    for panel, part in enumerate(weight.split(PANEL)):  # one by one: float64 of all would be the peak of the memory
        u = torch.einsum("ia,ocab,jb->ijco", g, part.double(), g)
        filters[:, panel, :, : part.shape[0]] = u.flatten(0, 1)
    return filters


def first_filters(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The filters and bias of a 3x3 convolution as `conv3x3_first_cpu` takes them.

    Args:
        weight: [cout, cin, 3, 3].
        bias: [cout].

    Returns:
        Float32 [ceil(cout / 16), cin, 3, 3, 16] and [ceil(cout / 16), 16].
    """
    weight, bias = weight.detach().to("cpu", torch.float32), bias.detach().to("cpu", torch.float32)
    return _panels(weight.permute(1, 2, 3, 0)).permute(3, 0, 1, 2, 4).contiguous(), _panels(bias).contiguous()


def _empty_nhwc(x: Tensor, channels: int, h: int, w: int) -> Tensor:
    return x.new_empty((x.shape[0], channels, h, w)).to(memory_format=torch.channels_last)


def _empty_signs(x: Tensor, channels: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[3], -(-channels // 8)), dtype=torch.uint8)


def _conv3x3_fwd_fake(x, filters, bias, pool, signs):
    channels, h, w = bias.shape[0], x.shape[2], x.shape[3]
    out = [_empty_nhwc(x, channels, h, w)]
    if pool:
        out.append(_empty_nhwc(x, channels, h // 2, w // 2))
    if signs:
        out.append(_empty_signs(x, channels))
    return out


def _conv3x3_bwd_fake(d_y, filters, channels, addend, mask):
    return _empty_nhwc(d_y, channels, d_y.shape[2], d_y.shape[3])


def _conv3x3_first_fake(x, shift, scale, filters, bias, channels, signs):
    out = [_empty_nhwc(x, channels, x.shape[2], x.shape[3])]
    return [*out, _empty_signs(x, channels)] if signs else out


def _pack_signs_fake(y):
    return _empty_signs(y, y.shape[1])


def _mask_by_signs_fake(d_y, signs, addend):
    return _empty_nhwc(d_y, *d_y.shape[1:])


def _relu_pool_bwd_fake(tap, d_head, d_pooled):
    return _empty_nhwc(tap, *tap.shape[1:])


# Activations and gradients are float32, [N, C, H, W] in any layout: where channels are not adjacent in memory they
# are copied first. Outputs are channels-last. `signs` is one bit a value, uint8 [N, H, W, ceil(C / 8)]: bit c % 8 of
# byte c // 8 says that channel c is not <= 0.
#   * conv3x3_fwd: [y] with y = relu(conv(x) + bias), padding 1; then, if asked for, max_pool2d(y, 2); then y's signs.
#   * conv3x3_bwd: conv(d_y) with turned filters, plus `addend`; 0 where `mask` (like x, or its signs) is <= 0.
#   * conv3x3_first: as conv3x3_fwd of (x - shift) / scale, padded with zeros after that; few channels, any layout.
#   * pack_signs: y's signs. mask_by_signs: d_y + addend where the signs say so, else 0.
#   * relu_pool_bwd: (d_head + what max_pool2d(tap, 2) sends back of d_pooled), 0 where tap is <= 0.
_OPERATORS: dict[str, tuple[str, Callable[..., Any]]] = {
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
    "pack_signs_cpu": ("(Tensor y) -> Tensor", _pack_signs_fake),
    "mask_by_signs_cpu": ("(Tensor d_y, Tensor signs, Tensor? addend) -> Tensor", _mask_by_signs_fake),
    "relu_pool_bwd_cpu": ("(Tensor tap, Tensor? d_head, Tensor? d_pooled) -> Tensor", _relu_pool_bwd_fake),
}

for _name, (_schema, _fake) in _OPERATORS.items():
    define(_name, _schema, _fake)

# The shapes of x (or d_y) and bias, and the channels of the result: 3 x 3 of a convolution's own multiplications.
flops.register(
    {
        "conv3x3_fwd_cpu": lambda x, filters, bias, *_, **__: 2 * 9 * prod(x) * bias[0],
        "conv3x3_bwd_cpu": lambda d_y, filters, channels, *_, **__: 2 * 9 * prod(d_y) * channels,
        "conv3x3_first_cpu": lambda x, shift, scale, filters, bias, channels, *_, **__: 2 * 9 * prod(x) * channels,
    }
)


def available() -> bool:
    """Whether the compiled library is there and has the operators for this processor."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("lpips_fast::conv3x3_fwd_cpu", "CPU")


def winograd_pays(images: int, cin: int, cout: int, h: int, w: int) -> bool:
    """Whether a 3x3 convolution is faster by Winograd's algorithm than torch's direct one, by a fixed rule.

    Measured with AVX2, one thread: where the rule holds Winograd is 1.3 to 3.5 times faster. It loses, down to 0.7,
    in three cases: with so few outputs that reading the filters, four times as large as before, is what takes the
    time (512 channels: 16 outputs 0.78, 32 outputs 1.5); where most of each 4x4 tile lies outside the image (2 x 2
    images: 1.07 at best); and with so few input channels that the transforms cost as much as the products (8: 1.05).

    Args:
        images: in the batch.
        cin: input channels of what is computed: of d_y for a gradient.
        cout: output channels; the rule does not depend on them.
        h: height of the image.
        w: width of the image.
    """
    outputs = images * h * w
    tiles = images * -(-h // TILE) * -(-w // TILE)
    return cin >= 12 and outputs >= 64 and outputs >= 6 * tiles

"""Filters of convolutions as the CPU's kernels take them, and when Winograd's algorithm pays.

Winograd's F(4x4, 3x3) makes 4x4 outputs of a 3x3 convolution from 6x6 inputs d and filters g,

    Y = A^T [(G g G^T) * (B^T d B)] A

with 36 products where direct convolution takes 144. U = G g G^T depends on the filters alone, so it is made here, once;
csrc/trunk/ does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lpips_fast._torch_state import unobserved
from lpips_fast.trunk.program import Conv

TILE = 4  # outputs of a tile in each direction
POINTS = 36
PANEL = 16  # output channels of a packed panel of filters

# The points 0, a, -a, b, -b (and infinity); csrc/trunk/winograd.inl gives the reason for the choice.
_A, _B = 0.625, 1.5


def _filter_matrix() -> Tensor:
    """G of U = G g G^T, [6, 3]."""
    points = torch.tensor([0.0, _A, -_A, _B, -_B], dtype=torch.float64)
    differences = points[:, None] - points + torch.eye(5, dtype=torch.float64)
    powers = torch.stack([torch.ones_like(points), points, points**2], 1)
    return torch.cat([powers / differences.prod(1, keepdim=True), torch.tensor([[0.0, 0.0, 1.0]])])


def _panels(x: Tensor) -> Tensor:
    """[..., C] as [..., ceil(C / 16), 16], padded with zeros."""
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % PANEL))
    return x.unflatten(-1, (-1, PANEL))


def winograd_filters(weight: Tensor, turned: bool = False) -> Tensor:
    """The filters of a 3x3 convolution as `conv3x3_fwd_cpu` takes them, U = G g G^T.

    Args:
        weight: [cout, cin, 3, 3].
        turned: whether the filters are for the gradient to the input (`conv3x3_bwd_cpu`). Then they are turned by 180
            degrees, and input and output channels are exchanged.

    Returns:
        Float32 [36, ceil(cout / 16), cin, 16], four times the size of `weight`; with `turned` cout and cin are
        exchanged.
    """
    weight = weight.detach().cpu()
    if turned:
        weight = weight.flip(2, 3).transpose(0, 1)
    g = _filter_matrix()
    cout, cin = weight.shape[:2]
    filters = torch.zeros(POINTS, -(-cout // PANEL), cin, PANEL)
    # The panels are computed one by one, because all at once in float64 would set the peak of memory.
    for panel, part in enumerate(weight.split(PANEL)):
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


def winograd_pays(images: int, cin: int, h: int, w: int) -> bool:
    """Whether Winograd's algorithm computes a 3x3 convolution faster than torch's direct one, by a fixed rule.

    Measured with AVX2 and one thread: where the rule holds, Winograd's speed is 1.3 to 3.5 times direct convolution's.
    Elsewhere it can be as low as 0.7 times, for one of three reasons. With few outputs, most of the time goes into
    reading the filters, which are four times as large (512 channels: 16 outputs 0.78, 32 outputs 1.5). With small
    images, most of each 4x4 tile lies outside the image (2 x 2 pixels: 1.07 at best). With few input channels, the
    transforms cost as much as the products (8: 1.05). The number of output channels does not matter.

    Args:
        images: the batch size.
        cin: input channels of the convolution that is computed; for a gradient these are the channels of d_y.
        h: height of the images in pixels.
        w: width of the images in pixels.
    """
    outputs = images * h * w
    tiles = images * -(-h // TILE) * -(-w // TILE)
    return cin >= 12 and outputs >= 64 and outputs >= 6 * tiles


class CpuTensors(list[Tensor]):
    """A trunk's tensors, weight, bias, weight, bias, ..., and the filters that the CPU's layers make of them.

    The images' size decides which convolutions use Winograd's algorithm. So each filter is made at its first use, and
    kept.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__(tensors)
        self._made: dict[tuple[str, int], Tensor] = {}

    def first(self, conv: Conv) -> Tensor:
        """The filters for `conv3x3_first_cpu`."""
        return self._once("first", conv, lambda weight: first_filters(weight, self[conv.at + 1])[0])

    def winograd(self, conv: Conv) -> Tensor:
        """The filters for `conv3x3_fwd_cpu`."""
        return self._once("winograd", conv, winograd_filters)

    def turned(self, conv: Conv) -> Tensor:
        """The filters for `conv3x3_bwd_cpu`."""
        return self._once("turned", conv, lambda weight: winograd_filters(weight, turned=True))

    def direct(self, conv: Conv) -> Tensor:
        """The filters for torch's convolution of channels-last activations."""
        return self._once("direct", conv, lambda weight: weight.contiguous(memory_format=torch.channels_last))

    def _once(self, use: str, conv: Conv, make: Callable[[Tensor], Tensor]) -> Tensor:
        key = use, conv.at
        if key not in self._made:
            # This call may be under inference_mode, the next may be a training step, which refuses inference tensors.
            with torch.inference_mode(False), torch.no_grad(), unobserved():
                self._made[key] = make(self[conv.at].detach())
        return self._made[key]

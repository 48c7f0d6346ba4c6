"""What a frozen trunk's backward does between its convolutions.

    pack_signs(y)                        one bit a value of y = relu(.): whether the ReLU let the gradient through
    mask_by_signs(grad, bits)            grad where its bit is set, else 0
    tap_backward(tap, d_tap, grad, pool) (d_tap + grad) where tap > 0, else 0; grad taken back through the pool first

Bits follow the order in memory of the given layout; bit i of byte j is that of value 8 j + i. A ReLU passes the
gradient where its output is not <= 0: where it is NaN, too, as in torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .frozen import Pool


def pack_signs(y: Tensor, layout: torch.memory_format) -> Tensor:
    """uint8 [ceil(numel / 8)] for y [N, C, H, W]."""
    passes = (~(_flat(y, layout) <= 0)).to(torch.uint8)
    passes = F.pad(passes, (0, -passes.numel() % 8)).view(-1, 8)
    bits = passes[:, 0].clone()
    for i in range(1, 8):
        bits |= passes[:, i] << i
    return bits


def mask_by_signs(grad: Tensor, bits: Tensor, layout: torch.memory_format) -> Tensor:
    """grad [N, C, H, W] where its bit is set, else 0, in the given layout."""
    grad = grad.contiguous(memory_format=layout)
    flat = _flat(grad, layout)
    passes = torch.stack([(bits >> i) & 1 for i in range(8)], dim=1).view(-1)[: flat.numel()]
    return torch.where(passes.bool(), flat, 0).as_strided(grad.shape, grad.stride())


def tap_backward(tap: Tensor, d_tap: Tensor, grad: Tensor | None, pool: Pool | None) -> Tensor:
    """dL/d(the tap's convolution's output), from d_tap, the head's part, and grad, of what follows the tap."""
    if grad is None:
        total = d_tap
    elif pool is None:
        total = d_tap + grad
    else:
        window = ((pool.kernel,) * 2, (pool.stride,) * 2, (0, 0), (1, 1), pool.ceil_mode)
        _, winners = torch.ops.aten.max_pool2d_with_indices(tap, *window)
        total = torch.ops.aten.max_pool2d_with_indices_backward(grad, tap, *window, winners) + d_tap
    return torch.ops.aten.threshold_backward(total, tap, 0)


def _flat(x: Tensor, layout: torch.memory_format) -> Tensor:
    """The values in the order in which the layout has them in memory."""
    x = x.contiguous(memory_format=layout)
    return x.as_strided((x.numel(),), (1,))

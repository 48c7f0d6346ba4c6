"""What a frozen trunk's backward does between its convolutions.

    pack_signs(y)                        one bit a value of y = relu(.): whether the ReLU let the gradient through
    mask_by_signs(grad, signs)           grad where its bit is set, else 0
    tap_backward(tap, d_tap, grad, pool) (d_tap + grad) where tap > 0, else 0; grad taken back through the pool first

Signs of [N, C, H, W] are uint8 [N, H, W, ceil(C / 8)]: bit c % 8 of byte c // 8 is channel c's. A ReLU passes the
gradient where its output is not <= 0: where it is NaN, too, as in torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .frozen import Pool


def pack_signs(y: Tensor) -> Tensor:
    """uint8 [N, H, W, ceil(C / 8)] for y [N, C, H, W]."""
    passes = (~(y.movedim(1, -1) <= 0)).to(torch.uint8)
    passes = F.pad(passes, (0, -passes.shape[-1] % 8)).unflatten(-1, (-1, 8))
    signs = passes[..., 0].clone()
    for i in range(1, 8):
        signs |= passes[..., i] << i
    return signs


def mask_by_signs(grad: Tensor, signs: Tensor) -> Tensor:
    """grad [N, C, H, W] where its bit is set, else 0."""
    passes = torch.stack([(signs >> i) & 1 for i in range(8)], dim=-1).flatten(-2)[..., : grad.shape[1]]
    return torch.where(passes.bool().movedim(-1, 1), grad, 0)


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

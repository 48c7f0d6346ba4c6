"""How many pairs go through at a time: one rule, for the ordinary path and for grad_in_forward.

On the CPU smaller tensors are faster, because less memory comes fresh from the system at each layer. So on the CPU
pairs of about CPU_PIXELS pixels go through at a time, even if nobody asks for chunks. Elsewhere `chunk_size` alone
decides; it bounds the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lpips_fast._torch_state import is_recorded

CPU_PIXELS = 1 << 16  # of the first images of the pairs in a chunk, for a trunk whose first convolution has stride 1
AUTO_PIXELS = 1 << 19  # of the same, for chunk_size='auto'


def pairs_at_a_time(
    x0: Tensor, chunk_size: int | str | None, stride: int, *, grad_in_forward: bool = False
) -> int | None:
    """The number of pairs in a chunk; None for all at once.

    Args:
        x0: one image of each pair, [N, C, H, W].
        chunk_size: what the caller of `LPIPS` asked for: a number of pairs, 'auto' or None.
        stride: the stride of the trunk's first convolution. The greater it is, the fewer values an image has.
        grad_in_forward: whether a chunk's gradient is computed in its forward. The CPU ignores chunk_size in this case:
            the order of a convolution's sums depends on the batch there, and so every chunk_size gives the same bits.
    """
    if is_recorded():
        return None  # a loop over chunks would be recorded for this batch size alone
    pixels = max(x0.shape[2] * x0.shape[3], 1)
    # A compiled loop over chunks would need a graph for every batch size, so only an explicit chunk_size makes one.
    if x0.device.type == "cpu" and not torch.compiler.is_compiling():
        if grad_in_forward or not isinstance(chunk_size, int):
            return max(1, CPU_PIXELS * stride // pixels)
    if chunk_size == "auto":
        return max(1, AUTO_PIXELS // pixels)
    return chunk_size if isinstance(chunk_size, int) else None


def in_chunks(n: int, at_a_time: int | None, *sides: Tensor | Sequence[Tensor] | None) -> list[Any]:
    """The sides of n pairs in chunks of `at_a_time` pairs: a list of tuples, one entry a side.

    A side is a tensor [n, ...], a list of such tensors, or None. A tensor [1, ...] goes whole into each chunk.
    """
    if at_a_time is None or n <= at_a_time:
        return [sides]
    starts = range(0, n, at_a_time)
    return [tuple(_rows(side, slice(start, start + at_a_time)) for side in sides) for start in starts]


def _rows(side: Tensor | Sequence[Tensor] | None, rows: slice) -> Tensor | Sequence[Tensor] | None:
    if side is None:
        return None
    if isinstance(side, Tensor):
        return side if side.shape[0] == 1 else side[rows]
    return [t if t.shape[0] == 1 else t[rows] for t in side]

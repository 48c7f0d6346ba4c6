"""What the kernels of the head and of the trunk share.

Kernels take flat arguments, many though they are: Triton specializes a kernel on each argument by itself. It compiles a
stride of 1 and a missing pointer in, and do_not_specialize names single arguments. The functions that a kernel calls
take these arguments one by one, too. Operators have the flat arguments of their schemas, which know no tuple of tensors
and numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from lpips_fast._library import library

MIN_BLOCK_C = 64  # fewer channels are padded to this, to bound the length of a row of pixels


@triton.jit
def normalized_values(f, EPS: tl.constexpr, EPS_INSIDE_SQRT: tl.constexpr):
    """a [BLOCK_C, BLOCK_P], r and q [BLOCK_P] of features f; the header of head.py has their formulas."""
    radicand = tl.sum(f * f, axis=0)
    if EPS_INSIDE_SQRT:
        radicand += EPS
    root = tl.sqrt(radicand)  # float32's square root takes denormals for 0
    zero = root == 0  # a NaN is not 0 and stays NaN; with ~(root > 0) it would become 0
    root = tl.where(zero, 1.0, root)
    norm = root if EPS_INSIDE_SQRT else root + EPS
    r = tl.where(zero, 0.0, 1.0 / norm)
    q = 1.0 + (0.0 if EPS_INSIDE_SQRT else EPS) / root  # norm / root would be NaN for an infinite root
    return f * r[None, :], r, q


def cdiv(a: int, b: int) -> int:
    """triton.cdiv for the host: Triton's own function goes through constexpr_function at each call."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """triton.next_power_of_2 for the host, n from 1, for the same reason as `cdiv`."""
    return 1 << (n - 1).bit_length()


def block_of_all_channels(channels: int) -> int:
    """BLOCK_C of a program that holds all channels of its pixels."""
    return max(MIN_BLOCK_C, next_power_of_2(max(channels, 1)))


def register(*operators: Callable[..., Any]) -> None:
    """Makes each function the implementation of the operator that has its name."""
    for operator in operators:
        for key in ("CUDA", "CPU"):  # the CPU's is for the interpreter
            library.impl(operator.__name__, operator, key)

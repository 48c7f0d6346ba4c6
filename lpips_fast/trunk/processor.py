"""In which floating types this processor computes, by what it says of itself.

Where a processor lacks instructions for bfloat16 or float16, torch emulates them: its convolutions take many times as
long as in float32. `Trunk.setting` then computes in float32 and makes taps of the low type.

torch.ops.mkldnn._is_mkldnn_bf16_supported is no answer: it is true for every AVX-512, where oneDNN emulates, too.
Instructions that only convert (F16C, AVX-NE-CONVERT) do not count. With LPIPS_FAST_CPU_ISA (csrc/common/isa.h) a
processor that has the instructions can do as one without them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

import torch

# The names of torch.cpu.get_capabilities, of which one is enough; the last of each is ARM's.
_INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def computes_in(dtype: torch.dtype) -> bool:
    """Whether the processor has instructions for products and sums of this type."""
    return dtype not in _INSTRUCTIONS or dtype in _low_types()


# torch.compile takes the answer as a constant: it cannot trace the question.
computes_in._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _low_types() -> frozenset[torch.dtype]:
    return low_types(torch.cpu.get_capabilities(), os.environ.get("LPIPS_FAST_CPU_ISA", ""))


def low_types(capabilities: Mapping[str, Any], isa: str) -> frozenset[torch.dtype]:
    """The low-precision types with instructions.

    Args:
        capabilities: what torch.cpu.get_capabilities says.
        isa: the value of LPIPS_FAST_CPU_ISA, or ''.
    """
    if isa in ("portable", "avx2"):
        return frozenset()
    return frozenset(dtype for dtype, names in _INSTRUCTIONS.items() if any(capabilities.get(name) for name in names))

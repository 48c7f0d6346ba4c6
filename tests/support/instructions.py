"""Processors with and without instructions for bfloat16 and float16, whatever this one has."""

from __future__ import annotations

import re

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpips_fast.trunk import processor

LOW_TYPES = (torch.bfloat16, torch.float16)


def set_instructions(monkeypatch, present: bool) -> None:
    """Lets the trunk take this processor for one with these instructions, or without them."""
    monkeypatch.setattr(processor, "_low_types", lambda: frozenset(LOW_TYPES if present else ()))


class ConvolutionTypes(TorchDispatchMode):
    """Collects the floating types of what convolutions take: torch's, their derivatives', and our operators'."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if re.search("conv|trunk_", func.name()):
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.types |= {t.dtype for t in tensors if t.is_floating_point()}
        return func(*args, **(kwargs or {}))

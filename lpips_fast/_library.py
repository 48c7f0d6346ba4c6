"""The library of torch operators `lpips_fast::*`: the compiled file that implements some of them, and their schemas.

Schemas and fake implementations are defined in Python, so that torch.compile and fake tensors work where the compiled
file is missing. The Triton kernels register their implementations when `lpips_fast.kernels` is imported.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

library = torch.library.Library("lpips_fast", "DEF")


def define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Defines the operator `lpips_fast::name`.

    Args:
        schema: its arguments and results, '(Tensor x) -> Tensor'.
        fake: what torch.compile and fake tensors run in its place: results of the right shapes, without values.
    """
    library.define(name + schema)
    torch.library.register_fake(f"lpips_fast::{name}", fake, lib=library)


def is_implemented(operator: str, key: str) -> bool:
    """Whether the operator `lpips_fast::operator` has an implementation for a dispatch key, 'CPU' or 'CUDA'."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lpips_fast::{operator}", key)


def _load() -> str | None:
    """Loads the compiled file; returns the reason if that fails."""
    spec = importlib.util.find_spec("lpips_fast._C")
    if spec is None or spec.origin is None:
        return "the compiled library was not built (it needs a C++ compiler at installation)"
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        return f"the compiled library {Path(spec.origin).name} does not load: {error}"
    return None


load_error = _load()
"""Why the compiled file could not be loaded, or None."""

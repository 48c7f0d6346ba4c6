"""Which backends of the head are there: the compiled library, Triton, and the choice between them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil

import torch

from lpips_fast import _library
from lpips_fast.head import operators

BACKENDS = ("reference", *operators.COMPILED_BACKENDS)


def _has_kernels(operator: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lpips_fast::{operator}", key)


def _interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def backends() -> dict[str, str | None]:
    """For each backend of the head None where it can be used in this process, else the reason why not.

    GPUs are not looked at here, which would start CUDA: one that is too old for 'cuda' is refused when it is used.
    """
    return dict(_errors())


@functools.cache
def _errors() -> dict[str, str | None]:
    return {"reference": None, "cpu": _library.load_error, "cuda": _cuda_error(), "triton": _triton_error()}


def _cuda_error() -> str | None:
    if _library.load_error is not None:
        return _library.load_error
    if not _has_kernels("head_fwd_cuda", "CUDA"):
        return "the compiled library was built without nvcc"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _triton_error() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not _interpreting():
        if not torch.cuda.is_available():
            return "no GPU (on the CPU it runs only in Triton's interpreter, with TRITON_INTERPRET=1)"
        if not (shutil.which("cc") or shutil.which("gcc") or os.environ.get("CC")):
            return "triton needs a C compiler"
    importlib.import_module("lpips_fast.kernels")  # registers the operators

    return None


@functools.cache
def is_from_ampere_on(device: torch.device) -> bool:
    """Whether a GPU of NVIDIA's has what the kernels are made for."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def check_name(backend: str) -> None:
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def choose(backend: str, device: torch.device) -> str:
    """The backend to use for tensors on `device`: `backend` itself, checked, or the best there is for 'auto'."""
    check_name(backend)
    errors = _errors()
    if device.type == "cuda" and errors["cuda"] is None and not is_from_ampere_on(device):
        errors = {**errors, "cuda": "the CUDA kernels need a GPU of compute capability 8.0 or newer"}
    if backend == "auto":
        wanted = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
        return next((name for name in wanted if errors[name] is None), "reference")
    error = errors[backend]
    if error is not None:
        raise RuntimeError(f"backend {backend!r} cannot be used: {error}")
    devices = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda", "cpu") if _interpreting() else ("cuda",)}
    if device.type not in devices.get(backend, (device.type,)):
        raise ValueError(f"backend {backend!r} works on {' or '.join(devices[backend])} tensors, got {device}")
    return backend


# What torch.compiler.assume_constant_result does, without its import of all of torch.compile (2 s).
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]

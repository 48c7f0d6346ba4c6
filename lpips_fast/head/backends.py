"""Which backends of the head this process can use, why it cannot use the others, and the choice between them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil

import torch

from lpips_fast import _library
from lpips_fast.head.operators import COMPILED_BACKENDS

BACKENDS = ("reference", *COMPILED_BACKENDS)


def backends() -> dict[str, str | None]:
    """For each backend of the head: None if this process can use it, else the reason why it cannot.

    It never raises: where Triton or CUDA is broken, their error is the reason. It does not look at the GPUs themselves,
    which would start CUDA; a GPU that is too old for 'cuda' is refused when it is used.
    """
    return dict(_reasons())


@functools.cache
def _reasons() -> dict[str, str | None]:
    found: dict[str, str | None] = {"reference": None}
    for backend, why_not in (("cpu", _why_not_cpu), ("cuda", _why_not_cuda), ("triton", _why_not_triton)):
        try:
            found[backend] = why_not()
        except Exception as error:  # a broken installation raises anything
            found[backend] = f"{type(error).__name__}: {error}"
    return found


def _is_implemented(operator: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lpips_fast::{operator}", key)


def _why_not_cpu() -> str | None:
    if _library.load_error is not None:
        return _library.load_error
    return None if _is_implemented("head_fwd_cpu", "CPU") else "the compiled library has no operators of this package"


def _why_not_cuda() -> str | None:
    if _library.load_error is not None:
        return _library.load_error
    if not _is_implemented("head_fwd_cuda", "CUDA"):
        return "the compiled library was built without nvcc"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def _why_not_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not _interpreting():
        if not torch.cuda.is_available():
            return "no GPU (on the CPU it runs only in Triton's interpreter, with TRITON_INTERPRET=1)"
        if not (shutil.which("cc") or shutil.which("gcc") or os.environ.get("CC")):
            return "triton needs a C compiler"
    if importlib.util.find_spec("lpips_fast.kernels") is not None:
        importlib.import_module("lpips_fast.kernels")  # registers the operators; an empty folder registers none
    if not _is_implemented("head_fwd_triton", "CUDA"):
        return "the kernels are not installed (a checkout has them in kernels/, an installation as lpips_fast.kernels)"
    return None


def _interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def is_from_ampere_on(device: torch.device) -> bool:
    """Whether an NVIDIA GPU has compute capability 8.0 or newer, which the kernels are made for."""
    return torch.cuda.get_device_capability(device)[0] >= 8


def check_name(backend: str) -> None:
    """Raises a ValueError unless `backend` is 'auto' or the name of a backend."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def choose(backend: str, device: torch.device) -> str:
    """The backend to use for tensors on `device`: the best one there is for 'auto', else `backend` itself.

    Raises:
        ValueError: `backend` is unknown, or it does not work on this device.
        RuntimeError: this process cannot use `backend`.
    """
    check_name(backend)
    reasons = _reasons()
    if device.type == "cuda" and reasons["cuda"] is None and not is_from_ampere_on(device):
        reasons = {**reasons, "cuda": "the CUDA kernels need a GPU of compute capability 8.0 or newer"}
    if backend == "auto":
        wanted = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(device.type, ())
        return next((name for name in wanted if reasons[name] is None), "reference")
    if reasons[backend] is not None:
        raise RuntimeError(f"backend {backend!r} cannot be used: {reasons[backend]}")
    devices = {"cpu": ("cpu",), "cuda": ("cuda",), "triton": ("cuda", "cpu") if _interpreting() else ("cuda",)}
    if device.type not in devices.get(backend, (device.type,)):
        raise ValueError(f"backend {backend!r} works on {' or '.join(devices[backend])} tensors, got {device}")
    return backend


# torch.compiler.assume_constant_result does this, too, but it imports all of torch.compile (2 s).
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]

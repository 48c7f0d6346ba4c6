"""Which backends of the head can be used on which device, why the others cannot, and the choice between them.

The answers are found once for each device of a process, and kept; finding them launches nothing on a GPU. A process
that is forked inherits them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil

import torch

from lpips_fast import _library
from lpips_fast._library import is_implemented
from lpips_fast.head.operators import COMPILED_BACKENDS

BACKENDS = ("reference", *COMPILED_BACKENDS)
_BEST_FIRST = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # what 'auto' may choose, by the type of device

# NVIDIA's compute capabilities. The CUDA kernels need Ampere's asynchronous copies to shared memory, and the trunk's
# Triton kernels matrix units that Triton uses. The head's Triton kernels need neither: they compile for Volta without
# spills in all types (tests/kernels/test_aot.py). Triton names Ampere as its oldest GPU, but torch.compile uses it from
# Volta on.
Capability = tuple[int, int]
AMPERE: Capability = (8, 0)
VOLTA: Capability = (7, 0)
_NEEDED = {"cuda": AMPERE, "triton": VOLTA}


def backends(device: torch.device | str | int | None = None) -> dict[str, str | None]:
    """For each backend of the head: None if it can be used, else the reason why it cannot.

    It never raises an error because something is missing or broken: that error is the reason. To look at a GPU it
    starts CUDA, and in processes that are forked after that, CUDA does not work.

    Args:
        device: the GPU for which 'cuda' and 'triton' are judged; the current one unless given. On "cpu" these two run
            only under the tests' emulator and Triton's interpreter. 'cpu' is always judged for the CPU.

    Raises:
        ValueError: `device` is no device.
    """
    try:
        judged = torch.device("cuda" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch.device, its name or the index of a GPU, got {device!r}") from error
    return {name: why_not(name, torch.device("cpu") if name == "cpu" else judged) for name in BACKENDS}


def why_not(backend: str, device: torch.device, capability: Capability | None = None) -> str | None:
    """The reason why `backend` cannot be used for tensors on `device`, or None if it can.

    Args:
        capability: the compute capability that a GPU of NVIDIA's must have, if it is not the one that the head needs.
    """
    if backend == "cuda" and device.type == "cpu" and is_implemented("head_fwd_cuda", "CPU"):
        return None  # the tests' emulator has registered them, maybe after an earlier question
    return _why_not(backend, _indexed(device), capability or _NEEDED.get(backend))


def _indexed(device: torch.device) -> torch.device:
    """The device with its index: 'cuda' without one is the current GPU. It stays as it is if CUDA does not start."""
    if device.index is None and device.type == "cuda":
        try:
            return torch.device("cuda", torch.cuda.current_device())
        except Exception:  # no GPU, or a broken installation, which raises anything
            pass
    return device


@functools.cache
def _why_not(backend: str, device: torch.device, capability: Capability | None) -> str | None:
    if backend == "reference":
        return None
    if device.type not in _BEST_FIRST:
        return f"there are no kernels for {device.type}"
    try:
        if capability is None:
            return _why_not_cpu(device)
        return {"cuda": _why_not_cuda, "triton": _why_not_triton}[backend](device, capability)
    except Exception as error:  # a broken installation raises anything; torch adds lines of advice
        return f"{type(error).__name__}: {error}".partition("\n")[0]


def _why_not_cpu(device: torch.device) -> str | None:
    if _library.load_error is not None:
        return _library.load_error
    if not is_implemented("head_fwd_cpu", "CPU"):
        return "the compiled library has no operators of this package"
    return None if device.type == "cpu" else "it runs on the CPU"


def _why_not_cuda(device: torch.device, capability: Capability) -> str | None:
    if _library.load_error is not None:
        return _library.load_error
    if not is_implemented("head_fwd_cuda", "CUDA"):
        return "the compiled library was built without nvcc"
    if torch.version.hip is not None:
        return "the CUDA kernels are for NVIDIA's GPUs, and this torch is for AMD's"
    return _why_no_gpu(device) or _too_old(device, capability) or _why_not_library(device)


def _why_not_triton(device: torch.device, capability: Capability) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreting = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if not interpreting:
        if (reason := _why_no_gpu(device)) is not None:
            return f"{reason} (on the CPU it runs only in Triton's interpreter, with TRITON_INTERPRET=1)"
        if (reason := _too_old(device, capability)) is not None:
            return reason
        if not (shutil.which("cc") or shutil.which("gcc") or os.environ.get("CC")):
            return "triton needs a C compiler"
        # This compiles a file in C that the first launch needs, which fails without Python's headers, say.
        importlib.import_module("triton").runtime.driver.active.get_current_target()
    if importlib.util.find_spec("lpips_fast.kernels") is not None:
        importlib.import_module("lpips_fast.kernels")  # registers the operators; an empty folder registers none
    if not is_implemented("head_fwd_triton", "CUDA"):
        return "the kernels are not installed (a checkout has them in kernels/, an installation as lpips_fast.kernels)"
    return None


def _why_no_gpu(device: torch.device) -> str | None:
    if not torch.cuda.is_available():
        return "no GPU that torch can use"
    return None if device.type == "cuda" else "it runs on a GPU"


def _too_old(gpu: torch.device, capability: Capability) -> str | None:
    if torch.version.hip is not None:
        return None  # the numbers of AMD's GPUs mean something else
    properties = torch.cuda.get_device_properties(gpu)
    if (properties.major, properties.minor) >= capability:
        return None
    needed = ".".join(map(str, capability))
    return f"it needs compute capability {needed}, and {properties.name} has {properties.major}.{properties.minor}"


def _why_not_library(gpu: torch.device) -> str | None:
    """What the library's own CUDA runtime has against a GPU: the driver is too old for it, or no code is for the GPU.

    The operator takes no tensor, so it is called for a dispatch key. Modes and transformations of torch do not see it.
    """
    if not is_implemented("cuda_error", "CUDA"):
        return "the compiled library is of an older version of this package: build it anew"
    operator, key = torch.ops.lpips_fast.cuda_error.default, torch._C.DispatchKey.CUDA
    error = operator.redispatch(torch._C.DispatchKeySet(key), gpu.index)
    return f"the compiled library cannot use the GPU: {error}" if error else None


def check_name(backend: str) -> None:
    """Raises a ValueError unless `backend` is 'auto' or the name of a backend."""
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")


def choose(backend: str, device: torch.device) -> str:
    """The backend to use for tensors on `device`: the best one that can be used for 'auto', else `backend` itself.

    Raises:
        ValueError: `backend` is unknown.
        RuntimeError: `backend` cannot be used for tensors on `device`.
    """
    check_name(backend)
    return _choose(backend, _indexed(device))


@functools.cache
def _choose(backend: str, device: torch.device) -> str:
    if backend == "auto":
        wanted = _BEST_FIRST.get(device.type, ())
        return next((name for name in wanted if why_not(name, device) is None), "reference")
    if (reason := why_not(backend, device)) is not None:
        raise RuntimeError(f"backend {backend!r} cannot be used for tensors on {device}: {reason}")
    return backend


# torch.compiler.assume_constant_result does this, too, but it imports all of torch.compile (2 s).
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]

"""Checks the installed package; tools/smoke.py runs this in each environment. It ends with an error if a check fails.

    python -I tools/smoke_check.py cpu|reference [cuda]

The arguments are the backend that must be the best one on a CPU, and `cuda` if the CUDA kernels must be there, too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import torch

import lpips_fast


def check(fine: bool, message: str) -> None:
    if not fine:
        sys.exit(f"smoke_check: {message}")


def check_installation(best: str, cuda: bool) -> None:
    folder = Path(lpips_fast.__file__).parent
    check("site-packages" in folder.parts, f"{folder} is not what was installed")
    check((folder / "py.typed").is_file(), "no py.typed")
    version = importlib.metadata.version("lpips_fast")
    check(version == lpips_fast.__version__, f"metadata has version {version}, the package {lpips_fast.__version__}")
    for name in lpips_fast.__all__:
        getattr(lpips_fast, name)
    reasons = lpips_fast.backends()
    check((reasons["cpu"] is None) == (best == "cpu"), f"{best!r} should be the best backend: {reasons}")
    has_cuda = torch._C._dispatch_has_kernel_for_dispatch_key("lpips_fast::head_fwd_cuda", "CUDA")
    check(has_cuda or not cuda, f"the CUDA kernels were not compiled: {reasons['cuda']}")
    if importlib.util.find_spec("triton"):
        importlib.import_module("lpips_fast.kernels")


def check_numbers(net: str) -> None:
    """Compares value and gradient of the best backend with float64 in plain torch, on a random trunk."""
    torch.manual_seed(0)
    fn = lpips_fast.LPIPS(net=net, pnet_rand=True)
    exact = lpips_fast.LPIPS(net=net, pnet_rand=True, backend="reference").double()
    exact.load_state_dict(fn.state_dict())
    x, y = torch.rand(2, 2, 3, 64, 48).mul(2).sub(1)
    results = []
    for module, dtype in ((fn, torch.float32), (exact, torch.float64)):
        image = x.to(dtype, copy=True).requires_grad_()
        value = module(image, y.to(dtype))
        (gradient,) = torch.autograd.grad(value.sum(), image)
        results.append((value.detach().double(), gradient.double()))
    for what, found, expected in zip(("value", "gradient"), *results):
        error = ((found - expected).norm() / expected.norm()).item()
        check(error < 1e-3, f"{net}: the {what} is off by {error:.1e}")


def check_program() -> None:
    program = Path(sys.executable).with_name("lpips-fast")
    for arguments in (["--version"], ["pair", "--help"]):
        done = subprocess.run([program, *arguments], capture_output=True, text=True)
        check(done.returncode == 0 and bool(done.stdout), f"lpips-fast {' '.join(arguments)}: {done.stderr}")


def main() -> None:
    best, *built = sys.argv[1:]
    check_installation(best, "cuda" in built)
    for net in ("alex", "vgg", "squeeze"):
        check_numbers(net)
    check_program()
    print(f"lpips_fast {lpips_fast.__version__}, torch {torch.__version__}: {lpips_fast.backends()}")


if __name__ == "__main__":
    main()

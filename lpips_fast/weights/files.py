"""Where weights come from, checked: the linear layers (in this package) and the ImageNet trunk (torchvision's)."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lpips_fast._checks import check_path, some
from lpips_fast._files import replacing
from lpips_fast.trunk.nets import NETS
from lpips_fast.weights.download import download

VERSIONS = ("0.1", "0.0")

_FOLDER = Path(__file__).with_name("linear")


def published_linear_weights(net: str, version: str, channels: list[int]) -> list[Tensor]:
    """The linear weights of the paper's authors, a [1, C, 1, 1] a layer (from `lpips` 0.1.4; see NOTICE)."""
    path = _FOLDER / f"{net}_v{version}.safetensors"
    manifest = json.loads((_FOLDER / "manifest.json").read_text())
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest[path.name]["sha256"]:
        raise RuntimeError(f"{path} is not the file this package was released with (its SHA-256 differs): reinstall")
    return linear_weights(read_state_dict(path), channels, path)


def linear_weights(state: Mapping[str, Tensor], channels: Sequence[int], path: str | PathLike[str]) -> list[Tensor]:
    """The linear weights among tensors read from a file, as `lpips` names them.

    Args:
        state: keys `lin{k}.model.1.weight` (or `.0.` where they were trained without dropout), for every layer k;
            the duplicates `lins.{k}...` may be there too.
        channels: C_k of every layer.
        path: the file, for errors.

    Returns:
        a [1, C_k, 1, 1] a layer.

    Raises:
        ValueError: a key is missing, extra or of another shape, or a value is NaN or infinite.
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
    """The linear weights, a [1, C_k, 1, 1] a layer, by the names of the published files."""
    return {f"lin{k}.model.1.weight": weight for k, weight in enumerate(linear_weights)}


def save_state_dict(path: str | PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Writes tensors by name, as .safetensors or else as a torch file, whole or not at all."""
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save(state, temporary)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of tensors' values in float32."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def read_state_dict(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or a torch file; the latter without running any code that it may hold."""
    return checked_state_dict(read_file(path), path)


def checked_state_dict(content: object, path: str | PathLike[str]) -> dict[str, Tensor]:
    """What a file holds, if that is dense tensors by name."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold tensors by name (a state_dict), got {type(content).__name__}")
    content = dict(items(content))
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(
                f"{path} must hold tensors by name (a state_dict), got one of type {kind} by the name {name!r:.99}"
                + (": save what that holds in a file of its own" if isinstance(tensor, Mapping) else "")
            )
        tensor = content[name] = Tensor.detach(tensor)  # without the attributes that a file can give it, `numel` say
        if odd := _odd_kind(tensor):
            raise ValueError(f"{path}: {name!r} must be an ordinary tensor, got one that is {odd}")
    storages = [tensor.untyped_storage() for tensor in content.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    used = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if used > 2 * held:  # lpips has some twice; a small file could have a large one a million times
        raise ValueError(f"{path} has {len(content)} tensors that share memory, {used} bytes in {held}")
    return content


def items(content: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Keys and values; of a dict from a file without calling its methods, for a file can give an OrderedDict others."""
    return dict.items(content) if isinstance(content, dict) else content.items()


def _odd_kind(tensor: Tensor) -> str | None:
    """What sets a tensor apart from those of weights, or None."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else str(tensor.layout)
    if tensor.is_floating_point() and tensor.element_size() < 2:
        return f"of type {tensor.dtype}"
    if tensor.is_quantized or tensor.is_meta:
        return "quantized" if tensor.is_quantized else "on the meta device"
    # A file of a few bytes could say that it has terabytes.
    return "expanded" if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() else None


def check_values(source: object, state: Mapping[str, Tensor]) -> None:
    """Raises a ValueError, unless all values are floating point and finite."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{source}: {name!r} must be floating point, got {tensor.dtype}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{source}: {name!r} has values that are NaN or infinite")


class StandIn:
    """Takes the place of an object in a file that only its own code could read: made of anything, it keeps nothing."""

    name = ""  # of the function or class that was to make the object

    def __new__(cls, *args: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _DictStandIn(StandIn):
    def __new__(cls, *args: object) -> Any:
        return OrderedDict()  # of all mappings that torch fills the only one that may have attributes, too


class _ListStandIn(StandIn):
    def __new__(cls, *args: object) -> Any:
        return []


_MOST_STAND_INS = 100  # torch looks through all of them at each step
_safe_globals = threading.Lock()  # torch has one list of them for the process


def read_file(path: str | PathLike[str], stand_ins: bool = False) -> object:
    """What a .safetensors or a torch file holds; of a torch file tensors, numbers, strings and containers of these.

    Args:
        path: the file.
        stand_ins: whether to put a `StandIn` where a torch file has anything else, instead of refusing it. No code is
            run for it, neither the file's nor that of the module that it names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    check_path("path", path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights file {path}")
    if not path.is_file():  # to open a pipe would be to wait for it
        raise ValueError(f"{path} cannot be read as a weights file: it is a folder, a device or a pipe")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_archive(path)
            if stand_ins:
                return _load_with_stand_ins(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of a broken or hostile file a reader raises nearly anything
        raise ValueError(f"{path} cannot be read as a weights file: {_reason(error)}") from error


def _load_with_stand_ins(path: Path) -> object:
    """What a torch file holds, with stand-ins for what functions and classes that torch does not know were to make.

    torch's own reader of weights does it, which calls only what is on its lists; there a stand-in has their names. It
    fills dicts and lists of the exact types only, so where objects turn out to be dicts or lists, a second attempt has
    one for each. numpy's and functools' stay stand-ins then, whose state is no dict's.
    """

    def container(name: str) -> type[StandIn]:
        if name == "collections.deque":
            return _ListStandIn
        return StandIn if name.startswith(("numpy.", "functools.")) else _DictStandIn

    def load(kinds: Mapping[str, type[StandIn]]) -> object:
        made: list[Any] = [(type("StandIn", (kind,), {"name": name}), name) for name, kind in kinds.items()]
        with torch.serialization.safe_globals(made):
            return torch.load(path, map_location="cpu", weights_only=True)

    with _safe_globals:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if len(names) > _MOST_STAND_INS:
            raise ValueError(f"it holds objects of {len(names)} kinds, at most {_MOST_STAND_INS} are passed over")
        try:
            return load(dict.fromkeys(names, StandIn))
        except pickle.UnpicklingError:
            if not names:
                raise
            return load({name: container(name) for name in names})


def _reason(error: Exception) -> str:
    """What is wrong, of a reader's error; torch's own text goes on to tell how to run the code that a file may hold."""
    if code := re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error)):
        return takes_code(code[1])
    if "weights_only" in str(error):
        return "it is no file of torch.save, or holds more than tensors"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def takes_code(name: str) -> str:
    """What is wrong with a file that holds what this function or class makes."""
    return f"it holds {name:.99}, which takes code to read; save tensors by name (a state_dict) instead"


def _check_archive(path: Path) -> None:
    """Raises a ValueError if a file's content takes more room than it: torch.save compresses nothing, a bomb does."""
    with zipfile.ZipFile(path) as archive:
        content = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if content > size:
        raise ValueError(f"it unpacks to {content} bytes from {size}; torch.save does not compress")


def rename(state: dict[str, Tensor], before: str, after: str) -> None:
    """Gives all names that begin with `before` another beginning."""
    for name in [name for name in state if name.startswith(before)]:
        state[after + name.removeprefix(before)] = state.pop(name)


def trunk_weights(
    net: str, given: str | PathLike[str] | Mapping[str, Tensor] | None, progress: bool
) -> dict[str, Tensor]:
    """ImageNet weights of a trunk under the names of torchvision's `features`: '0.weight', '0.bias', ...

    Args:
        net: 'alex', 'vgg' or 'squeeze'.
        given: a file, or tensors by name, with torchvision's names (`features.0.weight` or `0.weight`), or None for
            torchvision's own: from its cache under TORCH_HOME, else downloaded there and checked by hash.
        progress: whether a download shows a progress bar.

    Raises:
        FileNotFoundError; ValueError where the file cannot be read, or a value is NaN, infinite or no floating-point
            number; RuntimeError where torchvision's are neither there nor can be downloaded.
    """
    source: object = "trunk_weights" if isinstance(given, Mapping) else given
    if given is None:
        source = path = _torchvision_file(net, progress)
        try:
            state = read_state_dict(path)
        except ValueError as error:
            raise ValueError(f"{error}. Once it is deleted, it is downloaded anew") from error
    elif isinstance(given, Mapping):
        state = checked_state_dict(given, "trunk_weights")
    elif isinstance(given, str | PathLike):
        state = read_state_dict(given)
    else:
        kind = type(given).__name__
        raise TypeError(f"trunk_weights must be the path of a file or tensors by name (a state_dict), got {kind}")
    prefix = "features."
    if any(name.startswith(prefix) for name in state):  # a whole torchvision model
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    check_values(source, state)
    return state


def _torchvision_file(net: str, progress: bool) -> Path:
    """The file of torchvision's weights in its cache, downloaded if need be."""
    url = NETS[net].url
    name = Path(url).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    try:
        if not path.exists():
            (sha256,) = re.findall(r"-([0-9a-f]{8,})\.", name)
            download(url, path, sha256, progress)
    except OSError as error:
        raise RuntimeError(
            f"the ImageNet weights of the {net!r} trunk are neither in {path.parent} nor can they be downloaded "
            f"({error}). Three ways to provide them: (1) connect to the internet once, and they are downloaded on "
            f"first use; (2) put {name} (from {url}) into $TORCH_HOME/hub/checkpoints; "
            f"(3) pass trunk_weights= (--trunk-weights), a file or a state_dict with torchvision's names."
        ) from error
    return path

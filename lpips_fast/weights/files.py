"""Files of tensors by name: written whole or not at all, read without running any code that they may hold."""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lpips_fast._checks import check_path
from lpips_fast._files import replacing


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

"""Files of tensors by name, as .safetensors or as torch.save writes them, and pickles of NumPy arrays in dicts.

Writing is atomic: the file is there whole or not at all. Reading runs no code that a file may hold, checks what a file
claims about itself before it uses that, and names the file in every error.
"""

from __future__ import annotations

import hashlib
import mmap
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lpips_fast._checks import check_path
from lpips_fast._files import replacing
from lpips_fast.weights.numpy_pickle import read_pickle


def save_state_dict(path: str | PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Writes tensors by name, whole or not at all; the suffix .safetensors decides the format, any other is torch's."""
    path = Path(path)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            try:
                save_file(state, temporary)
            except SafetensorError as error:  # as when the disk is full
                raise OSError(f"{path} cannot be written: {error}") from error
        else:
            torch.save(state, temporary)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of the values of tensors, converted to float32."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def read_state_dict(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors by name in a .safetensors or a torch file; raises as `read_file` and `checked_state_dict` do."""
    return checked_state_dict(read_file(path), path)


def checked_state_dict(content: object, path: str | PathLike[str]) -> dict[str, Tensor]:
    """The content of a file, if it is dense tensors by name; a ValueError that names the file if it is not."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold tensors by name (a state_dict), got {type(content).__name__}")
    content = dict(items(content))
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(
                f"{path} must hold tensors by name (a state_dict), got one of type {kind} by the name {name!r:.99}"
                + (
                    ": save what that holds in a file of its own, or read a whole model with model_path= (--weights)"
                    if isinstance(tensor, Mapping)
                    else ""
                )
            )
        tensor = content[name] = Tensor.detach(tensor)  # drops attributes that a file can set, such as `numel`
        if odd := _odd_kind(tensor):
            raise ValueError(f"{path}: {name!r} must be an ordinary tensor, got one that is {odd}")
    storages = [tensor.untyped_storage() for tensor in content.values()]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    used = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if used > 2 * held:  # lpips saves some tensors twice; a small hostile file lists a large one a million times
        raise ValueError(f"{path} has {len(content)} tensors that share memory, {used} bytes in {held}")
    return content


def items(content: Mapping[Any, Any]) -> Iterable[tuple[Any, Any]]:
    """Keys and values. The dict's own methods are not called: a file can replace the methods of an OrderedDict."""
    return dict.items(content) if isinstance(content, dict) else content.items()


def _odd_kind(tensor: Tensor) -> str | None:
    """What makes a tensor unfit for weights, or None."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return "nested" if tensor.is_nested else str(tensor.layout)
    if tensor.is_floating_point() and tensor.element_size() < 2:
        return f"of type {tensor.dtype}"
    if tensor.is_quantized or tensor.is_meta:
        return "quantized" if tensor.is_quantized else "on the meta device"
    # A file of a few bytes could claim terabytes.
    return "expanded" if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() else None


def check_values(source: object, state: Mapping[str, Tensor]) -> None:
    """Raises a ValueError unless all values are floating point and finite."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{source}: {name!r} must be floating point, got {tensor.dtype}")
        if not tensor.float().isfinite().all():
            raise ValueError(f"{source}: {name!r} has values that are NaN or infinite")


class StandIn:
    """Replaces an object in a file that only code could rebuild. It takes any arguments and state and keeps nothing."""

    name = ""  # of the function or class that would have made the object

    def __new__(cls, *args: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _DictStandIn(StandIn):
    def __new__(cls, *args: object) -> Any:
        return OrderedDict()  # the only mapping that torch fills and that may have attributes


class _ListStandIn(StandIn):
    def __new__(cls, *args: object) -> Any:
        return []


_MOST_STAND_INS = 100  # torch searches the whole list at each step of unpickling
_safe_globals = threading.Lock()  # torch has one list of safe globals for the process


def read_file(path: str | PathLike[str], stand_ins: bool = False) -> object:
    """The content of a .safetensors file, a torch file, or a pickle of NumPy arrays in dicts.

    A torch file may hold tensors, numbers, strings and containers.

    Args:
        path: the file.
        stand_ins: whether a `StandIn` replaces any other object in a torch file, instead of an error. This runs no
            code, neither the file's nor that of the modules the file names.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: path is no path.
        ValueError: the file cannot be read.
    """
    check_path("path", path)
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no weights file {path}")
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ValueError(f"{path} cannot be read as a weights file: it is a folder, a device or a pipe")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if zipfile.is_zipfile(path):
            _check_archive(path)
            if stand_ins:
                return _load_with_stand_ins(path)
        elif _is_pickle(path):
            # A file's own `read` would make room for as many bytes as the pickle claims to have.
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pickled:
                return read_pickle(pickled)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile file makes a reader raise nearly anything
        raise ValueError(f"{path} cannot be read as a weights file: {_reason(error)}") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as a pickle, but not as the number that begins a file of torch.save before torch 1.6."""
    with path.open("rb") as file:
        begin = file.read(3)
    return begin[:1] == pickle.PROTO and begin[2:] != pickle.LONG1


def _load_with_stand_ins(path: Path) -> object:
    """The content of a torch file, with stand-ins for the objects that torch's safe reader refuses.

    torch's safe reader calls only the functions and classes on its list. For the time of the call, each name that the
    file needs and the list lacks is registered for a stand-in. The reader fills only objects whose type is exactly dict
    or list. So if the first attempt fails, because a stand-in should take items, the second makes an empty dict for
    each name, and an empty list for a deque. Names of numpy and functools keep plain stand-ins: their state fits no
    dict.
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
    """The cause in a reader's error, without torch's advice on how to run the code in the file."""
    if code := re.search(r"GLOBAL (\S+) (?:was not|whose module)", str(error)):
        return takes_code(code[1])
    if "weights_only" in str(error):
        return "it is no file of torch.save, or holds more than tensors"
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def takes_code(name: str) -> str:
    """The reason to refuse a file that holds an object made by this function or class."""
    return f"it holds {name:.99}, which takes code to read; save tensors by name (a state_dict) instead"


def _check_archive(path: Path) -> None:
    """Raises a ValueError if the content is larger than the file: torch.save never compresses, a bomb does."""
    with zipfile.ZipFile(path) as archive:
        content = sum(entry.file_size for entry in archive.infolist())
    size = path.stat().st_size
    if content > size:
        raise ValueError(f"it unpacks to {content} bytes from {size}; torch.save does not compress")

"""The two names of a linear layer of LPIPS, `lin{k}` and `lins.{k}`.

In `lpips` each layer is registered twice, and torch.func.functional_call does not put back what it swaps in such a
layer. Here it is registered as `lin{k}` alone. This file makes the second name: for code (`Lins`) and in the state_dict
(`name_twice`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lpips_fast.lpips import LPIPS


class Lins(nn.ModuleList):
    """`LPIPS.lins`: a list whose modules are the owner's linear layers. Slices and copies are lists of their own."""

    def __getattr__(self, name: str) -> Any:
        module = cast(nn.Module, super().__getattr__(name))
        # Names lead here, as in functional_call, not indices.
        if not name.isdecimal() or not isinstance(self._modules, Layers):
            return module
        if torch.compiler.is_compiling():  # then functional_call does not learn that the two names are one
            if not all(isinstance(p, nn.Parameter) for p in module.parameters()):
                raise RuntimeError(f"lin{name} and lins.{name} are one layer, whose tensors were swapped: name it once")
            return module
        return _detached(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return nn.ModuleList, (list(self),)


class Layers(MutableMapping[str, nn.Module]):
    """The modules of `LPIPS.lins` by number. They are the owner's: to set one here sets it there."""

    def __init__(self, owner: LPIPS) -> None:
        self._owner = owner

    def __iter__(self) -> Iterator[str]:
        return (str(k) for k in range(len(self._owner.chns)) if f"lin{k}" in self._owner._modules)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, number: str) -> nn.Module:
        if number not in iter(self):
            raise KeyError(number)
        return getattr(self._owner, f"lin{number}")

    def __setitem__(self, number: str, layer: nn.Module) -> None:
        if number not in iter(self):
            raise self._other_length()
        setattr(self._owner, f"lin{number}", layer)

    def __delitem__(self, number: str) -> None:
        raise self._other_length()

    def _other_length(self) -> ValueError:
        return ValueError(
            f"lins must stay {len(self)} layers: to replace one, set fn.lin{{k}} or fn.lins[k]; "
            "to leave out the last ones, set fn.L, the number of taps to use"
        )


def _detached(module: nn.Module) -> nn.Module:
    """A module with the same names and tensors; to swap tensors in it leaves the other as it is.

    functional_call swaps tensors under every name they have, and puts back in the same order what it found. In one
    module that has two names, what it found under the second would be what it had put there under the first.
    """
    shell = nn.Module()
    shell._parameters.update(module._parameters)
    shell._buffers.update(module._buffers)
    shell._modules.update({name: part and _detached(part) for name, part in module._modules.items()})
    return shell


def name_twice(module: LPIPS) -> None:
    """Has the state_dict name the linear layers' tensors `lins.{k}.*`, too, as in `lpips`, and take both."""
    module.register_state_dict_post_hook(_to_both_names)
    module.register_load_state_dict_pre_hook(_from_both_names)


def saved_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's state_dict, with their names; state_dict itself would call hooks."""
    for path, part in module.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, tensor


def _to_both_names(module: LPIPS, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    for k in Layers(module):
        own = f"{prefix}lin{k}."
        for name in [name for name in state if name.startswith(own)]:
            state[f"{prefix}lins.{k}.{name.removeprefix(own)}"] = state[name]


def _from_both_names(module: LPIPS, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Loads what is under the second name, as `lpips` does in the end. A name that is absent is missing, as there.

    safetensors, which saves one of several names of a tensor, counts on that.
    """
    missing: list[str] = rest[2]
    errors: list[str] = rest[-1]
    for k, lin in Layers(module).items():
        for name, _ in saved_tensors(lin):
            own, second = f"{prefix}lin{k}.{name}", f"{prefix}lins.{k}.{name}"
            if second not in state:
                if not _is_sharded(state.get(own)):  # DCP hands on the names of parameters alone
                    missing.append(second)
            elif own not in state:
                missing.append(own)
                state[own] = state.pop(second)
            else:
                tensor = state.pop(second)
                shapes = [str(list(getattr(t, "shape", ()))) for t in (state[own], tensor)]
                if shapes[0] != shapes[1]:
                    errors.append(f"{own} and {second} are one tensor, got shapes {' and '.join(shapes)}")
                # DCP shards full tensors under the names of parameters, and leaves the others as they are.
                if _is_sharded(tensor) or not _is_sharded(state[own]):
                    state[own] = tensor


def _is_sharded(tensor: object) -> bool:
    return hasattr(tensor, "device_mesh")  # a DTensor

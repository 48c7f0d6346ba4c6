"""What torch does around a call (recording, transforming, compiling, autocast), and whether operators can take part."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.utils import _python_dispatch


def is_recorded() -> bool:
    """Whether torch.export, torch.jit.trace or torch.onnx.export records the call as a program to be run elsewhere."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def plain_torch_only() -> bool:
    """Whether the trunk must use torch's own operators, and the head the reference.

    Our operators cannot take part in torch.func.vmap and forward-mode differentiation (torch.func.jvp,
    torch.autograd.forward_ad), and a recorded program may run where they are not installed.
    """
    if is_recorded() or forward_ad._current_level >= 0:
        return True
    return any(i.key() == _functorch.TransformType.Vmap for i in _functorch.get_interpreter_stack() or ())


def in_torch_func() -> bool:
    """Whether any transformation of torch.func is active."""
    return bool(_functorch.get_interpreter_stack())


@contextlib.contextmanager
def unobserved() -> Iterator[None]:
    """Hides operators from modes that watch them, such as FlopCounterMode. torch's own FakeTensorMode stays active."""
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    with contextlib.ExitStack() as stack:
        for _ in (mode for mode in modes if not mode.is_infra_mode()):  # torch pops its own modes last
            stack.enter_context(_python_dispatch._pop_mode_temporarily())
        yield


# torch.compile takes the answers as constants, and compiles again under other transformations.
for _function in (is_recorded, plain_torch_only, in_torch_func):
    _function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_batched(*grads: Tensor) -> bool:
    """Whether any of the gradients is a batch of gradients, which the backward must process at once.

    vmap makes such batches (torch.func.jacrev uses it); so does torch.autograd.grad with is_grads_batched=True, in
    another way.
    """
    return plain_torch_only() or (
        not torch.compiler.is_compiling() and any(map(_functorch.is_legacy_batchedtensor, grads))
    )


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether a backward of these tensors is itself being differentiated.

    In a backward that torch.func.vjp runs, gradients are enabled, but the inputs have left their graph: level -2.
    """
    level = _functorch.maybe_get_level
    return torch.is_grad_enabled() and any(t.requires_grad and level(t) != -2 for t in tensors)


def has_saved_tensor_hooks() -> bool:
    """Whether a hook now takes the tensors that are saved for a backward, as activation checkpointing does."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def keeps_graph() -> bool:
    """Whether the running backward may run again (retain_graph=True)."""
    return torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph()


def is_autocast_enabled(device: torch.device) -> bool:
    """torch.is_autocast_enabled, but False on the device meta, which has no autocast and makes torch raise an error."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Switches autocast off if it is on, and else does nothing: torch.export would record a switch with its device."""
    return torch.autocast(device.type, enabled=False) if is_autocast_enabled(device) else contextlib.nullcontext()


def to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype), or x if it has that type: torch.export would record the call with a check of the device."""
    return x if x.dtype == dtype else x.to(dtype)


def with_signature(function: Callable[..., Any]) -> Callable[..., Any]:
    """Attaches the function's signature to it: autograd.Function.apply would otherwise compute it at each call."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


def as_plain_tensor(tensor: Tensor) -> Tensor:
    """The tensor, still in its graph, without what a subclass adds (MONAI's MetaTensor, torchvision's tv_tensors).

    Subclasses with their own `__torch_dispatch__` (DTensor, FakeTensor) stay as they are.
    """
    kind = type(tensor)
    if kind in (Tensor, torch.nn.Parameter) or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return tensor
    return tensor.as_subclass(Tensor)

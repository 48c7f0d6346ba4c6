"""What of torch.func and of double backward goes on around a call, and whether the compiled operators can take part.

They know neither torch.func.vmap nor forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad). Under
these all is computed in plain torch: the trunk by its own operators, the head by the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether vmap or forward-mode differentiation is at work."""
    stack = _functorch.get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(i.key() == _functorch.TransformType.Vmap for i in stack)


# A constant to torch.compile, which compiles anew under other transforms.
is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_batched(*grads: Tensor) -> bool:
    """Whether they are several gradients each, that a backward is to take back at once.

    vmap brings such (torch.func.jacrev does it), and is_grads_batched=True of torch.autograd.grad, by other means.
    """
    if torch.compiler.is_compiling():
        return is_transformed()
    return is_transformed() or any(map(_functorch.is_legacy_batchedtensor, grads))


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether a backward, of these tensors, is itself being differentiated.

    Where torch.func.vjp runs it, gradients are enabled, but its inputs have left their graph (their level is -2).
    """
    level = _functorch.maybe_get_level
    return torch.is_grad_enabled() and any(t.requires_grad and level(t) != -2 for t in tensors)

"""Convolutions that take their use of TF32 as an argument. torch has flags for it, which belong to the whole process.

Setting the flags around a call would change what other threads compute. The call could not restore the flags, either: a
flag that was never set reads as the flag that it inherits from. Devices other than CUDA's ignore the argument.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo  # torch.compiler.disable would import torch._dynamo now
from torch.nn import grad as grad_of_conv2d
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_fast._torch_state import is_recorded


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, tf32: bool | None) -> Tensor:
    """torch's conv2d, with TF32 or without it; with None, as torch's flags say."""
    if _follows_flags(tf32, x.device):
        return F.conv2d(x, weight, bias, stride, padding)
    return _convolution(x, weight, bias, stride, padding, (0, 0), False, tf32)


def conv2d_input(
    size: Sequence[int], weight: Tensor, grad: Tensor, stride: int, padding: int, tf32: bool | None
) -> Tensor:
    """dL/dx of `conv2d` from grad = dL/dy, for x of the size [N, C, H, W]."""
    follows_flags = _follows_flags(tf32, grad.device)
    if follows_flags and not _is_cuda(grad.device):
        return grad_of_conv2d.conv2d_input(size, weight, grad, stride, padding)
    # This is a transposed convolution. torch's function for gradients takes a tensor of x's size, although it does not
    # need the values, and on a GPU it writes one, too. The output is padded to the size of x, because the last windows
    # may end before x does.
    sides = zip(size[2:], grad.shape[2:], weight.shape[2:], strict=True)
    output_padding = [side - ((out - 1) * stride + kernel - 2 * padding) for side, out, kernel in sides]
    if follows_flags:
        return F.conv_transpose2d(grad, weight, None, stride, padding, output_padding)
    return _convolution(grad, weight, None, stride, padding, output_padding, True, tf32)


def allows_tf32(tf32: bool | None) -> bool:
    """Whether CUDA's float32 convolutions may use TF32; None: as torch's flags say."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32" if tf32 is None else tf32  # type: ignore[attr-defined]


# torch.compile takes the answer as a constant: it cannot trace reading the flag.
allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def tf32_for_all(tf32: bool | None, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which all convolutions of this thread, also in called modules, use TF32 as `conv2d` does."""
    return contextlib.nullcontext() if _follows_flags(tf32, device) else _TF32ForAll(tf32)


def _follows_flags(tf32: bool | None, device: torch.device) -> bool:
    # A recorded program follows the flags of the process that runs it.
    return tf32 is None or not _is_cuda(device) or is_recorded()


def _is_cuda(device: torch.device) -> bool:
    return device.type == "cuda"


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    output_padding: Sequence[int],
    transposed: bool,
    tf32: bool | None,
) -> Tensor:
    geometry = ((stride, stride), (padding, padding), (1, 1), transposed, output_padding, 1)
    function = _untraced if torch.compiler.is_compiling() else torch.ops.aten._convolution
    return function(x, weight, bias, *geometry, *_cudnn_arguments(tf32))


@_disable_dynamo
def _untraced(*args: Any) -> Tensor:
    """aten._convolution outside the compiled graph: Inductor's convolution follows the flags, whatever the argument."""
    return torch.ops.aten._convolution(*args)


def _cudnn_arguments(tf32: bool | None) -> tuple[Any, ...]:
    """The last arguments of aten._convolution. aten.convolution lacks them and takes them from the flags."""
    flags = torch.backends.cudnn
    return flags.benchmark, flags.deterministic or torch.are_deterministic_algorithms_enabled(), flags.enabled, tf32


class _TF32ForAll(TorchDispatchMode):
    def __init__(self, tf32: bool | None) -> None:
        super().__init__()
        self.tf32 = tf32

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            func, args = torch.ops.aten._convolution.default, (*args, *_cudnn_arguments(self.tf32))
        return func(*args, **(kwargs or {}))

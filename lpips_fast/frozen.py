"""Running a frozen trunk forwards and backwards, keeping the least that the gradient to the image needs.

With frozen weights the gradient of y = relu(conv(x)) to x needs the weights and the sign of y, not x; a pool's needs
its input. Every pool's input is a tap, which the head keeps anyway. So what is kept is the taps, and one bit a value
for the other ReLUs' signs: for VGG16 33 MB an image of 256 x 256 in float32, where autograd keeps 95 MB.

`run` and `run_backward` are plain functions that need no autograd; `frozen_trunk` is a differentiable one around them.
A trunk is given as a `Setting`, which torch.compile takes for a constant, and its tensors, weight, bias, weight, bias,
..., in the setting's type and layout. `affine` is what it does to images first: (x - shift) / scale, or nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from . import trunk_ops


class Conv(NamedTuple):
    """y = relu(conv2d(x)), weight and bias being tensors `at` and `at` + 1; `tap` where y is one.

    All have stride 1 but a trunk's first.
    """

    at: int
    stride: int
    padding: int
    tap: bool


class Pool(NamedTuple):
    """The maximum over windows; its input is the latest tap."""

    kernel: int
    stride: int
    ceil_mode: bool


class Fire(NamedTuple):
    """SqueezeNet's module: s = squeeze(x), y = cat(expand1x1(s), expand3x3(s)), each with its ReLU."""

    squeeze: Conv
    expand1x1: Conv
    expand3x3: Conv
    tap: bool


Plan = tuple[Conv | Pool | Fire, ...]
Affine = tuple[Tensor, Tensor] | tuple[None, None]  # shift and scale


class Setting(NamedTuple):
    """What to compute and how: in which type and layout, and whether CUDA's float32 convolutions may use TF32."""

    plan: Plan
    dtype: torch.dtype
    layout: torch.memory_format
    tf32: bool | None  # None: as torch's flags have it

    @property
    def n_taps(self) -> int:
        return sum(not isinstance(step, Pool) and step.tap for step in self.plan)


@contextlib.contextmanager
def _tf32(allowed: bool | None, device: torch.device) -> Iterator[None]:
    """CUDA's float32 convolutions with TF32 or without; None as torch's flags have it."""
    if allowed is None or device.type != "cuda":
        yield
        return
    flags = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # not in torch's stubs
    before = flags.fp32_precision
    flags.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        flags.fp32_precision = before


def run(
    setting: Setting, x: Tensor, affine: Affine, tensors: Sequence[Tensor], keep: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The taps of images x [N, 3, H, W] and, if asked to keep them, the signs that `run_backward` needs."""
    shift, scale = affine
    taps: list[Tensor] = []
    signs: list[Tensor] = []
    with torch.autocast(x.device.type, enabled=False), _tf32(setting.tf32, x.device):
        if shift is not None and scale is not None:
            x = (x - shift) / scale
        x = x.to(setting.dtype).contiguous(memory_format=setting.layout)
        for step in setting.plan:
            if isinstance(step, Pool):
                x = F.max_pool2d(x, step.kernel, step.stride, ceil_mode=step.ceil_mode)
                continue
            if isinstance(step, Conv):
                x = _conv_relu(x, step, tensors)
            else:
                s = _conv_relu(x, step.squeeze, tensors)
                if keep:
                    signs.append(trunk_ops.pack_signs(s))
                x = torch.cat((_conv_relu(s, step.expand1x1, tensors), _conv_relu(s, step.expand3x3, tensors)), dim=1)
            if step.tap:
                taps.append(x)
            elif keep:
                signs.append(trunk_ops.pack_signs(x))
    return taps, signs


def run_backward(
    setting: Setting,
    x: Tensor,
    affine: Affine,
    tensors: Sequence[Tensor],
    taps: Sequence[Tensor],
    signs: Sequence[Tensor],
    d_taps: Sequence[Tensor],
) -> Tensor:
    """dL/dx of `run`, in the setting's type, from what it returned and dL/dtaps; of x only the shape counts."""
    scale = affine[1]
    plan, taps, signs, d_taps = setting.plan, list(taps), list(signs), list(d_taps)
    with _tf32(setting.tf32, x.device):
        # From here on grad is dL/d(what goes into the ReLU of the step at hand), or for a pool, dL/d(its output).
        grad = trunk_ops.tap_backward(taps.pop(), d_taps.pop(), None, None)
        for number in reversed(range(len(plan))):
            step, before = plan[number], plan[number - 1] if number else None
            if isinstance(step, Pool):
                grad = trunk_ops.tap_backward(taps.pop(), d_taps.pop(), grad, step)
                continue
            if isinstance(step, Fire):
                c = tensors[step.expand1x1.at].shape[0]
                d_s = _conv_backward(grad[:, :c], step.expand1x1, tensors)
                grad = _conv_backward(grad[:, c:], step.expand3x3, tensors, addend=d_s, passes=signs.pop())
                step = step.squeeze
            if before is None:
                grad = _conv_backward(grad, step, tensors, size=(x.shape[2], x.shape[3]))
            elif isinstance(before, Pool):
                grad = _conv_backward(grad, step, tensors)
            elif before.tap:
                grad = _conv_backward(grad, step, tensors, addend=d_taps.pop(), passes=taps.pop())
            else:
                grad = _conv_backward(grad, step, tensors, passes=signs.pop())
        return grad if scale is None else grad / scale


def _conv_relu(x: Tensor, conv: Conv, tensors: Sequence[Tensor]) -> Tensor:
    weight, bias = tensors[conv.at], tensors[conv.at + 1]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding).relu_()


def _conv_backward(
    grad: Tensor,
    conv: Conv,
    tensors: Sequence[Tensor],
    *,
    size: tuple[int, int] | None = None,
    addend: Tensor | None = None,
    passes: Tensor | None = None,
) -> Tensor:
    """dL/dx of a convolution from dL/dy, plus `addend`; and on through the ReLU that x came from.

    `passes` is that ReLU's output, or its signs (None: there is no ReLU); `size` the height and width of x where the
    stride is not 1.
    """
    weight = tensors[conv.at]
    if size is None:
        height, width = (side + weight.shape[2] - 1 - 2 * conv.padding for side in grad.shape[2:])
    else:
        height, width = size
    shape = (grad.shape[0], weight.shape[1], height, width)
    d_x = conv2d_input(shape, weight, grad, conv.stride, conv.padding)
    if addend is not None:
        d_x = d_x + addend
    if passes is None:
        return d_x
    if passes.dtype == torch.uint8:
        return trunk_ops.mask_by_signs(d_x, passes)
    return torch.ops.aten.threshold_backward(d_x, passes, 0)


class _FrozenTrunk(torch.autograd.Function):
    """The taps, then the signs, with `run_backward` as the derivative; nothing for the tensors."""

    @staticmethod
    def forward(setting, x, shift, scale, *tensors):
        taps, signs = run(setting, x, (shift, scale), tensors, keep=True)
        return *taps, *signs

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.setting, *tensors = inputs
        ctx.n_outputs = len(output)
        ctx.mark_non_differentiable(*output[ctx.setting.n_taps :])
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx, *grads):
        setting = ctx.setting
        outputs, inputs = ctx.saved_tensors[: ctx.n_outputs], ctx.saved_tensors[ctx.n_outputs :]
        x, shift, scale, *tensors = inputs
        taps, signs = outputs[: setting.n_taps], outputs[setting.n_taps :]
        d_taps = grads[: setting.n_taps]
        if torch.is_grad_enabled():  # the backward is itself being differentiated
            (d_x,) = torch.autograd.grad(run(setting, x, (shift, scale), tensors)[0], x, d_taps, create_graph=True)
        else:
            d_x = run_backward(setting, x, (shift, scale), tensors, taps, signs, d_taps).to(x.dtype)
        return None, d_x, *(None for _ in inputs[1:])


def frozen_trunk(setting: Setting, x: Tensor, affine: Affine, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The taps of images x [N, 3, H, W], differentiable in x; keeps little for that, and only if x needs it."""
    if torch.is_grad_enabled() and x.requires_grad:
        return list(_FrozenTrunk.apply(setting, x, *affine, *tensors)[: setting.n_taps])
    return run(setting, x, affine, tensors)[0]

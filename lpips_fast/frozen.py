"""Running a frozen trunk forwards and backwards, keeping the least that the gradient to the image needs.

With frozen weights the gradient of y = relu(conv(x)) to x needs the weights and the sign of y, not x; a pool's needs
its input. Every pool's input is a tap, which the head keeps anyway. So what is kept is the taps, and one bit a value
for the other ReLUs' signs: for VGG16 33 MB an image of 256 x 256 in float32, where autograd keeps 95 MB.

`run` and `run_backward` are plain functions that need no autograd; `frozen_trunk` is a differentiable one around them.
A trunk is given as a `Setting`, which torch.compile takes for a constant, and its tensors (weight, bias, weight,
bias, ...) in the setting's type and layout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import trunk_ops


class Conv(NamedTuple):
    """y = relu(conv2d(x)), its weight and bias the tensors at `index` and `index` + 1; `tap` where y is one.

    All have stride 1 but a trunk's first.
    """

    index: int
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
    flags = torch.backends.cudnn.conv
    before = flags.fp32_precision
    flags.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        flags.fp32_precision = before


def run(
    setting: Setting, x: Tensor, tensors: Sequence[Tensor], keep: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The taps of scaled images x [N, 3, H, W] and, if asked to keep them, the signs that `run_backward` needs."""
    with torch.autocast(x.device.type, enabled=False), _tf32(setting.tf32, x.device):
        layout = setting.layout
        x = x.to(setting.dtype).contiguous(memory_format=layout)
        taps: list[Tensor] = []
        signs: list[Tensor] = []
        for step in setting.plan:
            if isinstance(step, Pool):
                x = F.max_pool2d(x, step.kernel, step.stride, ceil_mode=step.ceil_mode)
                continue
            if isinstance(step, Conv):
                x = _conv_relu(x, step, tensors)
            else:
                s = _conv_relu(x, step.squeeze, tensors)
                x = torch.cat((_conv_relu(s, step.expand1x1, tensors), _conv_relu(s, step.expand3x3, tensors)), dim=1)
                if keep:
                    signs.append(trunk_ops.pack_signs(s, layout))
            if step.tap:
                taps.append(x)
            elif keep:
                signs.append(trunk_ops.pack_signs(x, layout))
        return taps, signs


def run_backward(
    setting: Setting,
    image_size: tuple[int, int],
    tensors: Sequence[Tensor],
    taps: Sequence[Tensor],
    signs: Sequence[Tensor],
    d_taps: Sequence[Tensor],
) -> Tensor:
    """dL/dx of `run` on images of the given height and width, from what it returned and dL/dtaps."""
    plan, layout = setting.plan, setting.layout
    taps, signs, d_taps = list(taps), list(signs), list(d_taps)
    grad: Tensor | None = None  # dL/d(output of the step at hand), but for what a tap receives from the head
    pool: Pool | None = None  # the step just passed, where that was a pool: grad is then still of the pool's output
    with _tf32(setting.tf32, taps[0].device):
        for number in reversed(range(len(plan))):
            step = plan[number]
            if isinstance(step, Pool):
                pool = step
                continue
            if step.tap:
                grad = trunk_ops.tap_backward(taps.pop(), d_taps.pop(), grad, pool)
                pool = None
            else:
                assert grad is not None  # a plan ends in a tap
                grad = trunk_ops.mask_by_signs(grad, signs.pop(), layout)
            if isinstance(step, Fire):
                c = tensors[step.expand1x1.index].shape[0]
                d_s = _conv_backward(grad[:, :c], step.expand1x1, tensors)
                d_s += _conv_backward(grad[:, c:], step.expand3x3, tensors)
                step, grad = step.squeeze, trunk_ops.mask_by_signs(d_s, signs.pop(), layout)
            grad = _conv_backward(grad, step, tensors, image_size if number == 0 else None)
    assert grad is not None
    return grad


def _conv_relu(x: Tensor, conv: Conv, tensors: Sequence[Tensor]) -> Tensor:
    weight, bias = tensors[conv.index], tensors[conv.index + 1]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding).relu_()


def _conv_backward(
    grad: Tensor, conv: Conv, tensors: Sequence[Tensor], size: tuple[int, int] | None = None
) -> Tensor:
    """dL/dx from dL/dy, its ReLU already seen to; x has the given height and width (None: as stride 1 makes it)."""
    weight = tensors[conv.index]
    if size is None:
        height, width = (side + weight.shape[2] - 1 - 2 * conv.padding for side in grad.shape[2:])
    else:
        height, width = size
    return torch.nn.grad.conv2d_input(
        (grad.shape[0], weight.shape[1], height, width), weight, grad, conv.stride, conv.padding
    )


class _FrozenTrunk(torch.autograd.Function):
    """The taps, then the signs, with `run_backward` as the derivative; nothing for the tensors."""

    @staticmethod
    def forward(setting, x, *tensors):
        taps, signs = run(setting, x, tensors, keep=True)
        return *taps, *signs

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.setting, x, *tensors = inputs
        ctx.n_outputs = len(output)
        ctx.mark_non_differentiable(*output[ctx.setting.n_taps :])
        ctx.save_for_backward(*output, x, *tensors)

    @staticmethod
    def backward(ctx, *grads):
        setting = ctx.setting
        outputs, (x, *tensors) = ctx.saved_tensors[: ctx.n_outputs], ctx.saved_tensors[ctx.n_outputs :]
        taps, signs = outputs[: setting.n_taps], outputs[setting.n_taps :]
        d_taps = grads[: setting.n_taps]
        if torch.is_grad_enabled():  # the backward is itself being differentiated
            (d_x,) = torch.autograd.grad(run(setting, x, tensors)[0], x, d_taps, create_graph=True)
        else:
            d_x = run_backward(setting, (x.shape[2], x.shape[3]), tensors, taps, signs, d_taps).to(x.dtype)
        return None, d_x, *(None for _ in tensors)


def frozen_trunk(setting: Setting, x: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The taps of scaled images x [N, 3, H, W], differentiable in x; keeps little for that, and only if x needs it."""
    if torch.is_grad_enabled() and x.requires_grad:
        return list(_FrozenTrunk.apply(setting, x, *tensors)[: setting.n_taps])
    return run(setting, x, tensors)[0]

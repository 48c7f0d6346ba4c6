"""What a trunk computes, as data: its steps, and how they are to be done. torch.compile takes both for constants."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lpips_fast.trunk.cpu_layers import Filters


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
    tf32: bool | None = None  # None: as torch's flags have it
    frozen: bool = False  # whether its tensors need no gradient: then little is kept (frozen.py)
    filters: Filters | None = None  # of the CPU's convolutions by Winograd's algorithm, if there are to be any
    triton: bool = False  # whether Triton's kernels do what lies between the convolutions
    cudnn_relu: bool = False  # whether cuDNN's convolution adds the bias and applies the ReLU (gpu_layers.py)
    plain_plan: Plan = ()  # the plan in torch's operators, where that is another

    def plain(self) -> Setting:
        """The same in torch's operators alone, which can be differentiated and transformed."""
        plan = self.plain_plan or self.plan
        return self._replace(plan=plan, filters=None, triton=False, cudnn_relu=False, plain_plan=())

    @property
    def n_taps(self) -> int:
        return sum(not isinstance(step, Pool) and step.tap for step in self.plan)

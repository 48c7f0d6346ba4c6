"""What a trunk computes and how, as hashable data; torch.compile takes it as a constant.

A plan is the list of a trunk's steps up to its last tap. Each step is one convolution, or two side by side, with the
ReLU after it and the pool after that, if there is one. Every pool's input is a tap.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Pool(NamedTuple):
    """The maximum over windows of `kernel` x `kernel` pixels."""

    kernel: int
    stride: int
    ceil_mode: bool

    def side(self, side: int) -> int:
        """How many windows there are along `side` pixels, as in torch."""
        extra = self.stride - 1 if self.ceil_mode else 0
        windows = (side - self.kernel + extra) // self.stride + 1
        # A window must begin inside the image.
        return windows - 1 if self.ceil_mode and (windows - 1) * self.stride >= side else windows


POOL_2X2 = Pool(2, 2, False)  # VGG's, which an operator of the GPU computes with bias and ReLU


def conv_side(side: int, kernel: int, stride: int, padding: int) -> int:
    """How many outputs a convolution has along `side` pixels."""
    return (side + 2 * padding - kernel) // stride + 1


class Conv(NamedTuple):
    """y = relu(conv2d(x)). Every convolution but a trunk's first has stride 1."""

    at: int  # the weight is the trunk's tensor number `at`, the bias is the next one
    kernel: int  # its filters are of kernel x kernel pixels
    stride: int
    padding: int
    tap: bool  # whether y is a tap
    pool: Pool | None = None  # the pool that takes y, if any
    keeps_nan: bool = False  # whether NaN of the convolution must stay NaN in y: some of cuDNN's ReLUs make 0 of it


class Expand(NamedTuple):
    """The second half of SqueezeNet's Fire module: y = cat(relu(conv1x1(x)), relu(conv3x3(x))).

    The first half, its squeeze layer, is the `Conv` before this step; it is no tap.
    """

    conv1x1: Conv
    conv3x3: Conv
    merged_at: int  # the number of the weight of `gpu_layers.merged_filters` that does both convolutions
    tap: bool
    pool: Pool | None = None


Plan = tuple[Conv | Expand, ...]
Affine = tuple[Tensor, Tensor] | tuple[None, None]  # shift and scale


class Setting(NamedTuple):
    """What to compute, in which type and layout, and by which layers."""

    plan: Plan
    dtype: torch.dtype
    layout: torch.memory_format
    tf32: bool | None = None  # whether CUDA's float32 convolutions may use TF32; None: as torch's flags say
    frozen: bool = False  # whether `execute.FrozenTrunk` differentiates it; if not, autograd does, layer by layer
    layers: Literal["torch", "cpu", "gpu"] = "torch"  # torch_layers.py, cpu_trunk.py or gpu_layers.py
    always_winograd: bool = False  # cpu: whether Winograd's algorithm is used even where it is slower
    cudnn_relu: bool = False  # gpu: whether cuDNN's convolution adds the bias and applies the ReLU
    taps_as: torch.dtype | None = None  # the taps' type, if the processor does not compute in it; None: dtype

    @property
    def n_taps(self) -> int:
        return sum(step.tap for step in self.plan)

    @property
    def tap_dtype(self) -> torch.dtype:
        return self.taps_as or self.dtype

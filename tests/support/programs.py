"""Programs of the CPU trunk's operators with random weights, and their results in float64 by torch's layers."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from lpips_fast.trunk.cpu_filters import filters_of, panels
from lpips_fast.trunk.execute import run, run_backward
from lpips_fast.trunk.operators import Algorithm, CpuConv
from lpips_fast.trunk.program import Conv, Expand, Pool, Setting

ops = torch.ops.lpips_fast


class Layer(NamedTuple):
    """A convolution of a program."""

    cout: int
    kernel: int
    algorithm: Algorithm
    gradient: Algorithm
    stride: int = 1
    padding: int = 0
    tap: bool = True
    pool: Pool | None = None


def direct(cout, kernel, padding=None, **options):
    padding = kernel // 2 if padding is None else padding
    return Layer(cout, kernel, Algorithm.DIRECT, Algorithm.DIRECT, padding=padding, **options)


def winograd(cout, kernel, **options):
    return Layer(cout, kernel, Algorithm.WINOGRAD, Algorithm.WINOGRAD, padding=kernel // 2, **options)


def transposed(cout, **options):
    return Layer(cout, 3, Algorithm.WINOGRAD, Algorithm.TRANSPOSED, padding=1, **options)


def first(cout, kernel, stride=1, padding=0, **options):
    return Layer(cout, kernel, Algorithm.FIRST, Algorithm.COLUMNS, stride, padding, **options)


def phases(cout, kernel, stride, padding=0, **options):
    return Layer(cout, kernel, Algorithm.PHASES, Algorithm.PHASES, stride, padding, **options)


class Program:
    """A program for images of `cin` channels, with the filters for both operators.

    Args:
        layers: each a Layer, or two that are joined.
        seed: of the weights; `tensors` are weight, bias, weight, bias, ...
    """

    def __init__(self, cin: int, *layers: Layer | tuple[Layer, Layer], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tensors, self.convs, steps = [], [], []
        at = itertools.count(step=2)
        for layer in layers:
            pair = (layer,) if isinstance(layer, Layer) else layer
            for one in pair:
                weight = torch.randn(one.cout, cin, one.kernel, one.kernel, generator=generator)
                bias = torch.randn(one.cout, generator=generator) * 0.1
                joined = one is not pair[-1]
                ends = () if joined else (one.tap, *(one.pool or ()))
                shape = cin, one.cout, one.kernel, one.stride, one.padding
                self.convs.append(CpuConv(one.algorithm, one.gradient, *shape, joined, *ends))
                self.tensors += weight * (2 / weight[0].numel()) ** 0.5, bias
            conv, *more = (Conv(next(at), one.kernel, one.stride, one.padding, one.tap, one.pool) for one in pair)
            steps.append(Expand(conv, *more, 0, pair[-1].tap, pair[-1].pool) if more else conv)
            cin = sum(one.cout for one in pair)
        self.setting = Setting(tuple(steps), torch.float64, torch.contiguous_format)
        self.make_filters()

    def make_filters(self) -> None:
        """Makes the filters of `tensors`, which a test may have changed."""
        self.filters, self.turned = [], []
        for conv, weight, bias in zip(self.convs, self.tensors[::2], self.tensors[1::2], strict=True):
            self.filters += filters_of(conv.algorithm, weight, conv.stride), panels(bias).flatten()
            self.turned.append(filters_of(conv.gradient, weight, conv.stride, turned=True))

    @property
    def rows(self) -> list[int]:
        return [int(value) for conv in self.convs for value in conv]

    def forward(self, *images, affine=(None, None), signs=False):
        return ops.trunk_fwd_cpu(images, *affine, self.filters, self.rows, signs)

    def backward(self, size, taps, signs, d_taps, scale=None):
        return ops.trunk_bwd_cpu(taps, signs, d_taps, scale, self.turned, self.rows, *size)

    def exact(self, *images, affine=(None, None)):
        """The taps that `forward` returns, in float64."""
        images = [image.double() for image in images]
        return run(self.setting, images, _exact_affine(*affine), self._exact_tensors())[0]

    def exact_backward(self, size, taps, signs, d_taps, scale=None):
        """What `backward` returns for the same taps and signs, which decide where the gradient goes, in float64."""
        taps, d_taps = [t.double() for t in taps], [d.double() for d in d_taps]
        affine = _exact_affine(scale, scale)
        return run_backward(self.setting, (0, *size), affine, self._exact_tensors(), taps, signs, d_taps)

    def _exact_tensors(self):
        return [t.double() for t in self.tensors]


def _exact_affine(*affine):
    return tuple(None if t is None else t.double().view(-1, 1, 1) for t in affine)

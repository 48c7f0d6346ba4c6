"""Cases: a net, a number of pairs and a size; and the arithmetic and the memory traffic that a case takes.

Operations are counted as for direct convolution: a multiplication and an addition are two. Winograd's algorithm needs
fewer than are counted. The bytes are those that must cross the memory bus if everything between two convolutions is
fused: the input, output and weights of each convolution once, and each tap once in the head.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lpips_fast.bench.ceilings import Ceilings
from lpips_fast.lpips import LPIPS
from lpips_fast.trunk.nets import ALIASES, NETS

_SMALL = 64  # pixels a side; smaller images would measure what a call takes besides its arithmetic


class Case(NamedTuple):
    net: str
    pairs: int
    size: int  # of the square images' sides, in pixels

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case that NET:PAIRS:SIZE names, as in vgg:4:256.

        Raises:
            ValueError: the text has another form, or the images are too small for the net.
        """
        found = re.fullmatch(r"(\w+):([1-9]\d*):([1-9]\d*)", text)
        if found is None or found[1] not in ALIASES:
            raise ValueError(f"a case must be NET:PAIRS:SIZE with NET one of {', '.join(NETS)}, got {text!r}")
        case = cls(ALIASES[found[1]], int(found[2]), int(found[3]))
        smallest = NETS[case.net].min_size
        if case.size < smallest:
            raise ValueError(f"case {text!r}: net {case.net!r} needs images of at least {smallest} pixels a side")
        return case

    @property
    def small(self) -> Case:
        """One pair of images that are small, or as small as these."""
        return Case(self.net, 1, min(self.size, _SMALL))

    @property
    def pixels(self) -> int:
        """Of one image of each pair."""
        return self.pairs * self.size**2

    def __str__(self) -> str:
        return f"{self.net}:{self.pairs}:{self.size}"


class Layer(NamedTuple):
    """A convolution of the trunk, for one image."""

    name: str
    weights: int  # how many, without bias
    inputs: int  # values read
    outputs: int  # values written
    flops: int

    def bytes(self, images: int, itemsize: int) -> int:
        return itemsize * (self.weights + images * (self.inputs + self.outputs))


def images(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random images in [-1, 1] and noisy versions of them, [pairs, 3, size, size]."""
    gen = torch.Generator().manual_seed(0)
    in0 = torch.rand(case.pairs, 3, case.size, case.size, generator=gen) * 2 - 1
    in1 = (in0 + 0.2 * torch.randn(in0.shape, generator=gen)).clamp(-1, 1)
    return in0.to(device), in1.to(device)


@functools.cache
def random_lpips(net: str) -> LPIPS:
    """LPIPS on the CPU with the published linear weights and a random trunk, which is as fast as ImageNet's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LPIPS(net=net, pnet_rand=True)


def plain_taps(layers: LPIPS, x: Tensor) -> list[Tensor]:
    """The taps of images, computed as `lpips` does: by torch's layers, one after the other."""
    x = layers.scaling_layer(x)
    taps = []
    for slice_ in layers.net.slices:
        x = slice_(x)
        taps.append(x)
    return taps


@functools.cache
def trunk_layers(net: str, size: int) -> tuple[tuple[Layer, ...], tuple[tuple[int, int, int], ...]]:
    """The trunk's convolutions in order, and the taps' channels, height and width, for an image of this size.

    A convolution is numbered within its slice if that has several: conv1_2 is VGG's second before its first tap.
    """
    model = LPIPS(net=net, pnet_rand=True).to("meta")
    found: list[Layer] = []
    for k, slice_ in enumerate(model.net.slices, start=1):
        convolutions = [module for module in slice_.modules() if isinstance(module, nn.Conv2d)]
        for i, conv in enumerate(convolutions, start=1):
            name = f"conv{k}_{i}" if len(convolutions) > 1 else f"conv{k}"
            conv.register_forward_hook(functools.partial(_append_layer, found, name))
    taps = plain_taps(model, torch.empty(1, 3, size, size, device="meta"))
    return tuple(found), tuple((t.shape[1], t.shape[2], t.shape[3]) for t in taps)


def _append_layer(found: list[Layer], name: str, conv: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
    weights = conv.weight.numel()
    positions = output.shape[2] * output.shape[3]
    found.append(Layer(name, weights, inputs[0].numel(), output.numel(), 2 * weights * positions))


def work(case: Case, mode: str, itemsize: int) -> tuple[int, int]:
    """The floating-point operations and the bytes of a metric ('forward') or a training step ('step').

    A step takes one image of a pair back through the trunk: only the prediction needs a gradient, the target does not.
    """
    layers, taps = trunk_layers(case.net, case.size)
    images = 2 * case.pairs
    head = images * itemsize * sum(c * h * w for c, h, w in taps)
    flops = images * sum(layer.flops for layer in layers)
    n_bytes = head + sum(layer.bytes(images, itemsize) for layer in layers)
    if mode == "step":
        flops += case.pairs * sum(layer.flops for layer in layers)
        n_bytes += head + sum(layer.bytes(case.pairs, itemsize) for layer in layers)
    return flops, n_bytes


def limit(flops: int, n_bytes: int, precision: str, ceilings: Ceilings) -> float | None:
    """The least seconds that a machine takes: the larger of the times for arithmetic and memory; None if unknown."""
    rate = ceilings.flops_per_s.get(precision)
    if rate is None or ceilings.bytes_per_s is None:
        return None
    return max(flops / rate, n_bytes / ceilings.bytes_per_s)

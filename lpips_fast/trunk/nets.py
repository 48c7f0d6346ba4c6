"""AlexNet, VGG16 and SqueezeNet 1.1: their layers up to the last tap, and one table of all that differs between them.

Layers are numbered and named as in torchvision's `features`, so that they take its weights. The package does not import
torchvision, whose import takes longer than torch's.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn


def _conv_relu(cin: int, cout: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, kernel, stride, padding), nn.ReLU(inplace=True)]


def _alexnet() -> list[nn.Module]:
    return [
        *_conv_relu(3, 64, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv_relu(64, 192, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *_conv_relu(192, 384, 3, padding=1),
        *_conv_relu(384, 256, 3, padding=1),
        *_conv_relu(256, 256, 3, padding=1),
    ]


def _vgg16() -> list[nn.Module]:
    layers: list[nn.Module] = []
    cin = 3
    for stage, (cout, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for _ in range(convolutions):
            layers += _conv_relu(cin, cout, 3, padding=1)
            cin = cout
    return layers


class _Fire(nn.Module):
    """cat(expand1x1(s), expand3x3(s)) of s = squeeze(x), each with its ReLU."""

    def __init__(self, cin: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = _conv_relu(cin, squeezed, 1)
        self.expand1x1, self.expand1x1_activation = _conv_relu(squeezed, expanded, 1)
        self.expand3x3, self.expand3x3_activation = _conv_relu(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        s = self.squeeze_activation(self.squeeze(x))
        narrow = self.expand1x1_activation(self.expand1x1(s))
        wide = self.expand3x3_activation(self.expand3x3(s))
        return torch.cat((narrow, wide), dim=1)


def _squeezenet1_1() -> list[nn.Module]:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return [
        *_conv_relu(3, 64, 3, stride=2),
        pool(),
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        pool(),
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        pool(),
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
        _Fire(384, 64, 256),
        _Fire(512, 64, 256),
    ]


def _init_alexnet(conv: nn.Conv2d) -> None:
    """Changes nothing: torchvision's AlexNet keeps the values that torch gives a convolution."""


def _init_vgg16(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    _zero_bias(conv)


def _init_squeezenet1_1(conv: nn.Conv2d) -> None:
    nn.init.kaiming_uniform_(conv.weight)
    _zero_bias(conv)


def _zero_bias(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


AlexnetOutputs = namedtuple("AlexnetOutputs", ["relu1", "relu2", "relu3", "relu4", "relu5"])
VggOutputs = namedtuple("VggOutputs", ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"])
SqueezeOutputs = namedtuple("SqueezeOutputs", ["relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"])


class Net(NamedTuple):
    """All that differs between the nets."""

    title: str  # the name in tables and figures
    model: str  # the function in torchvision.models
    layers: Callable[[], list[nn.Module]]  # makes the layers up to the last tap
    init: Callable[[nn.Conv2d], None]  # draws a new convolution's values as torchvision does
    cuts: tuple[int, ...]  # slice k runs the layers [cuts[k], cuts[k + 1]) and ends in tap k
    channels: tuple[int, ...]  # of each tap
    outputs: type  # the namedtuple of the taps, with the names of `lpips`
    min_size: int  # the shortest side of an image, in pixels, with which every tap has at least one pixel
    values_per_pixel: int  # how many values all taps have for each pixel of the image, rounded up
    url: str  # torchvision's IMAGENET1K_V1; the file's name ends in the first digits of its SHA-256


NETS = {
    "alex": Net(
        title="AlexNet",
        model="alexnet",
        layers=_alexnet,
        init=_init_alexnet,
        cuts=(0, 2, 5, 8, 10, 12),
        channels=(64, 192, 384, 256, 256),
        outputs=AlexnetOutputs,
        min_size=31,
        values_per_pixel=11,
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    "vgg": Net(
        title="VGG16",
        model="vgg16",
        layers=_vgg16,
        init=_init_vgg16,
        cuts=(0, 4, 9, 16, 23, 30),
        channels=(64, 128, 256, 512, 512),
        outputs=VggOutputs,
        min_size=16,
        values_per_pixel=122,
        url="https://download.pytorch.org/models/vgg16-397923af.pth",
    ),
    "squeeze": Net(
        title="SqueezeNet 1.1",
        model="squeezenet1_1",
        layers=_squeezenet1_1,
        init=_init_squeezenet1_1,
        cuts=(0, 2, 5, 8, 10, 11, 12, 13),
        channels=(64, 128, 256, 384, 384, 512, 512),
        outputs=SqueezeOutputs,
        min_size=17,
        values_per_pixel=36,
        url="https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    ),
}
ALIASES = {"alex": "alex", "vgg": "vgg", "vgg16": "vgg", "squeeze": "squeeze"}  # the names that callers may give a net

# The scaling layer maps images in [-1, 1] to the statistics of ImageNet: (x - SHIFT) / SCALE, by channel.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

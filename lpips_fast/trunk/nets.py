"""The layers of AlexNet, VGG16 and SqueezeNet 1.1 up to their last taps, without parameters' values.

Numbered and named as torchvision's `features`, whose weights they take. torchvision itself takes longer to import than
torch, and has the classifiers, too.
"""

from __future__ import annotations

from collections.abc import Callable

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
    """cat(expand1x1(s), expand3x3(s)) of s = squeeze(x), each with its ReLU; the trunk takes it apart."""

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


# From torchvision's name of the model.
LAYERS: dict[str, Callable[[], list[nn.Module]]] = {
    "alexnet": _alexnet,
    "vgg16": _vgg16,
    "squeezenet1_1": _squeezenet1_1,
}

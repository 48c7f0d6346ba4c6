"""VGG16, AlexNet and SqueezeNet 1.1 as trunks: what is tapped, and under which names."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Spec(NamedTuple):
    """A trunk: slice k runs the layers [cuts[k], cuts[k+1]) of torchvision's `features` and ends in tap k."""

    model: str  # the function in torchvision.models
    cuts: tuple[int, ...]
    channels: tuple[int, ...]
    min_size: int  # the smallest image, in pixels, from which every tap has at least one pixel
    outputs: type  # the namedtuple of the taps


SPECS = {
    "alex": Spec(
        "alexnet",
        (0, 2, 5, 8, 10, 12),
        (64, 192, 384, 256, 256),
        31,
        namedtuple("AlexnetOutputs", ["relu1", "relu2", "relu3", "relu4", "relu5"]),
    ),
    "vgg": Spec(
        "vgg16",
        (0, 4, 9, 16, 23, 30),
        (64, 128, 256, 512, 512),
        16,
        namedtuple("VggOutputs", ["relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"]),
    ),
    "squeeze": Spec(
        "squeezenet1_1",
        (0, 2, 5, 8, 10, 11, 12, 13),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        namedtuple("SqueezeOutputs", ["relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"]),
    ),
}


class Trunk(nn.Module):
    """The convolutional part of an ImageNet classifier, cut at its taps.

    Parameters are named as in `lpips`: `slice{k}.{i}.*`, k from 1, i torchvision's index.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.spec = SPECS[net]
        features = _random_features(self.spec)
        self.N_slices = len(self.spec.channels)
        for k in range(self.N_slices):
            layers = range(self.spec.cuts[k], self.spec.cuts[k + 1])
            self.add_module(f"slice{k + 1}", nn.Sequential(OrderedDict((str(i), features[i]) for i in layers)))

    @property
    def slices(self) -> list[nn.Sequential]:
        return [getattr(self, f"slice{k + 1}") for k in range(self.N_slices)]

    def load_features(self, state: Mapping[str, Tensor]) -> None:
        """Loads tensors named as in torchvision's `features` ('0.weight', ...).

        Raises:
            ValueError: a tensor is missing, of the wrong shape, or not one of this trunk's. Those of layers after the
                last tap are left out.
        """
        taken = {}
        for slice_ in self.slices:
            for name, parameter in slice_.named_parameters():
                if name not in state:
                    raise ValueError(f"trunk weights lack {name!r} ({self.spec.model}); they have {sorted(state)}")
                if state[name].shape != parameter.shape:
                    raise ValueError(
                        f"trunk weights {name!r} must have shape {list(parameter.shape)} ({self.spec.model}), "
                        f"got {list(state[name].shape)}"
                    )
                taken[name] = parameter
        extra = [name for name in state if name not in taken and not _after(name, self.spec.cuts[-1])]
        if extra:
            raise ValueError(f"trunk weights have names that are not {self.spec.model}'s: {sorted(extra)}")
        with torch.no_grad():
            for name, parameter in taken.items():
                parameter.copy_(state[name])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The taps, a namedtuple of [N, C_k, H_k, W_k], of scaled images x [N, 3, H, W]."""
        taps = []
        for slice_ in self.slices:
            x = slice_(x)
            taps.append(x)
        return self.spec.outputs(*taps)


def _after(name: str, cut: int) -> bool:
    index = name.split(".")[0]
    return index.isdigit() and int(index) >= cut


def _random_features(spec: Spec) -> nn.Sequential:
    """torchvision's `features`, initialised as torchvision does; its classifier (most of VGG) takes no memory."""
    import torchvision.models as models  # here, for it takes longer to import than everything else

    with torch.device("meta"):
        features = getattr(models, spec.model)(weights=None).features
    features = features.to_empty(device="cpu")
    for conv in (m for m in features.modules() if isinstance(m, nn.Conv2d)):
        conv.reset_parameters()
        if spec.model == "vgg16":
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        elif spec.model == "squeezenet1_1":
            nn.init.kaiming_uniform_(conv.weight)
        if spec.model != "alexnet":
            nn.init.zeros_(conv.bias)
    return features

"""The trunks alone, as in `lpips.pretrained_networks`: from images to a namedtuple of features.

    from lpips_fast.pretrained_networks import vgg16

`lpips.pretrained_networks` also has a `resnet`, which LPIPS does not use; this module leaves it out.
"""

from __future__ import annotations

from typing import NoReturn

from lpips_fast.trunk.module import Trunk
from lpips_fast.weights.published import read_trunk_weights


class _Pretrained(Trunk):
    """A trunk with the signature of `lpips`; `vgg16` describes it."""

    _NET: str

    def __init__(self, requires_grad: bool = False, pretrained: bool = True) -> None:
        super().__init__(self._NET)
        if pretrained:
            self.load_features(read_trunk_weights(self._NET, None, progress=True))
        self.requires_grad_(requires_grad)


class vgg16(_Pretrained):
    """VGG16's convolutions, from images [N, 3, H, W] to the features that LPIPS compares.

    The result is a namedtuple of relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3. The images must be scaled as
    `ScalingLayer` scales them. Parameters are named `slice{k}.{i}.weight` and `.bias`; i is torchvision's index.

    Args:
        requires_grad: whether the parameters are trained.
        pretrained: whether the weights are ImageNet's, from $TORCH_HOME or torchvision's server. If not, they are
            random.

    Raises:
        RuntimeError: the weights are neither cached nor reachable.
    """

    _NET = "vgg"


class alexnet(_Pretrained):
    """AlexNet's convolutions, as `vgg16`: relu1 to relu5."""

    _NET = "alex"


class squeezenet(_Pretrained):
    """SqueezeNet 1.1's convolutions, as `vgg16`: relu1 to relu7."""

    _NET = "squeeze"


def __getattr__(name: str) -> NoReturn:
    instead = "; lpips_fast.functional.lpips_head takes the features of any network" if name == "resnet" else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{instead}")

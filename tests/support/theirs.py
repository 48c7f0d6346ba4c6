"""lpips 0.1.4's modules with a given trunk, made without a download and without initialising it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn


def maker(trunks: Mapping[str, Mapping[str, Tensor]]) -> Callable[..., nn.Module]:
    """A function that makes LPIPS: make(net, dtype, **options).

    Modules of one net and type share the trunk: a test that changes it copies the module first.

    Args:
        trunks: for each net the weights of its trunk with torchvision's names, 'features.0.weight' or '0.weight'.
    """
    import lpips

    pretrained_networks = lpips.pretrained_networks
    names = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet"}

    @functools.cache
    def trunk(net, dtype):
        with torch.device("meta"):  # initialising VGG's classifier, which is not used, takes seconds
            made = getattr(pretrained_networks, names[net])(pretrained=False, requires_grad=False)
        state = {name.removeprefix("features."): tensor for name, tensor in trunks[net].items()}
        made.to_empty(device="cpu").load_state_dict({k: state[k.partition(".")[2]] for k in made.state_dict()})
        return made.to(dtype)

    def make(net="alex", dtype=torch.float32, **options):
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
            shared = trunk(net, dtype)
            patch.setattr(pretrained_networks, names[net], lambda pretrained, requires_grad: shared)
            return lpips.LPIPS(net=net, verbose=False, **options).to(dtype)

    return make

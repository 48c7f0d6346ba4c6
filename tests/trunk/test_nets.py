"""The trunks' layers, and where their weights are, are torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lpips_fast.trunk.nets import NETS


def leaves(layers):
    """Name and description of every layer that has none within."""
    return [(name, str(layer)) for name, layer in layers.named_modules() if not list(layer.children())]


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_layers_are_torchvisions(net):
    import torchvision

    with torch.device("meta"):
        ours = nn.Sequential(*net.layers())
        theirs = getattr(torchvision.models, net.model)(weights=None).features[: len(ours)]
    assert leaves(ours) == leaves(theirs)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_outputs_are_torchvisions(net):
    import torchvision

    ours = nn.Sequential(*net.layers())
    theirs = getattr(torchvision.models, net.model)(weights=None).features[: len(ours)]
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(1, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))


def test_addresses_are_torchvisions():
    from torchvision import models

    enums = {"alex": models.AlexNet_Weights, "vgg": models.VGG16_Weights, "squeeze": models.SqueezeNet1_1_Weights}
    assert {name: enum.IMAGENET1K_V1.url for name, enum in enums.items()} == {
        name: net.url for name, net in NETS.items()
    }

"""The trunks' layers are torchvision's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lpips_fast.networks import LAYERS


def leaves(layers):
    """Name and description of every layer that has none within."""
    return [(name, str(layer)) for name, layer in layers.named_modules() if not list(layer.children())]


@pytest.mark.parametrize("model", LAYERS)
def test_layers_are_torchvisions(model):
    import torchvision

    with torch.device("meta"):
        ours = nn.Sequential(*LAYERS[model]())
        theirs = getattr(torchvision.models, model)(weights=None).features[: len(ours)]
    assert leaves(ours) == leaves(theirs)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}

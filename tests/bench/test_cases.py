"""Cases, and the arithmetic and the memory traffic that is counted for them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lpips_fast.bench import cases
from lpips_fast.bench.cases import Case

SMALL = Case("alex", 3, 32)


@pytest.mark.parametrize("net,size", (("vgg", 64), ("alex", 70), ("squeeze", 65)))
def test_flops_are_torchs(net, size):
    found, taps = cases.trunk_layers(net, size)
    model = cases.random_lpips(net)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        outputs = cases.plain_taps(model, torch.zeros(1, 3, size, size))
    assert sum(layer.flops for layer in found) == counter.get_total_flops()
    assert [tuple(t.shape[1:]) for t in outputs] == list(taps)


def test_work_of_vgg():
    layers_of_vgg, _ = cases.trunk_layers("vgg", 256)
    assert [layer.name for layer in layers_of_vgg][:3] == ["conv1_1", "conv1_2", "conv2_1"]
    per_image = sum(layer.flops for layer in layers_of_vgg)
    assert cases.work(Case("vgg", 4, 256), "forward", 4)[0] == 8 * per_image
    assert cases.work(Case("vgg", 4, 256), "step", 4)[0] == 12 * per_image


@pytest.mark.parametrize("text", ("vgg", "vgg:0:64", "vgg:1:15", "resnet:1:64", "vgg:1:64:2", "vgg:1:-64"))
def test_case_that_is_none(text):
    with pytest.raises(ValueError, match="case"):
        Case.parse(text)

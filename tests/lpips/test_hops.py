"""How many functions of this package lie between LPIPS.forward and an operator: the path of docs/design.md."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_fast import backends
from tests.support.images import pair

pytestmark = pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"]))


class Paths(TorchDispatchMode):
    """The functions from LPIPS.forward to each operator of this package, and to torch's convolution, at each call."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lpips_fast" or func is torch.ops.aten.convolution.default:
            frame, path = sys._getframe(), []
            while frame is not None:
                if frame.f_globals.get("__name__", "").startswith("lpips_fast."):
                    path.insert(0, f"{frame.f_globals['__name__'].removeprefix('lpips_fast.')}.{frame.f_code.co_name}")
                frame = frame.f_back
            self.found.setdefault(func.__name__.split(".")[0], []).append(path)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options, gradient, to_trunk, to_head", [
    (
        {},
        False,
        ["lpips._distance", "trunk.module.pair", "trunk.module.forward", "trunk.execute.run"],
        ["lpips._distance"],
    ),
    (
        {},
        True,
        ["lpips._distance", "trunk.module.pair", "trunk.execute.forward", "trunk.execute.run"],
        ["lpips._distance"],
    ),
    (
        {"grad_in_forward": True},
        True,
        ["distance.grad_in_forward.distance_with_gradient", "distance.grad_in_forward.forward", "trunk.execute.run"],
        ["distance.grad_in_forward.distance_with_gradient", "distance.grad_in_forward.forward"],
    ),
], ids=("metric", "loss", "grad_in_forward"))  # fmt: skip
def test_few_functions_to_an_operator(make_ours, options, gradient, to_trunk, to_head):
    module, (in0, in1) = make_ours("vgg", cpu_conv="winograd", **options), pair(1, 32, 32)
    with Paths() as paths:
        module(in0.requires_grad_(gradient), in1)
    head = ["distance.compare.compare", "head.autograd.head"]
    if gradient and not options:
        head.append("head.autograd.forward")
    trunk = ["lpips.forward", *to_trunk, "trunk.cpu_trunk.run"]
    assert paths.found["trunk_fwd_cpu"] == [trunk]  # both images go through it at once
    assert paths.found["head_fwd_cpu"] == [["lpips.forward", *to_head, *head]]


@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_few_functions_to_torchs_convolution(make_ours, net):
    """The first layer's convolution has one more: it makes the batch and scales it."""
    direct, (in0, in1) = make_ours(net, cpu_conv="direct"), pair(1, 32, 32)
    to_run = ["lpips.forward", "lpips._distance", "trunk.module.pair", "trunk.module.forward", "trunk.execute.run"]
    with Paths() as paths:
        direct(in0, in1)
    first, *others = paths.found["convolution"]
    convolution = ["trunk.torch_layers.conv_relu", "trunk.convolution.conv2d"]
    assert first == [*to_run, "trunk.torch_layers.first_conv_relu", *convolution]
    assert others
    assert all(path == [*to_run, *convolution] for path in others)

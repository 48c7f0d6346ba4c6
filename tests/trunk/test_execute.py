"""The loop over a trunk's steps: its taps, and their gradient, are those of the modules in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lpips_fast.trunk import cpu_trunk
from lpips_fast.trunk.execute import run, run_backward
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.nets import NETS
from tests.support.instructions import LOW_TYPES
from tests.support.tolerances import TAP_NORM_TOLERANCE, TRUNK_GRAD_TOLERANCE

compiled = pytest.mark.skipif(not cpu_trunk.available(), reason="not compiled")
# Layers and their type.
KINDS = (("torch", torch.float64), pytest.param("cpu", torch.float32, marks=compiled))


def by_modules(trunk, x, n_taps):
    taps = []
    for slice_ in trunk.slices[:n_taps]:
        x = slice_(x)
        taps.append(x)
    return taps


def relative(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind,dtype", KINDS)
@pytest.mark.parametrize("scaled", (True, False))
@pytest.mark.parametrize("net", NETS)
def test_taps_and_gradient_of_the_modules(net, scaled, kind, dtype):
    """Of two batches in one, and of each number of taps."""
    trunk = Trunk(net, cpu_conv="winograd", trainable=False).to(dtype)
    exact = Trunk(net).double()
    exact.load_state_dict(trunk.state_dict())
    for module in exact.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # the taps are compared
    images = [torch.rand(n, 3, 37, 40, dtype=dtype) for n in (1, 2)]
    affine = (
        (torch.rand(1, 3, 1, 1, dtype=dtype), torch.rand(1, 3, 1, 1, dtype=dtype) + 0.5) if scaled else (None, None)
    )
    for n_taps in (1, 2, trunk.N_slices):
        setting = trunk.setting(images[0].device, n_taps)
        assert (setting.layers, setting.n_taps) == (kind, n_taps)
        tensors = trunk.tensors(setting, gradient=True)
        taps, signs = run(setting, images, affine, tensors, keep=True)
        x = torch.cat(images).double().requires_grad_()
        expected = by_modules(exact, (x - affine[0].double()) / affine[1].double() if scaled else x, n_taps)
        assert len(taps) == n_taps
        assert all(relative(tap, e) <= TAP_NORM_TOLERANCE[dtype] for tap, e in zip(taps, expected, strict=True))
        assert all(s.dtype == torch.uint8 for s in signs)
        d_taps = [torch.randn_like(tap) for tap in taps]
        d_x = run_backward(setting, x.shape[1:], affine, tensors, taps, signs, d_taps)
        (d_expected,) = torch.autograd.grad(expected, x, [d.double() for d in d_taps])
        assert relative(d_x, d_expected) <= TRUNK_GRAD_TOLERANCE[dtype]
        without, none = run(setting, images, affine, tensors)
        assert none == []
        assert all(torch.equal(a, b) for a, b in zip(without, taps, strict=True))


@pytest.mark.parametrize("tap_dtype", LOW_TYPES, ids=str)
@pytest.mark.parametrize("kind", ("torch", pytest.param("cpu", marks=compiled)))
@pytest.mark.parametrize("scaled", (True, False))
def test_taps_of_another_type(scaled, kind, tap_dtype):
    """They are rounded after the forward, and the backward computes with what was rounded."""
    trunk = Trunk("squeeze", "float32", cpu_conv="direct" if kind == "torch" else "winograd", trainable=False)
    x = torch.rand(2, 3, 37, 40)
    affine = (torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1) + 0.5) if scaled else (None, None)
    low_affine = tuple(t if t is None else t.to(tap_dtype) for t in affine)
    affine = tuple(t if t is None else t.float() for t in low_affine)
    setting = trunk.setting(x.device)
    assert setting.layers == kind
    tensors = trunk.tensors(setting, gradient=True)
    expected, expected_signs = run(setting, [x], affine, tensors, keep=True)
    setting_low = setting._replace(taps_as=tap_dtype)
    taps, signs = run(setting_low, [x], low_affine, tensors, keep=True)
    assert all(torch.equal(tap, e.to(tap_dtype)) for tap, e in zip(taps, expected, strict=True))
    assert all(torch.equal(s, e) for s, e in zip(signs, expected_signs, strict=True))
    d_taps = [torch.randn_like(tap) for tap in taps]
    found = run_backward(setting_low, x.shape[1:], low_affine, tensors, taps, signs, d_taps)
    wide, d_wide = [tap.float() for tap in taps], [d.float() for d in d_taps]
    assert found.dtype == torch.float32
    assert torch.equal(found, run_backward(setting, x.shape[1:], affine, tensors, wide, signs, d_wide))


@pytest.mark.parametrize("net", NETS)
def test_what_is_kept(net):
    """The taps, and one bit for each value of the other ReLUs."""
    trunk = Trunk(net, trainable=False)
    x = torch.rand(1, 3, 64, 64)
    setting = trunk.setting(x.device)
    outputs = []
    for module in trunk.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, args, out: outputs.append(out.numel()))
    taps = trunk(x)  # by the modules, which are hooked
    _, signs = run(setting, [x], (None, None), trunk.tensors(setting, gradient=True), keep=True)
    assert sum(s.numel() * 8 for s in signs) == sum(outputs) - sum(tap.numel() for tap in taps)

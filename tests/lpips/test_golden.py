"""LPIPS with ImageNet's weights against published values, and values recorded from lpips 0.1.4 in float64."""

from __future__ import annotations

import json

import pytest
import torch

import lpips_fast
from tests.support.comparisons import assert_close
from tests.support.parameters import BACKENDS
from tests.support.tolerances import GRAD_TOLERANCE, LARGEST_GRAD_TOLERANCE, VALUE_TOLERANCE

OPTIONS = [
    (lpips, spatial, version) for lpips in (True, False) for spatial in (False, True) for version in ("0.1", "0.0")
]


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden" / "lpips_0_1_4.json").read_text())


@pytest.fixture
def torch_home(shared, monkeypatch):
    """A cache of downloads that has the real weights of AlexNet and SqueezeNet."""
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch_home"))


def example(shared, name, dtype=torch.float32):
    return lpips_fast.im2tensor(lpips_fast.load_image(shared / "images" / name)).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("lpips,spatial,version", OPTIONS)
@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_recorded_from_lpips(shared, golden, torch_home, net, lpips, spatial, version, dtype, backend):
    options = {"net": net, "version": version, "lpips": lpips, "spatial": spatial}
    cases = [case for case in golden["cases"] if all(case[key] == value for key, value in options.items())]
    assert len(cases) == 2
    module = lpips_fast.LPIPS(backend=backend, **options).to(dtype)
    atol, rtol = VALUE_TOLERANCE[dtype]
    for case in cases:
        in0, in1 = (example(shared, case[name], dtype) for name in ("in0", "in1"))
        in0.requires_grad_()
        value, parts = module(in0, in1, retPerLayer=True)
        found = [x.mean(dim=(1, 2, 3)) for x in (value, *parts)]
        for f, expected in zip(found, (case["value"], *case["per_layer"]), strict=True):
            assert f.tolist() == pytest.approx(expected, rel=rtol, abs=atol)
        (grad,) = torch.autograd.grad(value.sum() / (value.numel() if spatial else 1), in0)
        assert grad.norm().item() == pytest.approx(case["grad_norm"], rel=GRAD_TOLERANCE[dtype])
        assert grad.abs().max().item() == pytest.approx(case["grad_abs_max"], rel=LARGEST_GRAD_TOLERANCE[dtype])


@pytest.mark.parametrize("in1,value", (("ex_p0.png", 0.722), ("ex_p1.png", 0.138)))
def test_published_by_lpips(shared, golden, torch_home, in1, value):
    (published,) = [case for case in golden["published"] if case.get("in1") == in1]
    assert published["value"] == value
    in0, in1 = (example(shared, name) for name in (published["in0"], in1))
    assert round(lpips_fast.LPIPS(net="alex")(in0, in1).item(), 3) == value


def test_published_by_torchmetrics(golden, torch_home):
    (published,) = [case for case in golden["published"] if case["net"] == "squeeze"]
    gen = torch.Generator().manual_seed(42)
    in0, in1 = (torch.rand(2, 3, 100, 100, generator=gen) * 2 - 1 for _ in range(2))
    value = lpips_fast.LPIPS(net="squeeze")(in0, in1)
    assert [round(v, 4) for v in value.flatten().tolist()] == published["value"]


def test_first_stages_of_vgg(shared, make_ours, make_theirs, trunk_states):
    """Real weights in the layers that `shared` has, random weights above: these features are unlike those of noise."""
    real = torch.load(shared / "torch_home" / "vgg16_features_0_to_7.pth", weights_only=True)
    in0, in1 = (example(shared, name) for name in ("ex_ref.png", "ex_p0.png"))
    ours = lpips_fast.LPIPS(net="vgg", trunk_weights={**trunk_states["vgg"], **real})
    theirs = make_theirs("vgg", torch.float64)
    state = {name: tensor.clone() for name, tensor in theirs.net.state_dict().items()}
    try:
        theirs.net.load_state_dict({k: real.get(f"features.{k.partition('.')[2]}", v) for k, v in state.items()})
        value, parts = ours(in0, in1, retPerLayer=True)
        expected, expected_parts = theirs(in0.double(), in1.double(), retPerLayer=True)
    finally:
        theirs.net.load_state_dict(state)
    assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
    for part, expected_part in zip(parts, expected_parts):
        assert_close(part, expected_part, VALUE_TOLERANCE[torch.float32])

"""LPIPS with Winograd's algorithm on the CPU, against float64."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import lpips_fast
from lpips_fast.trunk import cpu_filters, cpu_trunk
from tests.support.tolerances import OTHERS_TOLERANCE, WINOGRAD_NEAR_TOLERANCE, WINOGRAD_VALUE_TOLERANCE

pytestmark = pytest.mark.skipif(not cpu_trunk.available(), reason="the compiled library is not there")


def value_and_gradient(fn, in0, in1):
    in0 = in0.detach().requires_grad_()
    value = fn(in0, in1)
    return value.detach().double(), torch.autograd.grad(value.sum(), in0)[0].double()


@pytest.mark.parametrize("net", ("alex", "squeeze", "vgg"))
@pytest.mark.parametrize("size", ((64, 64), (67, 50)))
def test_value_and_gradient(make_ours, net, size):
    in0, in1 = (torch.rand(2, 3, *size) * 2 - 1 for _ in range(2))
    expected, exact_grad = value_and_gradient(make_ours(net).double(), in0.double(), in1.double())
    value, grad = value_and_gradient(make_ours(net, cpu_conv="winograd"), in0, in1)
    torch.testing.assert_close(value, expected, **WINOGRAD_VALUE_TOLERANCE)
    assert F.cosine_similarity(grad.flatten(), exact_grad.flatten(), dim=0) >= 0.999  # a random trunk has ties


@pytest.mark.parametrize("net", ("alex", "squeeze", "vgg"))
@pytest.mark.parametrize("noise", (1e-1, 1e-2, 1e-3))
def test_near_identical_images(make_ours, net, noise):
    """Distances below 1e-6, where rounding of the features shows most: it is worth 5e-11, a few times direct's."""
    in0 = torch.rand(1, 3, 72, 72) * 2 - 1
    in1 = in0 + noise * torch.randn(in0.shape)
    expected = make_ours(net).double()(in0.double(), in1.double())
    value = make_ours(net, cpu_conv="winograd")(in0, in1).double()
    torch.testing.assert_close(value, expected, **WINOGRAD_NEAR_TOLERANCE)


def object_on(ground, size):
    """An object of noise before a flat ground, and another one there."""
    row, col = torch.linspace(-1, 1, size)[:, None], torch.linspace(-1, 1, size)
    return [torch.where(row**2 + col**2 < 0.3, torch.rand(1, 3, size, size) * 2 - 1, ground) for _ in range(2)]


def lines(size):
    """Lines, straight and diagonal, and where they have moved to."""
    drawn = torch.ones(1, 3, size, size)
    drawn[:, :, size // 4, 10:] = drawn[:, :, 10:, size // 2 : size // 2 + 2] = -1
    drawn[:, :, range(size), range(size)] = drawn[:, :, range(size), range(size - 1, -1, -1)] = 0.5
    return drawn, drawn.roll((3, 2), (2, 3))


def rules(size, step):
    """A ruled page, and one of other colours. The nets' pools map the steps of 12 and 16 to windows far apart."""
    row, col = torch.arange(size)[:, None], torch.arange(size)
    ruled = (row % step == 0) | (col % step == 0)
    colours = [((-0.5, -0.5, -0.5), (1.0, 1.0, 1.0)), ((-0.3, -0.5, -0.5), (0.96, 1.0, 1.0))]
    return [torch.where(ruled, *(torch.tensor(c)[None, :, None, None] for c in pair)) for pair in colours]


FLAT_PAIRS = {
    "an object on white": lambda: object_on(1.0, 128),
    "an object on black": lambda: object_on(-1.0, 96),
    "one colour": lambda: (torch.full((1, 3, 96, 96), 0.3), torch.full((1, 3, 96, 96), 0.2)),
    "lines": lambda: lines(128),
    "rules of 12": lambda: rules(128, 12),
    "rules of 16": lambda: rules(128, 16),
}


def assert_gradient_of_flat_areas(fn, exact, pair):
    """That of lpips: pools tie there, and the first wins. By Winograd's rounding anyone did, and the cosine was 0.2."""
    in0, in1 = FLAT_PAIRS[pair]()
    expected, expected_grad = value_and_gradient(exact, in0, in1)
    value, grad = value_and_gradient(fn, in0, in1)
    torch.testing.assert_close(value.flatten(), expected.flatten(), rtol=OTHERS_TOLERANCE, atol=0)
    assert F.cosine_similarity(grad.flatten(), expected_grad.flatten(), dim=0) >= 0.9999


@pytest.mark.parametrize("net", ("alex", "squeeze", "vgg"))
@pytest.mark.parametrize("pair", FLAT_PAIRS)
@pytest.mark.parametrize("options", ({}, {"cpu_conv": "winograd"}, {"grad_in_forward": True}), ids=str)
def test_flat_areas(make_ours, make_theirs, net, pair, options):
    assert_gradient_of_flat_areas(make_ours(net, **options), make_theirs(net), pair)


@pytest.mark.parametrize("pair", FLAT_PAIRS)
def test_flat_areas_with_imagenets_weights(shared, monkeypatch, pair):
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch_home"))
    lpips = pytest.importorskip("lpips")
    ours, theirs = lpips_fast.LPIPS(net="squeeze"), lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    theirs.load_state_dict(ours.state_dict())
    assert_gradient_of_flat_areas(ours, theirs, pair)


@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_golden_pairs(net, shared, monkeypatch):
    """With ImageNet's weights on real images: value within 2e-5, cosine of the gradient at least 0.99999."""
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch_home"))
    exact = lpips_fast.LPIPS(net=net, verbose=False).double()
    fn = lpips_fast.LPIPS(net=net, verbose=False, cpu_conv="winograd")
    cases = json.loads((shared / "golden" / "lpips_0_1_4.json").read_text())["cases"]
    wanted = [c for c in cases if (c["net"], c["version"], c["lpips"], c["spatial"]) == (net, "0.1", True, False)]
    assert wanted
    for case in wanted:
        in0, in1 = (lpips_fast.im2tensor(lpips_fast.load_image(shared / "images" / case[k])) for k in ("in0", "in1"))
        value, grad = value_and_gradient(fn, in0, in1)
        torch.testing.assert_close(value.flatten()[0].item(), case["value"][0], **WINOGRAD_VALUE_TOLERANCE)
        _, exact_grad = value_and_gradient(exact, in0.double(), in1.double())
        assert F.cosine_similarity(grad.flatten(), exact_grad.flatten(), dim=0) >= 0.99999


def test_choices(make_ours):
    with pytest.raises(ValueError, match=r"cpu_conv.*'fft'"):
        make_ours("alex", cpu_conv="fft")
    in0, in1 = (torch.rand(1, 3, 64, 64) for _ in range(2))
    functions = [make_ours("vgg", cpu_conv=choice) for choice in ("auto", "winograd", "direct")]
    values = [fn(in0, in1) for fn in functions]
    torch.testing.assert_close(values[0], values[2], **WINOGRAD_VALUE_TOLERANCE)
    taps = [fn.features(in0).taps[2] for fn in functions]
    assert not torch.equal(taps[1], taps[2])  # both really ran


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_equal_bits_for_1_and_2_threads(make_ours, grad_in_forward):
    in0, in1 = (torch.rand(2, 3, 64, 64) for _ in range(2))
    fn = make_ours("vgg", cpu_conv="winograd", grad_in_forward=grad_in_forward)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append(value_and_gradient(fn, in0, in1))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_filters_are_made_only_where_they_are_used(make_ours, monkeypatch):
    made = []
    original = cpu_filters.winograd_filters
    monkeypatch.setattr(cpu_filters, "winograd_filters", lambda *args, **kw: made.append(args) or original(*args, **kw))
    fn = make_ours("alex")
    images = torch.rand(2, 1, 3, 32, 32)  # the 3x3 convolutions are of 1 x 1 pixels here: direct ones are faster
    fn(*images)
    assert not made
    fn(*torch.rand(2, 1, 3, 256, 256))
    assert len(made) == 3
    fn(*torch.rand(2, 1, 3, 256, 256))
    assert len(made) == 3

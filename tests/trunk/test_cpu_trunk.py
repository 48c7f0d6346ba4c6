"""LPIPS by the CPU's operators, against float64, and the programs and filters that they take."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lpips_fast
from lpips_fast.trunk import cpu_trunk
from lpips_fast.trunk.cpu_filters import LARGE
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.operators import Algorithm
from lpips_fast.trunk.program import Conv
from tests.support.threads import threads
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


@pytest.mark.parametrize("net", ("alex", "squeeze", "vgg"))
@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_equal_bits_for_1_and_2_threads(make_ours, grad_in_forward, net):
    in0, in1 = (torch.rand(8, 3, 64, 64) for _ in range(2))  # enough work for two threads, also backwards
    fn = make_ours(net, cpu_conv="winograd", grad_in_forward=grad_in_forward)
    results = []
    for count in (1, 2):
        with threads(count):
            results.append(value_and_gradient(fn, in0, in1))
    for a, b in zip(*results):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.uint8))
def test_images_of_other_types(dtype):
    trunk, images = Trunk("alex", trainable=False), [(torch.rand(n, 3, 40, 40) * 255).to(dtype) for n in (1, 2)]
    for found, expected in zip(trunk(*images), trunk(*(image.float() for image in images)), strict=True):
        assert torch.equal(found, expected)


# ---- Programs


def made(net, **options):
    trunk = Trunk(net, trainable=False, **options)
    setting = trunk.setting(torch.device("cpu"))
    return trunk, setting, trunk.tensors(setting, gradient=False)


@pytest.mark.parametrize("net, first, back, others", (
    ("alex", Algorithm.PHASES, Algorithm.PHASES, [Algorithm.WINOGRAD] * 4),
    ("vgg", Algorithm.FIRST, Algorithm.COLUMNS, [Algorithm.WINOGRAD] * 12),
    ("squeeze", Algorithm.FIRST, Algorithm.COLUMNS, [Algorithm.DIRECT, Algorithm.DIRECT, Algorithm.WINOGRAD] * 8),
))  # fmt: skip
def test_a_program_is_the_nets_convolutions(net, first, back, others):
    trunk, setting, tensors = made(net, cpu_conv="winograd")
    found = cpu_trunk.convolutions(setting, tensors, 1, 64, 64)
    modules = [module for module in trunk.modules() if isinstance(module, nn.Conv2d)]
    for (at, conv), module in zip(found, modules, strict=True):
        assert tensors[at].data_ptr() == module.weight.data_ptr()
        assert (conv.cin, conv.cout) == (module.in_channels, module.out_channels)
        assert (conv.kernel, conv.stride, conv.padding) == (
            *module.kernel_size[:1],
            module.stride[0],
            module.padding[0],
        )
    convs = [conv for _, conv in found]
    assert [conv.algorithm for conv in convs] == [first, *others]
    large = [conv.cin * conv.cout >= LARGE for conv in convs[1:]]
    assert large == ([False] * 6 + [True] * 6 if net == "vgg" else [False] * len(others))
    expected = [Algorithm.TRANSPOSED if is_large else other for is_large, other in zip(large, others, strict=True)]
    assert [conv.gradient for conv in convs] == [back, *expected]
    assert [conv.joined for conv in convs[1:]] == [False, net == "squeeze", False] * (len(others) // 3) + [False] * (
        len(others) % 3
    )
    steps = [conv for conv in convs if not conv.joined]
    assert [(conv.tap, conv[9:]) for conv in steps] == [(step.tap, step.pool or (0, 0, 0)) for step in setting.plan]


def test_size_and_number_of_images_choose_the_algorithm():
    """AlexNet's 5x5 convolution has 4 x 4 outputs of 40 x 40 pixels; its gradient has the channels of the outputs."""
    _, setting, tensors = made("alex")
    for n, expected in ((1, Algorithm.DIRECT), (4, Algorithm.WINOGRAD)):
        conv = cpu_trunk.convolutions(setting, tensors, n, 40, 40)[1][1]
        assert (conv.kernel, conv.algorithm, conv.gradient) == (5, expected, expected)
    weights = [torch.rand(64, 11, 3, 3), torch.rand(64)]  # few input channels
    setting = setting._replace(plan=(Conv(2, 3, 1, 1, tap=True),))
    conv = cpu_trunk.convolutions(setting, weights * 2, 1, 64, 64)[0][1]
    assert (conv.algorithm, conv.gradient) == (Algorithm.DIRECT, Algorithm.WINOGRAD)


def test_filters_are_made_only_where_they_are_used(make_ours, monkeypatch):
    used = []
    original = cpu_trunk.filters_of
    monkeypatch.setattr(cpu_trunk, "filters_of", lambda *args, **kw: used.append(args[0]) or original(*args, **kw))
    fn = make_ours("alex")

    def uses(size, gradient=False):
        used.clear()
        images = torch.rand(2, 1, 3, size, size)
        value = fn(images[0].requires_grad_(gradient), images[1])
        if gradient:
            value.sum().backward()
        return sorted(used)

    assert uses(32) == [Algorithm.DIRECT] * 4 + [Algorithm.PHASES]  # the later ones have 1 x 1 outputs here
    assert uses(256) == [Algorithm.WINOGRAD] * 4
    assert uses(224) == uses(33) == []
    assert uses(256, gradient=True) == [Algorithm.WINOGRAD] * 4 + [Algorithm.PHASES]
    assert uses(224, gradient=True) == []


def test_large_filters_serve_both_directions():
    """VGG16's for 512 channels: the gradient transposes those of the forward, and no others are made."""
    _, setting, tensors = made("vgg")
    convs = cpu_trunk.convolutions(setting, tensors, 2, 64, 64)
    forward, gradient = (tensors.program(setting, back, 2, 64, 64)[1] for back in (False, True))
    shared = [turned.data_ptr() == own.data_ptr() for own, turned in zip(forward[::2], gradient, strict=True)]
    assert shared == [conv.gradient == Algorithm.TRANSPOSED for _, conv in convs]
    assert any(shared)
    assert convs[-1][1].gradient == Algorithm.DIRECT  # few tiles


def test_programs_are_kept(monkeypatch):
    """Until there are too many of them; the filters stay."""
    _, setting, tensors = made("squeeze", cpu_conv="winograd")
    first = tensors.program(setting, False, 1, 64, 64)
    monkeypatch.setattr(cpu_trunk, "filters_of", None)  # nothing is made any more
    assert tensors.program(setting, False, 1, 64, 64) is first
    monkeypatch.setattr(cpu_trunk, "_MOST_PROGRAMS", 3)
    for size in range(65, 75):
        _, filters = tensors.program(setting, False, 1, size, size)
        assert all(a is b for a, b in zip(filters, first[1], strict=True))
        assert len(tensors._programs) <= 3
    again = tensors.program(setting, False, 1, 64, 64)
    assert again is not first
    assert again[0] == first[0]


def test_filters_made_in_inference_mode_are_good_for_training():
    trunk, setting, tensors = made("squeeze")
    x = torch.rand(1, 3, 40, 40)
    with torch.inference_mode():
        expected = trunk(x)
    assert not any(t.is_inference() for t in tensors.program(setting, False, 1, 40, 40)[1])
    taps = trunk(x.requires_grad_())
    torch.autograd.grad([tap.sum() for tap in taps], x)
    assert all(torch.equal(a, b) for a, b in zip(taps, expected, strict=True))

"""Types other than float32: of the images, of the module, by `precision` and by autocast."""

from __future__ import annotations

import copy

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F

from tests.support.comparisons import assert_close, assert_norms_close
from tests.support.gradients import gradients, parts_and_gradients
from tests.support.images import SIZE, noise, pair
from tests.support.instructions import LOW_TYPES, ConvolutionTypes, set_instructions
from tests.support.parameters import NETS
from tests.support.tolerances import (
    BFLOAT16_GRAD_TOLERANCE,
    GRAD_TOLERANCE,
    JUMP_TOLERANCE,
    LOW_PRECISION_TOLERANCE,
    REORDERED_TOLERANCE,
    ROUNDED_INPUT_TOLERANCE,
    SMALL_NET_LOW_PRECISION_TOLERANCE,
    VALUE_TOLERANCE,
)


@pytest.fixture(params=(True, False), ids=("instructions", "no instructions"))
def instructions(request, monkeypatch):
    """A processor with instructions for bfloat16 and float16, where torch may emulate them, and one without."""
    set_instructions(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize("dtype", LOW_TYPES, ids=str)
@pytest.mark.parametrize("net", NETS)
def test_low_precision(ours, oracle, instructions, net, dtype):
    """Features have the images' type, and its rounding shows. The head computes in float32."""
    module, in0, in1 = ours(net, dtype), *pair(2, *SIZE[net], dtype=dtype)
    value, _, grads = parts_and_gradients(module, in0, in1)
    assert value.dtype == torch.float32
    feats0, feats1 = ([f.double() for f in module.features(x).taps] for x in (in0, in1))
    weights = [weight.double() for weight in module.linear_weights()]
    assert_close(value, exact_head(feats0, feats1, weights), VALUE_TOLERANCE[torch.float32])
    expected, _, expected_grads = parts_and_gradients(oracle(net), in0.double(), in1.double())
    assert_close(value, expected, (0, LOW_PRECISION_TOLERANCE[dtype]))
    for grad, expected_grad in zip(grads, expected_grads):
        assert grad.dtype == dtype
        aligned = torch.nn.functional.cosine_similarity(grad.double().flatten(), expected_grad.flatten(), dim=0)
        assert aligned > 0.95


def exact_head(feats0, feats1, weights):
    """lpips 0.1.4's head on given features."""
    from lpips import normalize_tensor

    parts = [
        (weight * (normalize_tensor(f0) - normalize_tensor(f1)) ** 2)
        .sum(dim=1, keepdim=True)
        .mean((2, 3), keepdim=True)
        for f0, f1, weight in zip(feats0, feats1, weights)
    ]
    return sum(parts)


# The types of a decoder's output under autocast and of its target, in both orders, and other pairs of types.
MIXED = (
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.bfloat16),
)


@pytest.mark.parametrize("types", MIXED, ids=str)
@pytest.mark.parametrize("options", ({}, {"grad_in_forward": True}, {"version": "0.0"}), ids=str)
@pytest.mark.parametrize("net", NETS)
def test_images_of_two_types(ours, oracle, net, options, types):
    """A float32 module promotes them, as lpips does; each gradient is lpips's gradient, rounded to its image's type."""
    in0, in1 = (x.to(dtype) for x, dtype in zip(pair(2, *SIZE[net]), types))
    theirs = {"version": "0.0"} if "version" in options else {}
    expected, _, expected_grads = parts_and_gradients(oracle(net, **theirs), in0.double(), in1.double())
    in0, in1 = in0.requires_grad_(), in1.requires_grad_()
    value = ours(net, **options)(in0, in1)
    assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
    gen = torch.Generator().manual_seed(3)
    factors = torch.rand(value.shape, generator=gen, dtype=torch.float64).to(value)
    grads = torch.autograd.grad((factors * value).sum(), (in0, in1))
    assert tuple(grad.dtype for grad in grads) == types
    # The gradients of float32 images with the same values, which other tests compare with lpips, and then rounded.
    wide0, wide1 = (x.detach().float().requires_grad_() for x in (in0, in1))
    wide = torch.autograd.grad((factors * ours(net, **options)(wide0, wide1)).sum(), (wide0, wide1))
    for grad, wide_grad, exact in zip(grads, wide, expected_grads):
        assert torch.equal(grad, wide_grad.to(grad.dtype))
        # float16 has no small numbers: gradients are compared where float16 does not round them to 0.
        least = torch.finfo(grad.dtype).tiny if grad.dtype == torch.float16 else 0.0
        error = (grad.double() - exact).abs() * (exact.abs() > least)
        rounding, limit = torch.finfo(grad.dtype).eps / 2, GRAD_TOLERANCE[torch.float32]
        assert (error.flatten(1).norm(dim=1) <= (rounding + limit) * exact.flatten(1).norm(dim=1)).any()
        assert error.norm() <= (rounding + JUMP_TOLERANCE) * exact.norm()


def test_images_of_two_types_are_promoted_as_by_lpips(ours, make_theirs):
    """Against lpips in float32: pairs of types that lpips accepts are accepted here."""
    in0, in1 = pair(2, *SIZE["alex"])
    for types in MIXED:
        images = [x.to(dtype) for x, dtype in zip((in0, in1), types)]
        expected = make_theirs("alex")(*images)
        assert_close(ours("alex")(*images), expected.double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", LOW_TYPES, ids=str)
def test_wider_images_than_the_module(make_ours, oracle, instructions, dtype):
    """Parameters are in half precision, as sharding makes them, and images or buffers in float32."""
    in0, in1 = pair(2, *SIZE["alex"])
    expected = oracle("alex")(in0.double(), in1.double())
    fn = make_ours("alex").to(dtype)
    assert_close(fn(in0, in1), expected, (0, LOW_PRECISION_TOLERANCE[dtype]))
    fn.scaling_layer.float()
    for x0, x1 in ((in0, in1), (in0.to(dtype), in1), (in0.to(dtype), in1.to(dtype))):
        x0 = x0.detach().requires_grad_()
        value = fn(x0, x1)
        assert_close(value, expected, (0, LOW_PRECISION_TOLERANCE[dtype]))
        value.sum().backward()
        assert x0.grad.dtype == x0.dtype


@pytest.mark.parametrize("types", ((torch.float32, torch.float32), *MIXED), ids=str)
@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("net", NETS)
def test_autocast(ours, oracle, instructions, net, grad_in_forward, types):
    """With the types of a decoder's output under autocast and of its target."""
    in0, in1 = (x.to(dtype).requires_grad_() for x, dtype in zip(pair(2, *SIZE[net]), types))
    fn = ours(net, grad_in_forward=grad_in_forward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fn(in0, in1)
        by_hand = fn(in0.float(), in1.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, by_hand)
    assert_close(value, oracle(net)(in0.double(), in1.double()), (0, LOW_PRECISION_TOLERANCE[torch.bfloat16]))
    grads, grads_by_hand = (torch.autograd.grad(v.sum(), (in0, in1)) for v in (value, by_hand))
    for grad, grad_by_hand, dtype in zip(grads, grads_by_hand, types):
        assert grad.dtype == dtype
        assert grad.isfinite().all()
        assert torch.equal(grad, grad_by_hand)
        assert grad.abs().max() > 0


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_autocast_and_grad_scaler(make_ours, instructions, grad_in_forward):
    in0, in1 = noise(2)
    expected = gradients(make_ours("vgg"), in0, in1, (True, False))
    fn = make_ours("vgg", grad_in_forward=grad_in_forward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, grads = gradients(fn, in0, in1, (True, False))
    assert value.dtype == torch.float32
    assert grads[0].dtype == torch.float32
    assert_norms_close([value], [expected[0]], LOW_PRECISION_TOLERANCE[torch.bfloat16])
    assert_norms_close(grads, expected[1], BFLOAT16_GRAD_TOLERANCE)

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pred = in0.clone().requires_grad_()
    optimizer = torch.optim.SGD([pred], lr=1.0)
    scaler.scale(fn(pred, in1).mean()).backward()
    scaler.unscale_(optimizer)
    plain = in0.clone().requires_grad_()
    fn(plain, in1).mean().backward()
    assert_norms_close([pred.grad], [plain.grad], REORDERED_TOLERANCE)


@pytest.mark.parametrize("precision", ("float32", "tf32", "bfloat16", "float16"))
@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_precision(make_ours, instructions, precision, grad_in_forward):
    in0, in1 = noise(2)
    expected = gradients(make_ours("alex"), in0, in1, (True, False))
    fn = make_ours("alex", precision=precision, grad_in_forward=grad_in_forward)
    value, grads = gradients(fn, in0, in1, (True, False))
    assert value.dtype == grads[0].dtype == torch.float32
    if precision in ("float32", "tf32") and not grad_in_forward:  # TF32 exists on CUDA alone
        assert torch.equal(value, expected[0])
    assert_norms_close([value], [expected[0]], SMALL_NET_LOW_PRECISION_TOLERANCE)
    # On the ordinary path, float16 gradients underflow unless the loss is scaled.
    if precision != "float16" or grad_in_forward:
        assert F.cosine_similarity(grads[0].flatten(), expected[1][0].flatten(), dim=0) > 0.9
    half = in0.bfloat16()
    mixed, by_hand = (gradients(fn, x, in1, (True, True)) for x in (half, half.float()))
    assert torch.equal(mixed[0], by_hand[0])
    assert [grad.dtype for grad in mixed[1]] == [torch.bfloat16, torch.float32]
    assert torch.equal(mixed[1][0], by_hand[1][0].bfloat16())
    taps = fn.features(in0).taps
    assert taps[0].dtype == {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_float32_with_parameters_of_another_type(make_ours, dtype):
    module, (in0, in1) = make_ours("squeeze", precision="float32"), pair(1, 40, 40)
    assert_close(copy.deepcopy(module).to(dtype)(in0, in1), module(in0, in1).double(), (0, ROUNDED_INPUT_TOLERANCE))


def test_moved_to_another_type_and_back(make_ours):
    module, in0, in1 = make_ours(), *pair(1, 31, 31)
    expected = module(in0, in1)
    assert module.double()(in0.double(), in1.double()).dtype == torch.float64
    assert torch.equal(module.float()(in0, in1), expected)


# How LPIPS comes to a low type: options, the type of the module, autocast.
WAYS = {
    "precision": ({"precision": "bfloat16"}, torch.float32, False),
    "precision float16": ({"precision": "float16"}, torch.float32, False),
    "gradient in forward": ({"precision": "bfloat16", "grad_in_forward": True}, torch.float32, False),
    "direct": ({"precision": "bfloat16", "cpu_conv": "direct"}, torch.float32, False),
    "chunks": ({"precision": "bfloat16", "chunk_size": 2}, torch.float32, False),
    "module": ({}, torch.bfloat16, False),
    "module float16": ({}, torch.float16, False),
    "autocast": ({}, torch.float32, True),
    "trained": ({"eval_mode": False, "pnet_tune": True, "use_dropout": False}, torch.float32, True),
    "trained module": ({"eval_mode": False, "pnet_tune": True, "use_dropout": False}, torch.bfloat16, False),
}


@pytest.mark.parametrize("net", ("alex", "squeeze"))
@pytest.mark.parametrize("way", WAYS)
def test_types_of_convolutions(make_ours, instructions, way, net):
    """Without instructions all are float32's, forwards and back, and the results have the same types."""
    options, dtype, autocast = WAYS[way]
    fn = make_ours(net, **options).to(dtype)
    low = torch.float16 if "float16" in way else torch.bfloat16
    images = [x.to(dtype).requires_grad_() for x in pair(3, 64, 64)]
    wanted = images + [p for p in fn.parameters() if p.requires_grad]
    with ConvolutionTypes() as seen:
        with torch.autocast("cpu", low, enabled=autocast):
            taps, value = fn.features(images[0]).taps, fn(*images)
            against_features = fn(images[1], fn.features(images[0].detach()))
        grads = torch.autograd.grad(value.sum(), wanted, retain_graph=True)
    assert seen.types == {low if instructions else torch.float32}
    assert {tap.dtype for tap in taps} == {low}
    assert value.dtype == torch.float32
    assert_norms_close([against_features], [value], LOW_PRECISION_TOLERANCE[low])
    for grad, tensor in zip(grads, wanted):
        assert grad.dtype == tensor.dtype
        assert grad.isfinite().all()
    exact = make_ours(net, **{**options, "precision": "float32"})
    exact_images = [x.detach().float().requires_grad_() for x in images]
    exact_value = exact(*exact_images)
    assert_norms_close([value], [exact_value], SMALL_NET_LOW_PRECISION_TOLERANCE)
    exact_grads = torch.autograd.grad(exact_value.sum(), exact_images)
    for grad, exact_grad in zip(grads, exact_grads):
        assert F.cosine_similarity(grad.double().flatten(), exact_grad.double().flatten(), dim=0) > 0.9


@pytest.mark.parametrize("dtype", LOW_TYPES, ids=str)
def test_transformed_without_instructions(make_ours, monkeypatch, dtype):
    """vmap, a double backward, and a batch of gradients compute in float32, too."""
    set_instructions(monkeypatch, False)
    fn, exact = make_ours("squeeze", precision=str(dtype).removeprefix("torch.")), make_ours("squeeze")
    in0, in1 = pair(2, 40, 40)
    in0.requires_grad_()
    with ConvolutionTypes() as seen:
        mapped = torch.func.vmap(fn)(in0[:, None], in1[:, None])
        assert_norms_close([mapped[:, 0]], [fn(in0, in1)], ROUNDED_INPUT_TOLERANCE)
        found, expected = (torch.autograd.grad(f(in0, in1).sum() * 1e3, in0, create_graph=True)[0] for f in (fn, exact))
        assert F.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9
        (second,) = torch.autograd.grad(found.square().sum(), in0)
        assert second.isfinite().all()
        factors = torch.eye(2).view(2, 2, 1, 1, 1) * 1e3
        (batched,) = torch.autograd.grad(fn(in0, in1), in0, factors, is_grads_batched=True)
        (at_once,) = torch.autograd.grad(fn(in0, in1).sum() * 1e3, in0)
        assert_norms_close([batched.sum(0)], [at_once], ROUNDED_INPUT_TOLERANCE)
    assert seen.types == {torch.float32}

"""LPIPS against lpips 0.1.4 run in float64: values, layers, maps and gradients."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from .conftest import BACKENDS, NETS
from .images import (
    MIN_SIZE,
    SIZE,
    VALUE_TOLERANCE,
    assert_close,
    assert_gradients_close,
    image,
    pair,
)

DTYPES = (torch.float32, torch.float64)
OPTIONS = {
    "default": {},
    "v0.0": {"version": "0.0"},
    "unweighted": {"lpips": False},
    "unweighted-v0.0": {"lpips": False, "version": "0.0"},
    "spatial": {"spatial": True},
    "spatial-v0.0": {"spatial": True, "version": "0.0"},
    "spatial-unweighted": {"spatial": True, "lpips": False},
}


@pytest.fixture(scope="module")
def oracle(make_theirs):
    """lpips 0.1.4 in float64, by net and options."""
    made = functools.cache(lambda net, options: make_theirs(net, torch.float64, **dict(options)))
    return lambda net, **options: made(net, tuple(options.items()))


@pytest.fixture(scope="module")
def ours(make_ours):
    """Our module by net, type and options; changed by no test. Few are kept, for VGG is large."""
    made = functools.lru_cache(4)(lambda net, dtype, options: make_ours(net, **dict(options)).to(dtype))
    return lambda net, dtype=torch.float32, **options: made(net, dtype, tuple(options.items()))


def run(module, in0: Tensor, in1: Tensor, **arguments) -> tuple[Tensor, list[Tensor], tuple[Tensor, Tensor]]:
    """Value, parts by layer, and the gradients of a random combination of the values to both images."""
    in0, in1 = in0.detach().requires_grad_(), in1.detach().requires_grad_()
    value, parts = module(in0, in1, retPerLayer=True, **arguments)
    gen = torch.Generator().manual_seed(3)
    factors = torch.rand(value.shape, generator=gen, dtype=torch.float64).to(value)
    return value, parts, torch.autograd.grad((factors * value).sum(), (in0, in1))


def assert_same(module, reference, in0, in1, **arguments):
    """Both give the same, to the rounding of the images' type; `reference` computes in float64."""
    dtype = in0.dtype
    value, parts, grads = run(module, in0, in1, **arguments)
    expected, expected_parts, expected_grads = run(reference, in0.double(), in1.double(), **arguments)
    assert value.dtype == dtype
    assert torch.equal(module(in0, in1, **arguments), value)
    assert_close(value, expected, VALUE_TOLERANCE[dtype])
    assert len(parts) == len(expected_parts) == module.L
    for layer, (part, expected_part) in enumerate(zip(parts, expected_parts)):
        assert_close(part, expected_part, VALUE_TOLERANCE[dtype], f"layer {layer}")
    assert_gradients_close(grads, expected_grads, dtype)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_options(ours, oracle, net, backend, dtype, options):
    assert_same(ours(net, dtype, backend=backend, **options), oracle(net, **options), *pair(2, *SIZE[net], dtype=dtype))


@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
@pytest.mark.parametrize("size", ("minimum", (64, 64), (31, 57)), ids=str)
@pytest.mark.parametrize("net", NETS)
def test_sizes(ours, oracle, net, size, spatial):
    h, w = (MIN_SIZE[net],) * 2 if size == "minimum" else size
    assert_same(ours(net, spatial=spatial), oracle(net, spatial=spatial), *pair(2, h, w))


@pytest.mark.parametrize("layout", ("channels_last", "sliced", "transposed"))
@pytest.mark.parametrize("net", NETS)
def test_layouts(ours, oracle, net, layout):
    change = {
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "sliced": lambda x: torch.cat((x, x), dim=1).repeat_interleave(2, dim=3)[:, 1:4, :, ::2],
        "transposed": lambda x: x.transpose(2, 3),
    }[layout]
    assert_same(ours(net), oracle(net), *map(change, pair(2, *SIZE[net])))


@pytest.mark.parametrize("net", NETS)
def test_normalize(ours, oracle, net):
    in0, in1 = ((x + 1) / 2 for x in pair(2, *SIZE[net]))
    assert_same(ours(net), oracle(net), in0, in1, normalize=True)


@pytest.mark.parametrize("sizes", ((1, 3), (3, 1)), ids=str)
@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
@pytest.mark.parametrize("net", NETS)
def test_one_against_many(ours, oracle, net, spatial, sizes):
    in0, in1 = (image(n, *SIZE[net], seed=n) for n in sizes)
    assert_same(ours(net, spatial=spatial), oracle(net, spatial=spatial), in0, in1)


@pytest.mark.parametrize("net", NETS)
def test_grayscale(ours, oracle, net):
    in0, in1 = pair(2, *SIZE[net], channels=1)
    assert_same(ours(net), oracle(net), in0, in1)
    assert torch.equal(ours(net)(in0, in1), ours(net)(in0.expand(-1, 3, -1, -1), in1.expand(-1, 3, -1, -1)))
    assert ours(net)(in0, in1.expand(-1, 3, -1, -1)).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("spatial", (False, True), ids=("mean", "spatial"))
@pytest.mark.parametrize("net", NETS)
def test_empty_batch(ours, net, spatial):
    in0, in1 = pair(0, *SIZE[net])
    value, parts, grads = run(ours(net, spatial=spatial), in0, in1)
    assert value.shape == ((0, 1, *SIZE[net]) if spatial else (0, 1, 1, 1))
    assert all(part.shape == value.shape for part in parts)
    assert all(grad.shape == in0.shape for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_vgg16_is_vgg_and_parts_add_up(ours, net, backend):
    in0, in1 = pair(3, *SIZE[net])
    value, parts = ours(net, backend=backend)(in0, in1, retPerLayer=True)
    assert_close(sum(parts), value.double(), VALUE_TOLERANCE[torch.float32])
    if net == "vgg":
        assert torch.equal(ours("vgg16", backend=backend)(in0, in1), value)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("net", NETS)
def test_low_precision(ours, oracle, net, dtype):
    """Features are in the images' type, whose rounding shows; the head's own arithmetic is float32 all the same."""
    module, in0, in1 = ours(net, dtype), *pair(2, *SIZE[net], dtype=dtype)
    value, _, grads = run(module, in0, in1)
    assert value.dtype == torch.float32
    feats0, feats1 = ([f.double() for f in module.net(module.scaling_layer(x))] for x in (in0, in1))
    weights = [weight.double() for weight in module.linear_weights()]
    assert_close(value, exact_head(feats0, feats1, weights), VALUE_TOLERANCE[torch.float32])
    expected, _, expected_grads = run(oracle(net), in0.double(), in1.double())
    loose = 0.05 if dtype == torch.bfloat16 else 0.01
    assert_close(value, expected, (0, loose))
    for grad, expected_grad in zip(grads, expected_grads):
        assert grad.dtype == dtype
        aligned = torch.nn.functional.cosine_similarity(grad.double().flatten(), expected_grad.flatten(), dim=0)
        assert aligned > 0.95


def exact_head(feats0, feats1, weights):
    """lpips 0.1.4's head on features that are already there."""
    from lpips import normalize_tensor

    parts = [
        (weight * (normalize_tensor(f0) - normalize_tensor(f1)) ** 2)
        .sum(dim=1, keepdim=True)
        .mean((2, 3), keepdim=True)
        for f0, f1, weight in zip(feats0, feats1, weights)
    ]
    return sum(parts)


# The types that a decoder under autocast and its target have, either way round, and others that meet.
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
    """A float32 module takes them as lpips does, promoted; each gradient is lpips's, rounded to its image's type."""
    in0, in1 = (x.to(dtype) for x, dtype in zip(pair(2, *SIZE[net]), types))
    theirs = {"version": "0.0"} if "version" in options else {}
    expected, _, expected_grads = run(oracle(net, **theirs), in0.double(), in1.double())
    in0, in1 = in0.requires_grad_(), in1.requires_grad_()
    value = ours(net, **options)(in0, in1)
    assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
    gen = torch.Generator().manual_seed(3)
    factors = torch.rand(value.shape, generator=gen, dtype=torch.float64).to(value)
    grads = torch.autograd.grad((factors * value).sum(), (in0, in1))
    assert tuple(grad.dtype for grad in grads) == types
    # Those of float32 images with the same values, which other tests hold to lpips, and then rounded.
    wide0, wide1 = (x.detach().float().requires_grad_() for x in (in0, in1))
    wide = torch.autograd.grad((factors * ours(net, **options)(wide0, wide1)).sum(), (wide0, wide1))
    for grad, wide_grad, exact in zip(grads, wide, expected_grads):
        assert torch.equal(grad, wide_grad.to(grad.dtype))
        # float16 has no small numbers: its gradients are compared where they are not rounded to nothing.
        least = torch.finfo(grad.dtype).tiny if grad.dtype == torch.float16 else 0.0
        error = (grad.double() - exact).abs() * (exact.abs() > least)
        rounding = torch.finfo(grad.dtype).eps / 2
        assert (error.flatten(1).norm(dim=1) <= (rounding + 1e-4) * exact.flatten(1).norm(dim=1)).any()
        assert error.norm() <= (rounding + 0.1) * exact.norm()  # where a ReLU flips, as in images.py


def test_images_of_two_types_are_promoted_as_by_lpips(ours, make_theirs):
    """lpips's own number in float32: which types run there run here."""
    in0, in1 = pair(2, *SIZE["alex"])
    for types in MIXED:
        images = [x.to(dtype) for x, dtype in zip((in0, in1), types)]
        expected = make_theirs("alex")(*images)
        assert_close(ours("alex")(*images), expected.double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_wider_images_than_the_module(make_ours, oracle, dtype):
    """Parameters in half precision, as sharding makes them, and images or buffers in float32."""
    in0, in1 = pair(2, *SIZE["alex"])
    expected = oracle("alex")(in0.double(), in1.double())
    fn = make_ours("alex").to(dtype)
    assert_close(fn(in0, in1), expected, (0, 0.05))
    fn.scaling_layer.float()
    for x0, x1 in ((in0, in1), (in0.to(dtype), in1), (in0.to(dtype), in1.to(dtype))):
        x0 = x0.detach().requires_grad_()
        value = fn(x0, x1)
        assert_close(value, expected, (0, 0.05))
        value.sum().backward()
        assert x0.grad.dtype == x0.dtype


@pytest.mark.parametrize("types", ((torch.float32, torch.float32), *MIXED), ids=str)
@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("net", NETS)
def test_autocast(ours, oracle, net, grad_in_forward, types):
    """With the types that a decoder under autocast gives beside its target's."""
    in0, in1 = (x.to(dtype).requires_grad_() for x, dtype in zip(pair(2, *SIZE[net]), types))
    fn = ours(net, grad_in_forward=grad_in_forward)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fn(in0, in1)
        by_hand = fn(in0.float(), in1.float())
    assert value.dtype == torch.float32
    assert torch.equal(value, by_hand)
    assert_close(value, oracle(net)(in0.double(), in1.double()), (0, 0.05))
    grads, grads_by_hand = (torch.autograd.grad(v.sum(), (in0, in1)) for v in (value, by_hand))
    for grad, grad_by_hand, dtype in zip(grads, grads_by_hand, types):
        assert grad.dtype == dtype
        assert grad.isfinite().all()
        assert torch.equal(grad, grad_by_hand)
        assert grad.abs().max() > 0


@pytest.mark.parametrize("shapes", (((3,), (3,)), ((1,), (3,)), ((3,), (2, 3)), ((2, 3), (1,)), ((), (3,))), ids=str)
@pytest.mark.parametrize("options", ({}, {"spatial": True}), ids=str)
def test_images_without_a_batch(ours, make_theirs, options, shapes):
    """As in lpips, where the scaling gives them one (but for maps, whose size it takes from the wrong axes)."""
    size = SIZE["alex"]
    gen = torch.Generator().manual_seed(0)
    in0, in1 = (torch.rand(*shape, *size, generator=gen) * 2 - 1 for shape in shapes)
    in0.requires_grad_()
    fn = ours("alex", **options)
    value = fn(in0, in1)
    if not options and shapes[0] == shapes[1]:
        for mask in (torch.ones(1, *size), torch.ones(size)):
            torch.testing.assert_close(fn(in0, in1, weight=mask), value)
    batched = in0[(None,) * (4 - in0.dim())] if options else in0
    expected = make_theirs("alex", **options)(batched, in1)
    assert_close(value, expected.double(), VALUE_TOLERANCE[torch.float32])
    found, exact = (torch.autograd.grad(v.sum(), in0)[0] for v in (value, expected))
    assert found.shape == in0.shape
    assert (found - exact).norm() <= 1e-3 * exact.norm()


@pytest.mark.parametrize("needs", ((False, True), (True, False), (False, False)), ids=str)
def test_gradient_to_one_image_only(ours, oracle, needs):
    """The gradient is the same whether the other image asks for its own or not."""
    in0, in1 = pair(2, *SIZE["alex"])
    _, _, expected = run(oracle("alex"), in0.double(), in1.double())
    images = [x.clone().requires_grad_(need) for x, need in zip((in0, in1), needs)]
    value = ours("alex")(*images)
    assert value.requires_grad == any(needs)
    if any(needs):
        gen = torch.Generator().manual_seed(3)
        (torch.rand(value.shape, generator=gen, dtype=torch.float64).to(value) * value).sum().backward()
    for x, need, grad in zip(images, needs, expected):
        assert (x.grad is not None) == need
        if need:
            assert_gradients_close([x.grad], [grad], torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_two_backwards_through_one_call(ours, net, backend):
    """GANs weigh their losses by the gradient norm at the last layer, then run backward through the same graph."""
    in0, in1 = pair(2, *SIZE[net])
    in0.requires_grad_()
    loss = ours(net, backend=backend)(in0, in1).mean()
    (first,) = torch.autograd.grad(loss, in0, retain_graph=True)
    loss.backward()
    assert torch.equal(in0.grad, first)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_identical_images_are_at_distance_zero(ours, net, backend):
    in0, _ = pair(2, *SIZE[net])
    value, parts, grads = run(ours(net, backend=backend), in0, in0.clone())
    assert all(torch.equal(t, torch.zeros_like(t)) for t in (value, *parts, *grads))


@pytest.mark.parametrize("net", NETS)
def test_two_runs_agree_to_the_bit(ours, net):
    first, second = (run(ours(net), *pair(2, *SIZE[net])) for _ in range(2))
    for a, b in zip((first[0], *first[1], *first[2]), (second[0], *second[1], *second[2])):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_features_of_norm_zero(ours, net, backend):
    """Where a whole feature vector is 0 lpips gives NaN gradients; ours are finite, also under anomaly detection."""
    module = ours(net, torch.float32, backend=backend)
    in0 = module.scaling_layer.shift.expand(1, 3, *SIZE[net]).clone()  # scaled to exactly 0
    in1 = image(1, *SIZE[net], seed=1)
    with torch.autograd.detect_anomaly(check_nan=True):
        value, _, grads = run(module, in0, in1)
    assert value.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_nan_in_nan_out(ours, net, backend, bad):
    """A NaN or an infinity makes its own image's distance NaN, and no other's."""
    in0, in1 = pair(3, *SIZE[net])
    clean = ours(net, backend=backend)(in0, in1)
    in0[1, 0, 10, 12] = bad
    value = ours(net, backend=backend)(in0, in1)
    assert value[1].isnan().all()
    assert_close(value[[0, 2]], clean[[0, 2]].double(), VALUE_TOLERANCE[torch.float32])

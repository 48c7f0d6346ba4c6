"""LPIPS against lpips 0.1.4 in float64: values, layers, maps and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.support.comparisons import assert_close, assert_gradients_close, assert_norms_close
from tests.support.gradients import gradients, parts_and_gradients
from tests.support.images import MIN_SIZE, NOISE_SIZE, SIZE, image, noise, pair
from tests.support.parameters import BACKENDS, NETS
from tests.support.tolerances import FLOAT32_GRAD_TOLERANCE, REORDERED_TOLERANCE, ROUNDING_TOLERANCE, VALUE_TOLERANCE

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


def assert_same(module, reference, in0, in1, **arguments):
    """Both modules give the same values, parts and gradients, to rounding; `reference` computes in float64."""
    dtype = in0.dtype
    value, parts, grads = parts_and_gradients(module, in0, in1, **arguments)
    expected, expected_parts, expected_grads = parts_and_gradients(reference, in0.double(), in1.double(), **arguments)
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
    value, parts, grads = parts_and_gradients(ours(net, spatial=spatial), in0, in1)
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


@pytest.mark.parametrize("shapes", (((3,), (3,)), ((1,), (3,)), ((3,), (2, 3)), ((2, 3), (1,)), ((), (3,))), ids=str)
@pytest.mark.parametrize("options", ({}, {"spatial": True}), ids=str)
def test_images_without_a_batch(ours, make_theirs, options, shapes):
    """lpips accepts them, too: its scaling adds the batch. (For maps it takes the size from the wrong axes.)"""
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
    assert (found - exact).norm() <= FLOAT32_GRAD_TOLERANCE * exact.norm()


@pytest.mark.parametrize("needs", ((False, True), (True, False), (False, False)), ids=str)
def test_gradient_to_one_image_only(ours, oracle, needs):
    """The gradient to one image does not depend on whether the other image needs one."""
    in0, in1 = pair(2, *SIZE["alex"])
    _, _, expected = parts_and_gradients(oracle("alex"), in0.double(), in1.double())
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
    """GANs weight their losses by the gradient's norm at the last layer, then run backward through the same graph."""
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
    value, parts, grads = parts_and_gradients(ours(net, backend=backend), in0, in0.clone())
    assert all(torch.equal(t, torch.zeros_like(t)) for t in (value, *parts, *grads))


@pytest.mark.parametrize("net", NETS)
def test_two_runs_agree_to_the_bit(ours, net):
    first, second = (parts_and_gradients(ours(net), *pair(2, *SIZE[net])) for _ in range(2))
    for a, b in zip((first[0], *first[1], *first[2]), (second[0], *second[1], *second[2])):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_features_of_norm_zero(ours, net, backend):
    """Where a feature vector is 0, lpips gives NaN gradients. Ours are finite, also under anomaly detection."""
    module = ours(net, torch.float32, backend=backend)
    in0 = module.scaling_layer.shift.expand(1, 3, *SIZE[net]).clone()  # the scaling layer makes it exactly 0
    in1 = image(1, *SIZE[net], seed=1)
    with torch.autograd.detect_anomaly(check_nan=True):
        value, _, grads = parts_and_gradients(module, in0, in1)
    assert value.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("bad", (float("nan"), float("inf"), float("-inf")))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("net", NETS)
def test_nan_in_nan_out(ours, net, backend, bad):
    """A NaN or an infinity makes the distance of its own image NaN, and no other distance."""
    in0, in1 = pair(3, *SIZE[net])
    clean = ours(net, backend=backend)(in0, in1)
    in0[1, 0, 10, 12] = bad
    value = ours(net, backend=backend)(in0, in1)
    assert value[1].isnan().all()
    assert_close(value[[0, 2]], clean[[0, 2]].double(), VALUE_TOLERANCE[torch.float32])


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
def test_reduction(make_ours, reduction):
    in0, in1 = noise(3)
    fn = make_ours("alex")
    value = fn(in0, in1)
    assert value.shape == (3, 1, 1, 1)
    expected = {"none": value, "mean": value.mean(), "sum": value.sum()}[reduction]
    found, parts = fn(in0, in1, retPerLayer=True, reduction=reduction)
    assert torch.equal(found, expected)
    assert all(part.shape == expected.shape for part in parts)


class Carrier(torch.Tensor):
    """A subclass of Tensor with its own `new_empty`, like MONAI's MetaTensor."""

    def new_empty(self, size, **options):
        return super().new_empty(tuple(size), **options).as_subclass(Carrier)


def tv_image(x):
    return pytest.importorskip("torchvision.tv_tensors").Image(x)


@pytest.mark.parametrize("wrap", (lambda x: x.as_subclass(Carrier), tv_image), ids=("carrier", "tv_tensors"))
@pytest.mark.parametrize("options", ({}, {"grad_in_forward": True}, {"spatial": True}), ids=str)
def test_tensor_subclasses(make_ours, wrap, options):
    """As images, target, mask and video; the gradient reaches the tensor that they were made from."""
    in0, in1 = noise(2)
    fn = make_ours("squeeze", **options)
    expected = gradients(fn, in0, in1, (True, False))
    for target in (in1, wrap(in1), fn.features(wrap(in1))):
        leaf = in0.clone().requires_grad_()
        value = fn(wrap(leaf), target)
        torch.testing.assert_close(torch.Tensor(value), expected[0], rtol=ROUNDING_TOLERANCE, atol=0)
        (grad,) = torch.autograd.grad((value * torch.linspace(0.5, 2, value.numel()).view_as(value)).sum(), leaf)
        assert_norms_close([grad], expected[1], REORDERED_TOLERANCE)
    if not options.get("spatial"):
        mask = torch.rand(2, 1, NOISE_SIZE, NOISE_SIZE)
        leaf = in0.clone().requires_grad_()
        value = fn(wrap(leaf), in1, weight=wrap(mask))
        assert type(value) is torch.Tensor
        torch.testing.assert_close(value, fn(in0, in1, weight=mask))
        value.sum().backward()
        assert leaf.grad.abs().max() > 0
        clip = in0.transpose(0, 1)[None]
        torch.testing.assert_close(fn(wrap(clip), wrap(clip) * 0.5), fn(clip, clip * 0.5))

"""LPIPS whole by the GPU's layers and Triton's head, against LPIPS by torch's layers in float64.

On a GPU these tests run there. Without one, CPU tensors go the same way: what asks for the device is told of a GPU,
Triton's kernels run in its interpreter, and cuDNN's convolution has a stand-in.
"""

from __future__ import annotations

import collections
import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from lpips_fast import LPIPS
from lpips_fast.distance import grad_in_forward
from lpips_fast.diversity import mean_distance
from lpips_fast.trunk import convolution, gpu_layers
from lpips_fast.trunk import module as trunk_module
from lpips_fast.trunk.module import Trunk
from tests.support.comparisons import assert_close, assert_gradients_close, assert_norms_close
from tests.support.gradients import gradients
from tests.support.images import MIN_SIZE, SIZE, pair
from tests.support.parameters import NETS, REAL_NETS
from tests.support.tolerances import (
    LINEAR_WEIGHT_GRAD_TOLERANCE,
    LOW_PRECISION_GRAD_ERROR_RATIO,
    LOW_PRECISION_TOLERANCE,
    PAIRWISE_TOLERANCE,
    REORDERED_TOLERANCE,
    SECOND_GRAD_TOLERANCE,
    VALUE_TOLERANCE,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not gpu_layers.available(torch.device(DEVICE)), reason="no GPU for the kernels, and Triton's interpreter is off"
)

NEEDS = {"first": (True, False), "second": (False, True), "both": (True, True)}
# The interpreter's time grows with the number of programs, so its tiles are larger. These are a GPU's.
GPU_TILES = {
    "BIAS_RELU_TILE_BYTES": 8192,
    "POOL_TILE": 1024,
    "SIGNS_TILE": 1024,
    "TAP_TILE_BYTES": 4096,
    "HEAD_TAP_TILE_BYTES": 4096,
    "FIRST_TILE": 128,
}
# The oracle's trunk is not frozen: autograd differentiates it, so that it shares no gradient with the GPU's layers.
OPTIONS_OF_EXACT = {"backend": "reference", "eval_mode": False, "pnet_tune": True}


def conv_relu_cudnn(x, weight, bias, stride, padding):
    """The stand-in for `gpu_layers._conv_relu_cudnn`. cuDNN makes 0 of NaN for some shapes, this one for all."""
    y = F.conv2d(x, weight, bias, stride, padding)
    return torch.where(y > 0, y, 0).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Makes CPU tensors go the GPU's way: each function that asks for the device is told of a GPU."""
    if DEVICE == "cuda":
        yield
        return
    cuda, meta = torch.device("cuda"), torch.device("meta")
    setting, pairs_at_a_time = Trunk.setting, grad_in_forward.pairs_at_a_time
    monkeypatch.setattr(Trunk, "setting", lambda self, device, n_taps=None: setting(self, cuda, n_taps))
    monkeypatch.setattr(trunk_module, "is_autocast_enabled", lambda device: torch.is_autocast_enabled(DEVICE))
    monkeypatch.setattr(convolution, "_is_cuda", lambda device: True)
    for module in (importlib.import_module("lpips_fast.lpips"), grad_in_forward):  # the CPU alone has its own chunks
        monkeypatch.setattr(module, "pairs_at_a_time", lambda x0, *a, **k: pairs_at_a_time(x0.to(meta), *a, **k))
    with torch.library._scoped_library("lpips_fast", "IMPL") as library:
        library.impl("conv_relu_cudnn", conv_relu_cudnn, "CPU")
        yield


@pytest.fixture
def make_gpu(make_ours):
    """Makes LPIPS on the GPU, or as on it."""

    def make(net, **options):
        fn = make_ours(net, backend="triton", **options).to(DEVICE)
        assert fn.net.setting(torch.device(DEVICE)).layers == "gpu"
        return fn

    return make


@pytest.fixture
def make_exact(make_ours):
    """Makes LPIPS in float64 on the CPU, which autograd differentiates layer by layer."""

    def make(net, **options):
        return make_ours(net, **OPTIONS_OF_EXACT, **options).double().eval()

    return make


def to_device(*images):
    return [x.to(DEVICE) for x in images]


def exactly(*images):
    return [x.double() for x in images]


def assert_as_exact(fn, exact, in0, in1, needs=(True, True), call=None):
    """Values and gradients in float32. The call is of the module and the images."""
    found = gradients(lambda *images: call(fn, *images) if call else fn(*images), *to_device(in0, in1), needs)
    expected = gradients(lambda *images: call(exact, *images) if call else exact(*images), *exactly(in0, in1), needs)
    assert_close(found[0], expected[0], VALUE_TOLERANCE[torch.float32])
    assert_gradients_close(found[1], expected[1], torch.float32)


class Operators(TorchDispatchMode):
    """Counts the calls of this package's operators."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "lpips_fast":
            self.calls[func.name().removeprefix("lpips_fast::")] += 1
        return func(*args, **(kwargs or {}))


# Of the metric: cuDNN's convolutions, max_pool, bias_relu. Of a step: pack_signs and mask_by_signs, and the taps.
COUNTS = {"alex": (4, 2, 0, 0, 5), "vgg": (11, 3, 1, 7, 5), "squeeze": (16, 3, 0, 10, 7)}


@pytest.mark.parametrize("net", NETS)
def test_operators(make_gpu, make_exact, net):
    """What docs/gpu.md says of the metric, a step and a step with grad_in_forward; and that they give one value."""
    fn, images = make_gpu(net), pair(1, *SIZE[net])
    exact, (in0, in1) = make_exact(net)(*exactly(*images)), to_device(*images)
    convolutions, pools, bias_relus, signs, taps = COUNTS[net]

    def operators(*images):
        with Operators() as operators:
            value = fn(*images)
            if value.requires_grad:
                value.sum().backward()
        assert_close(value, exact, VALUE_TOLERANCE[torch.float32])
        return operators.calls

    def expected(runs, **others):
        forward = {
            "first_conv_relu_triton": runs,
            "conv_relu_cudnn": runs * convolutions,
            "max_pool_triton": runs * pools,
            "bias_relu_triton": runs * bias_relus,
            "head_fwd_triton": 1,
        }
        return +collections.Counter({**forward, **others})

    assert operators(in0, in1) == expected(1)
    in0.requires_grad_()
    # VGG's first layer packs its signs itself; the other nets' first layer is a tap and has none.
    backward = {"pack_signs_triton": signs, "mask_by_signs_triton": signs + (net == "vgg")}
    assert operators(in0, in1) == expected(2, **backward, head_bwd_triton=1, tap_bwd_triton=taps)
    fn.grad_in_forward = True
    assert operators(in0, in1) == expected(2, **backward, head_tap_bwd_triton=taps)


@pytest.mark.parametrize("grad_in_forward", (False, True))
@pytest.mark.parametrize("net", NETS)
def test_value_and_gradient(make_gpu, make_exact, net, grad_in_forward):
    assert_as_exact(make_gpu(net, grad_in_forward=grad_in_forward), make_exact(net), *pair(2, *SIZE[net]))


@pytest.mark.parametrize("net", NETS)
def test_several_programs_an_image(monkeypatch, make_gpu, make_exact, net):
    """In tiles of a GPU's size; the interpreter's own hold a whole image of this size."""
    kernels = importlib.import_module("lpips_fast.kernels.trunk")
    for name, tile in GPU_TILES.items():
        monkeypatch.setattr(kernels, name, tile)
    fn, exact, images = make_gpu(net), make_exact(net), pair(1, MIN_SIZE[net], MIN_SIZE[net] + 1)
    assert_as_exact(fn, exact, *images, NEEDS["first"])
    fn.grad_in_forward = True
    assert_as_exact(fn, exact, *images)


@pytest.mark.parametrize("net", REAL_NETS)
def test_imagenets_weights(real_trunk, net):
    weights = real_trunk(net)
    fn = LPIPS(net=net, trunk_weights=weights, backend="triton").to(DEVICE)
    exact = LPIPS(net=net, trunk_weights=weights, **OPTIONS_OF_EXACT).double().eval()
    assert_as_exact(fn, exact, *pair(1, *SIZE[net]))


def mask(fn, in0, in1):
    gen = torch.Generator().manual_seed(4)
    return fn(in0, in1, weight=torch.rand(len(in0), 1, *in0.shape[2:], generator=gen).to(in0))


def features(fn, in0, in1):
    return fn(in0, fn.features(in1))


def parts(fn, in0, in1):
    return torch.cat(fn(in0, in1, retPerLayer=True)[1], dim=1)


def two_taps(fn, in0, in1):
    fn.L = 2
    return fn(in0, in1)


def layouts(fn, in0, in1):
    """One batch in channels-last, the other a gray image in part of a larger one."""
    in0, in1 = (in0 + 1) / 2, (in1 + 1) / 2
    gray = torch.zeros_like(F.pad(in1[:, :1], (3, 2, 1, 4)))
    gray[:, :, 1:-4, 3:-2] = in1[:, :1]
    return fn(in0.contiguous(memory_format=torch.channels_last), gray[:, :, 1:-4, 3:-2], normalize=True)


def reused(fn, in0, in1):
    """After a call in inference mode, which makes and keeps the trunk's tensors."""
    with torch.inference_mode():
        fn(in0, in1)
    return fn(in0, in1)


# The options, the numbers of images, which of them need a gradient, and the call: each has code of its own.
CALLS = {
    "second": ({}, (1, 1), "second", None),
    "maps": ({"spatial": True}, (1, 1), "both", None),
    "parts of layers": ({}, (1, 1), "first", parts),
    "version 0.0": ({"version": "0.0"}, (1, 1), "both", None),
    "no linear weights": ({"lpips": False}, (1, 1), "first", None),
    "mask": ({}, (1, 1), "both", mask),
    "features": ({}, (1, 1), "first", features),
    "two taps": ({}, (1, 1), "both", two_taps),
    "layouts": ({}, (1, 1), "both", layouts),
    "reused": ({}, (1, 1), "first", reused),
    "one for all": ({"chunk_size": 2}, (3, 1), "first", None),
    "all for one": ({"chunk_size": 1}, (2, 1), "second", None),
    "chunks": ({"chunk_size": 1}, (2, 2), "both", None),
}
NOT_IN_FORWARD = ("maps", "parts of layers")


@pytest.mark.parametrize(
    "call,grad_in_forward",
    [(call, how) for call in CALLS for how in (False, True) if not (how and call in NOT_IN_FORWARD)],
)
def test_calls(make_gpu, make_exact, call, grad_in_forward):
    options, numbers, needs, function = CALLS[call]
    fn, exact = make_gpu("alex", grad_in_forward=grad_in_forward, **options), make_exact("alex", **options)
    in0, in1 = (x[:n] for x, n in zip(pair(max(numbers), *SIZE["alex"]), numbers, strict=True))
    assert_as_exact(fn, exact, in0, in1, NEEDS[needs], function)


@pytest.mark.parametrize("grad_in_forward", (False, True))
def test_no_image(make_gpu, grad_in_forward):
    value, grads = gradients(make_gpu("alex", grad_in_forward=grad_in_forward), *to_device(*pair(0, *SIZE["alex"])))
    assert value.shape == (0, 1, 1, 1)
    assert [grad.shape for grad in grads] == [(0, 3, *SIZE["alex"])] * 2


def test_chunks_without_a_graph(make_gpu, make_exact):
    in0, in1 = pair(2, *SIZE["alex"])
    with Operators() as operators:
        found = make_gpu("alex", chunk_size=1)(*to_device(in0, in1))
    assert operators.calls["head_fwd_triton"] == 2
    assert_close(found, make_exact("alex")(*exactly(in0, in1)), VALUE_TOLERANCE[torch.float32])


def test_pairwise(make_gpu, make_exact):
    in0, in1 = pair(2, *SIZE["alex"])
    found = make_gpu("alex").pairwise(*to_device(in0, in1)).cpu().double()
    expected = make_exact("alex").pairwise(*exactly(in0, in1))
    torch.testing.assert_close(found, expected, rtol=0, atol=PAIRWISE_TOLERANCE[torch.float32])


def test_mean_distance_and_estimates(make_gpu, make_exact):
    fn, exact, images = make_gpu("alex"), make_exact("alex"), pair(2, *SIZE["alex"])
    found, expected = (mean_distance(fn, *to_device(*images)), mean_distance(exact, *exactly(*images)))
    assert found.mean == pytest.approx(expected.mean, rel=REORDERED_TOLERANCE)
    assert found.standard_error == pytest.approx(expected.standard_error, rel=REORDERED_TOLERANCE)
    found, expected = fn.pairwise(*to_device(*images), sketch=64), exact.pairwise(*exactly(*images), sketch=64)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=0, atol=PAIRWISE_TOLERANCE[torch.float32])


def test_linear_weights_get_gradients(make_gpu, make_exact):
    fn, exact = make_gpu("alex", eval_mode=False).eval(), make_exact("alex")
    in0, in1 = pair(2, *SIZE["alex"])
    found, expected = (
        torch.autograd.grad(module(*images).sum(), [layer.model[-1].weight for layer in module.linear_layers()])
        for module, images in ((fn, to_device(in0, in1)), (exact, exactly(in0, in1)))
    )
    for f, e in zip(found, expected, strict=True):
        assert_close(f, e, LINEAR_WEIGHT_GRAD_TOLERANCE)


@pytest.mark.parametrize("net", NETS)
def test_deterministic(monkeypatch, make_gpu, make_exact, net):
    """cuDNN's ReLU ignores the flag, so bias_relu applies every ReLU."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    fn, images = make_gpu(net), pair(1, *SIZE[net])
    with Operators() as operators:
        fn(*to_device(*images))
    assert operators.calls["conv_relu_cudnn"] == 0
    assert_as_exact(fn, make_exact(net), *images)


@pytest.mark.parametrize("net", NETS)
def test_tf32(make_gpu, make_exact, net):
    """torch's convolutions take it as an argument, and the first layer's gradient is another call then."""
    in0, in1 = pair(1, *SIZE[net])
    value, grads = gradients(make_gpu(net, precision="tf32"), *to_device(in0, in1), NEEDS["first"])
    expected, expected_grads = gradients(make_exact(net), *exactly(in0, in1), NEEDS["first"])
    if DEVICE == "cpu":  # which has no TF32
        assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
        assert_gradients_close(grads, expected_grads, torch.float32)
    else:
        assert_close(value, expected, (0, LOW_PRECISION_TOLERANCE[torch.float16]))


@pytest.mark.parametrize("precision,grad_in_forward", (("bfloat16", False), ("bfloat16", True), ("float16", True)))
@pytest.mark.parametrize("net", NETS)
def test_low_precision(monkeypatch, make_ours, make_gpu, make_exact, net, precision, grad_in_forward):
    """The gradient is about as close to float64's as that of torch's layers in the same type."""
    dtype, (in0, in1) = getattr(torch, precision), pair(1, *SIZE[net])
    fn = make_gpu(net, precision=precision, grad_in_forward=grad_in_forward)
    value, (found,) = gradients(fn, *to_device(in0, in1), NEEDS["first"])
    expected, (exact,) = gradients(make_exact(net), *exactly(in0, in1), NEEDS["first"])
    assert_close(value, expected, (0, LOW_PRECISION_TOLERANCE[dtype]))
    monkeypatch.setattr(gpu_layers, "available", lambda device: False)
    plain = make_ours(net, backend="reference", precision=precision).to(DEVICE)
    _, (torchs,) = gradients(plain, *to_device(in0, in1), NEEDS["first"])
    error, torchs_error = ((grad.cpu().double() - exact).norm() for grad in (found, torchs))
    assert error <= LOW_PRECISION_GRAD_ERROR_RATIO[dtype] * torchs_error


@pytest.mark.parametrize("precision,same", (("inherit", "float16"), ("tf32", "tf32")))
def test_autocast(make_gpu, precision, same):
    """Only 'inherit' takes its type."""
    images = to_device(*pair(1, *SIZE["alex"]))
    with torch.autocast(DEVICE, dtype=torch.float16):
        found = gradients(make_gpu("alex", precision=precision), *images, NEEDS["first"])
    expected = gradients(make_gpu("alex", precision=same), *images, NEEDS["first"])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("types", ((torch.bfloat16, torch.float32), (torch.float32, torch.float16)), ids=str)
def test_images_of_two_types(make_gpu, make_exact, types):
    in0, in1 = (x.to(dtype) for x, dtype in zip(pair(1, *SIZE["alex"]), types, strict=True))
    value, grads = gradients(make_gpu("alex"), *to_device(in0, in1))
    expected, expected_grads = gradients(make_exact("alex"), *exactly(in0, in1))
    assert_close(value, expected, VALUE_TOLERANCE[torch.float32])
    for grad, exact, dtype in zip(grads, expected_grads, types, strict=True):
        assert grad.dtype == dtype
        assert_norms_close([grad], [exact], LOW_PRECISION_TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("precision", ("inherit", "tf32", "bfloat16", "float16") if DEVICE == "cuda" else ("inherit",))
@pytest.mark.parametrize("net", NETS)
def test_an_image_with_a_nan_has_a_nan_distance(make_gpu, net, precision):
    """cuDNN's ReLU turns a NaN into 0 in some layers; the distance is NaN all the same, and the others are not."""
    fn = make_gpu(net, precision=precision)
    in0, in1 = to_device(*pair(3, *SIZE[net]))
    in0[1, 2, 12, 10], in1[2, 0, 3, 5] = torch.nan, torch.inf
    assert fn(in0, in1).flatten().isfinite().tolist() == [True, False, False]
    in0.requires_grad_()
    value = fn(in0, in1)
    assert value.flatten().isfinite().tolist() == [True, False, False]
    (grad,) = torch.autograd.grad(value.sum(), in0)
    assert grad[0].isfinite().all()


def test_gradient_of_the_gradient(make_gpu, make_exact):
    """torch's layers compute it, and a batch of gradients, from the tensors of the GPU's layers."""
    in0, in1 = pair(2, *SIZE["alex"])
    found, expected = [], []
    for module, images, results in (
        (make_gpu("alex"), to_device(in0, in1), found),
        (make_exact("alex"), exactly(in0, in1), expected),
    ):
        x = images[0].requires_grad_()
        value = module(x, images[1]).flatten()
        (grad,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), x, retain_graph=True)[0])
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).to(value)
        results.append(torch.autograd.grad(value, x, rows, is_grads_batched=True)[0])
    assert_close(found[0], expected[0], SECOND_GRAD_TOLERANCE)
    assert_gradients_close([found[1].flatten(0, 1)], [expected[1].flatten(0, 1)], torch.float32)


def test_compiles(make_gpu):
    """In one graph, with a gradient."""
    fn, images = make_gpu("alex"), to_device(*pair(1, *SIZE["alex"]))
    torch._dynamo.reset()
    found = gradients(torch.compile(fn, fullgraph=True, backend="aot_eager"), *images, NEEDS["first"])
    torch.testing.assert_close(found, gradients(fn, *images, NEEDS["first"]))

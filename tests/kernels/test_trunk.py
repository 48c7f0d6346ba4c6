"""The Triton kernels of the trunk, each against torch in float64, and whole trunks with them.

They run on a GPU, or on the CPU in Triton's interpreter.
"""

from __future__ import annotations

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from lpips_fast.head.operators import HeadInput, Norm
from lpips_fast.head.reference import head_maps_ref, head_ref
from lpips_fast.trunk import gpu_layers
from lpips_fast.trunk.execute import FrozenTrunk, run
from lpips_fast.trunk.gpu_layers import HeadGradient
from lpips_fast.trunk.module import Trunk
from lpips_fast.trunk.program import Pool
from tests.support.parameters import CUDA, NETS
from tests.support.tolerances import LAYER_TOLERANCE, TAPS_TOLERANCE

pytestmark = pytest.mark.skipif(not gpu_layers.available(), reason="no GPU, and Triton's interpreter is off")

ops = torch.ops.lpips_fast
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(2, 64, 8, 8), (1, 24, 7, 5), (2, 520, 3, 3), (1, 8, 1, 1), (0, 16, 4, 4)]
POOLS = (Pool(2, 2, False), Pool(3, 2, False), Pool(3, 2, True))


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def random(*shape, dtype=torch.float32):
    """Random tensors with few different values, so that windows have ties."""
    return nhwc((torch.randn(shape) * 4).round().div(4).to(DEVICE, dtype))


def assert_near(found, expected, dtype, slack=1):
    assert found.dtype == dtype
    assert found.shape == expected.shape
    atol = (
        slack
        * LAYER_TOLERANCE[dtype]
        * max(expected.abs().nan_to_num(0).max().item() if expected.numel() else 0, 1e-30)
    )
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol, equal_nan=True)


def signs_ref(y):
    passes = F.pad(~(y <= 0).movedim(1, -1), (0, -y.shape[1] % 8)).unflatten(-1, (-1, 8))
    return (passes * 2 ** torch.arange(8, device=y.device)).sum(-1).to(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", (True, False))
@pytest.mark.parametrize(("kernel", "stride", "padding"), ((3, 1, 1), (11, 4, 2), (3, 2, 0)))
def test_first_conv_relu(dtype, scaled, kernel, stride, padding):
    """The first layers of the nets, on images of several types and layouts."""
    x0 = torch.rand(2, 3, 19, 17, device=DEVICE)
    x1 = torch.rand(3, 19, 17, 3, device=DEVICE).permute(0, 3, 1, 2)  # another layout
    gray = torch.rand(1, 1, 19, 17, device=DEVICE).expand(2, 3, 19, 17)
    weight = nhwc(torch.randn(72, 3, kernel, kernel, device=DEVICE).to(dtype))
    bias, shift = torch.randn(72, device=DEVICE).to(dtype), torch.rand(3, device=DEVICE)
    scale = torch.rand(3, device=DEVICE) + 1
    for images in ([x0], [x0, x1], [gray, x0], [x0.bfloat16(), x1], [x0, x1.half()], [x0.half(), x1.bfloat16()]):
        scaled_images = torch.cat(images).double()
        if scaled:
            scaled_images = (scaled_images - shift.double().view(-1, 1, 1)) / scale.double().view(-1, 1, 1)
        rounded = scaled_images.to(dtype).double()
        expected = F.conv2d(rounded, weight.double(), bias.double(), stride, padding).relu()
        affine = (shift, scale) if scaled else (None, None)
        found, signs = ops.first_conv_relu_triton(images, *affine, weight, bias, stride, padding, False, True)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert_near(found, expected, dtype, slack=2)  # the images are rounded, too, in the interpreter towards 0
        assert torch.equal(signs, signs_ref(found))
        without, none = ops.first_conv_relu_triton(images, *affine, weight, bias, stride, padding, False, False)
        assert torch.equal(without, found)
        assert none.numel() == 0


def test_first_conv_relu_keeps_nan():
    image, weight = torch.rand(1, 3, 9, 9, device=DEVICE), nhwc(torch.randn(8, 3, 3, 3, device=DEVICE))
    image[0, 1, 4, 4] = torch.nan
    ones = torch.ones(3, device=DEVICE)
    found, _ = ops.first_conv_relu_triton([image], ones, ones, weight, torch.zeros(8, device=DEVICE), 1, 1, None, False)
    assert found[0, :, 3:6, 3:6].isnan().all()
    assert found.isnan().sum() == 9 * 8


@CUDA
@pytest.mark.parametrize("timed", (False, True))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "side"), ((64, 128, 3, 24), (64, 192, 5, 9), (64, 16, 1, 13), (512, 512, 3, 2))
)
def test_conv_relu_cudnn(monkeypatch, dtype, c_in, c_out, kernel, side, timed):
    """The result is torch's, and the same each time, whatever was in the memory of the output before."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", timed)
    x, weight = random(2, c_in, side, side, dtype=dtype), random(c_out, c_in, kernel, kernel, dtype=dtype)
    bias = torch.randn(c_out, device=DEVICE).to(dtype)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=kernel // 2).relu()
    found = ops.conv_relu_cudnn(x, weight, bias, 1, kernel // 2)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_near(found, expected, dtype, slack=2)
    reused = 0
    for _ in range(5):
        again = found.clone()
        before = again.data_ptr()
        again.fill_(torch.nan)
        del again
        again = ops.conv_relu_cudnn(x, weight, bias, 1, kernel // 2)
        reused += again.data_ptr() == before
        assert torch.equal(again, found)
        del again
    assert reused


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_pack_signs(dtype, shape):
    y = random(*shape, dtype=dtype)
    y[:1, :1, :1, :1] = torch.nan
    assert torch.equal(ops.pack_signs_triton(y), signs_ref(y))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("signs", (True, False))
@pytest.mark.parametrize("pool", (True, False))
def test_bias_relu(dtype, shape, signs, pool):
    y, bias = random(*shape, dtype=dtype), torch.randn(shape[1], device=DEVICE).to(dtype)
    y[:1, :1, :1, :1] = torch.nan
    expected = (y.double() + bias.double().view(-1, 1, 1)).relu()
    n, c, h, w = shape
    bits = torch.full((n, h, w, -(-c // 8)), 99, dtype=torch.uint8, device=DEVICE) if signs else None
    pooled = nhwc(y.new_empty(n, c, h // 2, w // 2)) if pool else None
    ops.bias_relu_triton(y, bias, bits, pooled)
    assert_near(y, expected, dtype)
    if signs:
        assert torch.equal(bits, signs_ref(y))
    if pool and min(h, w) > 1:
        torch.testing.assert_close(pooled, F.max_pool2d(y, 2), rtol=0, atol=0, equal_nan=True)


def window(pool):
    return f"{pool.kernel}/{pool.stride}{'c' * pool.ceil_mode}"


@pytest.mark.parametrize("size", ((8, 8), (7, 10), (3, 3), (5, 6)))
@pytest.mark.parametrize("pool", POOLS, ids=window)
def test_max_pool(pool, size):
    x = random(2, 24, *size).relu()
    x[0, :, 1, 1] = torch.nan
    expected = F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)
    torch.testing.assert_close(gpu_layers.max_pool(x, pool), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_by_signs(dtype, shape):
    y, addend = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    for added in (None, addend):
        d = random(*shape, dtype=dtype)
        expected = torch.where(y <= 0, 0, d.double() + (0 if added is None else added.double()))
        ops.mask_by_signs_triton(d, signs_ref(y), added)
        assert_near(d, expected, dtype)


def behind_and_its_gradient(tap, pool):
    """A gradient from the layers after the tap, and the gradient at the tap that torch makes of it."""
    exact = tap.double().requires_grad_()
    out = exact if pool is None else F.max_pool2d(exact, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)
    behind = nhwc(torch.randn(out.shape).to(DEVICE, tap.dtype))
    return behind, torch.autograd.grad(out, exact, behind.double())[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((2, 64, 8, 8), (1, 24, 7, 10), (2, 520, 5, 3)))
@pytest.mark.parametrize("pool", (None, *POOLS), ids=lambda pool: "none" if pool is None else window(pool))
def test_tap_backward(dtype, shape, pool):
    tap, d_tap = random(*shape, dtype=dtype).relu(), random(*shape, dtype=dtype)
    tap[:, ::3, 1, 2] = torch.nan
    behind, unpooled = behind_and_its_gradient(tap, pool)
    found = gpu_layers.tap_backward(tap, d_tap, behind, pool)
    assert_near(found, torch.where(tap <= 0, 0, unpooled + d_tap.double()), dtype)
    if pool is None:
        found = gpu_layers.tap_backward(tap, d_tap, None, None)
        assert_near(found, torch.where(tap <= 0, 0, d_tap.double()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ((3, 24, 7, 5), (2, 64, 8, 8)))
@pytest.mark.parametrize("pool", (None, *POOLS), ids=lambda pool: "none" if pool is None else window(pool))
@pytest.mark.parametrize("case", ("both", "first", "one for all"))
@pytest.mark.parametrize("mean", (True, False))
def test_tap_backward_with_the_heads_gradient(dtype, shape, pool, case, mean):
    n, c, h, w = shape
    both = case == "both"
    taps = random(2 * n, c, h, w, dtype=dtype).relu()
    f0, f1 = taps[:n], taps[n:]
    if case == "one for all":
        f1 = f1[:1].expand(n, -1, -1, -1)
    weight = torch.rand(c, device=DEVICE)
    grad = torch.randn(n, 1, 1, 1, device=DEVICE).expand(n, 1, h, w) if mean else torch.randn(n, 1, h, w, device=DEVICE)
    tap = taps if both else f0
    behind, unpooled = behind_and_its_gradient(tap, pool)
    gradient = HeadGradient(grad, h * w if mean else 1, f0, f1, weight, 1e-10, both)
    found = gpu_layers.tap_backward(tap, gradient, behind, pool)

    leaves = [f.double().requires_grad_() for f in (f0, f1)]
    s = grad[:, 0, 0, 0].double() if mean else grad.double() * h * w
    if mean:
        value = head_ref(HeadInput([leaves[0]], [leaves[1]], [weight.double()], Norm()))[:, 0] @ s
    else:
        (maps,) = head_maps_ref(HeadInput([leaves[0]], [leaves[1]], [weight.double()], Norm()))
        value = (maps * grad.double()).sum()
    d_f = torch.autograd.grad(value, leaves)
    d_tap = torch.cat(d_f) if both else d_f[0]
    assert_near(found, torch.where(tap <= 0, 0, unpooled + d_tap), dtype, slack=2)


def settings(trunk, dtype):
    """The setting of torch's layers, and that of the Triton kernels."""
    setting = trunk.setting(torch.device("cpu"))._replace(dtype=dtype, layout=torch.channels_last, layers="torch")
    cudnn_relu = DEVICE == "cuda" and gpu_layers.cudnn_applies_relu(dtype, setting.tf32)
    return setting, setting._replace(layers="gpu", cudnn_relu=cudnn_relu)


def frozen_trunk(setting, images, affine, tensors):
    """The taps, differentiable in the images."""
    if any(image.requires_grad for image in images):
        return list(
            FrozenTrunk.apply(setting, None, len(images), len(images), *affine, *images, *tensors)[: setting.n_taps]
        )
    return run(setting, images, affine, tensors)[0]


@pytest.mark.parametrize("net", NETS)
def test_trunk(net):
    """The whole trunk on two batches of images, against the same trunk by torch in float64."""
    torch.manual_seed(0)
    trunk = Trunk(net).to(DEVICE).requires_grad_(False)
    images = [(torch.rand(1 + i, 3, 40, 35, device=DEVICE) * 2 - 1).requires_grad_(i == 1) for i in range(2)]
    affine = torch.rand(1, 3, 1, 1, device=DEVICE), torch.rand(1, 3, 1, 1, device=DEVICE) + 0.5
    exact = [image.detach().double().requires_grad_() for image in images]
    plain, triton = settings(trunk, torch.float32)
    double = plain._replace(dtype=torch.float64)
    tensors64 = [p.double() for p in trunk.tensors(plain, gradient=False)]
    expected = frozen_trunk(double, exact, tuple(t.double() for t in affine), tensors64)
    d_taps = [torch.randn_like(t) for t in expected]
    d_expected = torch.autograd.grad(expected, exact, d_taps)

    found = frozen_trunk(triton, images, affine, trunk.tensors(triton, gradient=True))
    atol, rtol = TAPS_TOLERANCE["atol"], TAPS_TOLERANCE["rtol"]
    for tap, e in zip(found, expected, strict=True):
        torch.testing.assert_close(tap.double(), e, rtol=rtol, atol=atol * e.abs().max().item())
    (d_found,) = torch.autograd.grad(found, images[1], [nhwc(d.float()) for d in d_taps])
    assert F.cosine_similarity(d_found.double().flatten(), d_expected[1].flatten(), dim=0) > 0.9999


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_flops_are_counted(net):
    """The count is that of torch's convolutions. SqueezeNet's is not: its 1 x 1 filters are padded to 3 x 3."""
    trunk = Trunk(net).to(DEVICE).requires_grad_(False)
    counts = []
    for setting in settings(trunk, torch.float32):
        with FlopCounterMode(display=False) as counter:
            frozen_trunk(
                setting, [torch.rand(1, 3, 40, 35, device=DEVICE)], (None, None), trunk.tensors(setting, False)
            )
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("net", ("alex", "squeeze"))
def test_double_backward(net):
    """It goes through torch's layers, none of them fused."""
    trunk = Trunk(net).to(DEVICE).requires_grad_(False)
    x = torch.rand(1, 3, 33, 33, device=DEVICE, requires_grad=True)
    grads = []
    for setting in settings(trunk, torch.float32):
        taps = frozen_trunk(setting, [x], (None, None), trunk.tensors(setting, gradient=True))
        (d_x,) = torch.autograd.grad(sum(t.square().sum() for t in taps), x, create_graph=True)
        grads.append(torch.autograd.grad(d_x.square().sum(), x)[0])
    assert F.cosine_similarity(*(g.flatten() for g in grads), dim=0) > 0.9999


@pytest.mark.parametrize("allowed", (True, False))
def test_precision_of_the_first_layer(monkeypatch, allowed):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    precision = importlib.import_module("lpips_fast.kernels.trunk")._precision
    assert precision(torch.float32, None) == ("tf32" if allowed else "ieee")
    assert [precision(torch.float32, tf32) for tf32 in (True, False)] == ["tf32", "ieee"]
    assert precision(torch.bfloat16, True) == "ieee"
    monkeypatch.setattr(torch.version, "hip", "any")
    assert precision(torch.float32, True) == "ieee"


def test_opcheck():
    y, bias = random(2, 16, 6, 7), torch.randn(16, device=DEVICE)
    image, ones = torch.rand(2, 3, 6, 7, device=DEVICE), torch.ones(3, device=DEVICE)
    filters = nhwc(torch.randn(16, 3, 3, 3, device=DEVICE))
    pooled = F.max_pool2d(y, 2)
    for op, *arguments in (
        (
            ops.first_conv_relu_triton,
            [image, image],
            ones,
            ones,
            filters,
            bias,
            1,
            1,
            False,
            True,
        ),
        (ops.first_conv_relu_triton, [image], None, None, filters, bias, 2, 0, False, False),
        (ops.pack_signs_triton, y),
        (ops.bias_relu_triton, y.clone(), bias, signs_ref(y), pooled.clone()),
        (ops.bias_relu_triton, y.clone(), bias, None, None),
        (ops.max_pool_triton, y, 2, 2, 3, 3),
        (ops.mask_by_signs_triton, y.clone(), signs_ref(y), y),
        (ops.tap_bwd_triton, y, y, pooled, 2, 2),
        (ops.head_tap_bwd_triton, y[:, :1], y, y, bias, 1e-10, 1, False, pooled, 2, 2),
    ):
        torch.library.opcheck(op.default, tuple(arguments))


@pytest.mark.parametrize("net", NETS)
def test_compiles_with_inductor(net):
    """As a metric: the code that Inductor makes calls the operators."""
    trunk = Trunk(net).to(DEVICE).requires_grad_(False)
    _, setting = settings(trunk, torch.float32)
    tensors = trunk.tensors(setting, gradient=False)

    def taps(x):
        return frozen_trunk(setting, [x], (None, None), tensors)

    x = torch.rand(1, 3, 33, 33, device=DEVICE)
    torch._dynamo.reset()
    for found, expected in zip(torch.compile(taps, fullgraph=True)(x), taps(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_compiles():
    """As a loss, in one graph: the fake implementations are right, also about changes in place."""
    trunk = Trunk("alex").to(DEVICE).requires_grad_(False)
    _, setting = settings(trunk, torch.float32)
    tensors = trunk.tensors(setting, gradient=True)

    def loss(x):
        return sum(t.square().mean() for t in frozen_trunk(setting, [x], (None, None), tensors))

    x = torch.rand(1, 3, 33, 33, device=DEVICE, requires_grad=True)
    (expected,) = torch.autograd.grad(loss(x), x)
    (found,) = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)
    torch.testing.assert_close(found, expected)

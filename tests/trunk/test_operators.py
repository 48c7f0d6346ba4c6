"""The CPU trunk's operators against torch's in float64. Those of the GPU are tested in tests/kernels/test_trunk.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import lpips_fast  # noqa: F401  loads the compiled library
from lpips_fast.trunk import cpu_filters, cpu_layers
from tests.support.tolerances import (
    CONVOLUTION_TOLERANCE,
    FIRST_CONVOLUTION_TOLERANCE,
    FLAT_CONVOLUTION_TOLERANCE,
    MANY_CHANNELS_TOLERANCE,
    ONE_HOT_CONVOLUTION_TOLERANCE,
)

ops = torch.ops.lpips_fast
compiled = pytest.mark.skipif(not cpu_layers.available(), reason="the compiled library is not there")

SHAPES = [  # n, cin, cout, h, w
    (2, 64, 64, 16, 16),
    (1, 64, 128, 17, 19),
    (3, 192, 384, 15, 15),
    (2, 16, 64, 31, 33),
    (1, 520, 48, 9, 7),
    (2, 5, 7, 5, 6),
    (1, 100, 50, 13, 3),
    (4, 33, 3, 8, 11),
    (2, 16, 16, 1, 1),
    (1, 1, 1, 4, 4),
    (1, 24, 8, 2, 70),
]
SHIFT, SCALE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
LAYOUTS = {
    "nchw": lambda x: x.contiguous(),
    "nhwc": lambda x: nhwc(x),
    "channel slice": lambda x: nhwc(torch.cat([x, x, x], 1))[:, x.shape[1] : -x.shape[1]],
    "strided": lambda x: nhwc(x.repeat_interleave(2, 2).repeat_interleave(3, 3))[:, :, ::2, ::3],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def problem(n, cin, cout, h, w, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, cin, h, w, generator=generator).relu()
    weight = torch.randn(cout, cin, 3, 3, generator=generator) * (2 / (9 * cin)) ** 0.5
    bias = torch.randn(cout, generator=generator) * 0.1
    return x, weight, bias


def conv_ref(x, weight, bias):
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()


def bwd_ref(d_y, weight, shape):
    return torch.nn.grad.conv2d_input(shape, weight.double(), d_y.double(), padding=1)


def assert_close(actual, expected, tolerance=CONVOLUTION_TOLERANCE):
    assert actual.shape == expected.shape
    error = (actual - expected).double().square().mean().sqrt()
    size = expected.double().square().mean().sqrt()
    assert error <= tolerance * size, f"relative error {error / size:.1e}"


def pack(positive):
    """Signs as the operators have them."""
    bits = F.pad(positive.permute(0, 2, 3, 1), (0, -positive.shape[1] % 8)).unflatten(-1, (-1, 8))
    return (bits * 2 ** torch.arange(8)).sum(-1).to(torch.uint8)


def unpack(signs, channels):
    bits = torch.stack([(signs >> i) & 1 for i in range(8)], -1).flatten(-2)
    return bits[..., :channels].permute(0, 3, 1, 2).bool()


@compiled
def test_every_coefficient():
    """One-hot images by one-hot filters reach each product of coefficients of the three transforms."""
    x = torch.eye(64).reshape(64, 1, 8, 8)
    weight = torch.eye(9).reshape(9, 1, 3, 3)
    y, *_ = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), torch.zeros(9), False, False)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1).contiguous(), **ONE_HOT_CONVOLUTION_TOLERANCE)


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward(shape):
    x, weight, bias = problem(*shape)
    y, signs = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, False, True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, conv_ref(x, weight, bias))
    assert torch.equal(unpack(signs, shape[2]), y > 0)


@compiled
@pytest.mark.parametrize("channels", (256, 512))
def test_error_does_not_grow_with_the_channels(channels):
    """Activations have one sign, as after a ReLU. Most of the error is that of the sums over input channels."""
    weight = torch.randn(64, channels, 3, 3) / (3 * channels**0.5)
    x, filters = torch.randn(1, channels, 24, 24).relu(), cpu_filters.winograd_filters(weight)
    y, *_ = ops.conv3x3_fwd_cpu(x, filters, torch.zeros(64), False, False)
    assert_close(y, conv_ref(x, weight, torch.zeros(64)), MANY_CHANNELS_TOLERANCE)


@compiled
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[3] > 1 and s[4] > 1], ids=str)
def test_pool_is_torchs(shape):
    x, weight, bias = problem(*shape)
    y, pooled, _ = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, True, True)
    assert torch.equal(pooled, F.max_pool2d(y, 2))
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    alone, *_ = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, False, False)
    assert torch.equal(y, alone)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 64, 32, 9, 10), (1, 7, 5, 6, 3)], ids=str)
def test_layouts(layout, shape):
    x, weight, bias = problem(*shape)
    filters = cpu_filters.winograd_filters(weight)
    expected, *_ = ops.conv3x3_fwd_cpu(x, filters, bias, False, False)
    view = LAYOUTS[layout](x)
    assert torch.equal(view, x)
    actual, *_ = ops.conv3x3_fwd_cpu(view, filters, bias, False, False)
    assert torch.equal(actual, expected)


@compiled
def test_expanded_batch():
    x, weight, bias = problem(1, 16, 16, 7, 7)
    filters = cpu_filters.winograd_filters(weight)
    one, *_ = ops.conv3x3_fwd_cpu(x, filters, bias, False, False)
    three, *_ = ops.conv3x3_fwd_cpu(x.expand(3, -1, -1, -1), filters, bias, False, False)
    assert torch.equal(three, one.expand(3, -1, -1, -1))


@compiled
@pytest.mark.parametrize("epilogue", ["plain", "mask", "signs", "addend", "addend and mask", "addend and signs"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient(shape, epilogue):
    n, cin, cout, h, w = shape
    x, weight, _ = problem(*shape)
    d_y = torch.randn(n, cout, h, w)
    addend = torch.randn(n, cin, h, w) if "addend" in epilogue else None
    expected = bwd_ref(d_y, weight, x.shape)
    if addend is not None:
        expected = expected + addend
    mask = None
    if "mask" in epilogue or "signs" in epilogue:
        mask, expected = x if "mask" in epilogue else pack(x > 0), expected * (x > 0)
    d_x = ops.conv3x3_bwd_cpu(d_y, cpu_filters.winograd_filters(weight, turned=True), cin, addend, mask)
    assert d_x.is_contiguous(memory_format=torch.channels_last)
    if mask is not None:
        assert not d_x[x <= 0].any()
    assert_close(d_x, expected)


@compiled
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3), cin=st.integers(1, 40), cout=st.integers(1, 40), h=st.integers(1, 14), w=st.integers(1, 14),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(n, cin, cout, h, w, seed):
    x, weight, bias = problem(n, cin, cout, h, w, seed)
    y, *_ = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias + 1, False, False)
    d_x = ops.conv3x3_bwd_cpu(y, cpu_filters.winograd_filters(weight, turned=True), cin, None, None)
    if n == 0:
        assert y.shape == (0, cout, h, w)
        assert d_x.shape == x.shape
        return
    assert_close(y, conv_ref(x, weight, bias + 1))
    assert_close(d_x, bwd_ref(y, weight, x.shape))


@compiled
@pytest.mark.parametrize(
    "shape", [(4, 64, 64, 64, 64), (2, 512, 512, 8, 8), (1, 256, 512, 40, 40), (1, 30, 20, 50, 9)], ids=str
)
def test_threads_do_not_change_bits(shape):
    x, weight, bias = problem(*shape)
    filters, turned = cpu_filters.winograd_filters(weight), cpu_filters.winograd_filters(weight, turned=True)
    squares = drawing("squares", shape[0], shape[1], *shape[3:])
    image = torch.rand(shape[0], 3, *shape[3:])
    first = cpu_filters.first_filters(torch.randn(64, 3, 3, 3), torch.randn(64))

    def everything():
        y, pooled, signs = ops.conv3x3_fwd_cpu(x, filters, bias, True, True)
        d_x = ops.conv3x3_bwd_cpu(y, turned, shape[1], x, x)
        (first_y,) = ops.conv3x3_first_cpu(image, SHIFT, SCALE, *first, 64, False)
        drawn = ops.conv3x3_fwd_cpu(squares, filters, bias, True, True)
        return y, pooled, signs, d_x, first_y, ops.relu_pool_bwd_cpu(y, y, pooled), *drawn

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_a_number_stays_near_and_is_not_lost(bad):
    """What is not finite makes NaN of all it may reach, and of the rest of the tiles that read it."""
    x, weight, bias = problem(1, 16, 16, 20, 20)
    filters = cpu_filters.winograd_filters(weight)
    clean, *_ = ops.conv3x3_fwd_cpu(x, filters, bias, False, False)
    x[0, 3, 9, 10] = bad
    y, pooled, signs = ops.conv3x3_fwd_cpu(x, filters, bias, True, True)
    assert y[0, :, 8:11, 9:12].isnan().all()
    assert pooled[0, :, 4:6, 5].isnan().all()
    assert unpack(signs, 16)[0, :, 8:11, 9:12].all()
    outside = torch.ones(20, 20, dtype=torch.bool)
    outside[8:12, 8:12] = False
    assert torch.equal(y[..., outside], clean[..., outside])


def drawing(pattern, n, channels, h, w):
    """Images [n, channels, h, w] of a few colours, each a random vector of which one in two values is 0."""
    row, col = torch.arange(h)[:, None], torch.arange(w)
    labels = {
        "flat": 0 * (row + col),
        "columns": 0 * row + col % 7,
        "rows": row % 5 + 0 * col,
        "rules": (row % 12 == 0) | (col % 11 == 0),
        "stripes of 2": 0 * row + col % 2,
        "diagonals": (row + col) % 6,
        "other diagonals": (row - col) % 6,
        "checks": (row + col) % 2,
        "squares": (row // 6 + col // 6) % 2,
        "an object": torch.where((row // 4 == 2) & (col // 4 == 1), row * w + col, 0),
    }[pattern]
    colours = torch.randn(n, int(labels.max()) + 1, channels).relu()
    return torch.stack([c[labels.long()] for c in colours]).permute(0, 3, 1, 2)


def assert_repeats(x, y):
    """Outputs of an image are equal where their inputs are; how many are those of an earlier one."""
    repeats = 0
    for inputs, outputs in zip(F.unfold(x, 3, padding=1), y.flatten(2), strict=True):
        _, group = inputs.unique(dim=1, return_inverse=True)
        first = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(
            0, group, torch.arange(len(group)), "amin"
        )
        assert torch.equal(outputs, outputs[:, first[group]])
        repeats += len(group) - len(first)
    return repeats


PATTERNS = (
    "flat", "columns", "rows", "rules", "stripes of 2", "diagonals", "other diagonals", "checks", "squares",
    "an object",
)  # fmt: skip


@compiled
@pytest.mark.parametrize("shape", [(2, 64, 96, 24, 28), (1, 33, 20, 15, 17), (1, 256, 512, 16, 16)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_outputs_of_equal_inputs_are_equal(pattern, shape):
    """So are direct convolution's, and pools send their gradient to the first of them."""
    n, cin, cout, h, w = shape
    _, weight, bias = problem(*shape)
    x = drawing(pattern, n, cin, h, w)
    y, pooled, signs = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, True, True)
    assert assert_repeats(x, y) > 0
    assert_close(y, conv_ref(x, weight, bias))
    assert torch.equal(pooled, F.max_pool2d(y, 2))
    assert torch.equal(unpack(signs, cout), y > 0)


@compiled
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3), cin=st.integers(1, 40), cout=st.integers(1, 40), h=st.integers(1, 20), w=st.integers(1, 20),
    colours=st.integers(1, 3), scale=st.integers(1, 4), seed=st.integers(0, 1000), threads=st.integers(1, 3),
)  # fmt: skip
def test_any_drawing(n, cin, cout, h, w, colours, scale, seed, threads):
    _, weight, bias = problem(n, cin, cout, h, w, seed)
    labels = torch.randint(colours, (n, 1, -(-h // scale), -(-w // scale)))
    labels = labels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)[:, 0, :h, :w]
    x = nhwc(torch.randn(colours, cin).relu()[labels].permute(0, 3, 1, 2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y, pooled, signs = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, True, True)
    finally:
        torch.set_num_threads(before)
    assert_repeats(x, y)
    assert (y - conv_ref(x, weight, bias)).abs().max() <= FLAT_CONVOLUTION_TOLERANCE * max(1, x.abs().max())
    assert torch.equal(pooled, F.max_pool2d(y, 2) if h > 1 and w > 1 else y[:, :, : h // 2, : w // 2])
    assert torch.equal(unpack(signs, cout), y > 0)


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("channel", [2, 20])
def test_not_a_number_stays_near_on_a_flat_ground(bad, channel):
    _, weight, bias = problem(1, 32, 16, 20, 20)
    x = drawing("flat", 1, 32, 20, 20).contiguous()
    x[0, channel, 0, 0] = bad
    y, *_ = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, False, False)
    assert y[0, :, :2, :2].isnan().all()
    assert not y[0, :, 4:].isnan().any()
    assert not y[0, :, :, 4:].isnan().any()


@compiled
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
def test_a_large_value_does_not_spoil_a_flat_ground(size):
    """Rounding grows with a tile's largest input: what is copied comes from another tile."""
    _, weight, bias = problem(1, 32, 16, 20, 20)
    x = 1e-3 * drawing("flat", 1, 32, 20, 20)
    x[0, :, 0, 0] = size
    y, *_ = ops.conv3x3_fwd_cpu(x, cpu_filters.winograd_filters(weight), bias, False, False)
    assert_close(y[..., 4:, 4:], conv_ref(x, weight, bias)[..., 4:, 4:])


@compiled
def test_first_layer_of_equal_inputs_is_equal():
    filters = cpu_filters.first_filters(torch.randn(64, 3, 3, 3), torch.randn(64))
    for pattern in PATTERNS:
        x = drawing(pattern, 2, 3, 24, 29)
        (y,) = ops.conv3x3_first_cpu(x, torch.zeros(3), torch.ones(3), *filters, 64, False)
        assert assert_repeats(x, y) > 0


@compiled
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "strided"])
@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 17, 23), (1, 3, 64, 1, 1), (3, 3, 20, 8, 6), (2, 1, 5, 9, 13), (0, 3, 64, 8, 8)], ids=str
)
def test_first_layer(shape, layout):
    n, cin, cout, h, w = shape
    x = torch.rand(n, cin, h, w) * 2 - 1
    weight, bias = torch.randn(cout, cin, 3, 3), torch.randn(cout)
    shift, scale = SHIFT[:cin].contiguous(), SCALE[:cin].contiguous()
    scaled = (x.double() - shift[:, None, None].double()) / scale[:, None, None].double()
    filters, padded_bias = cpu_filters.first_filters(weight, bias)
    y, signs = ops.conv3x3_first_cpu(LAYOUTS[layout](x), shift, scale, filters, padded_bias, cout, True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unpack(signs, cout), y > 0)
    if n:
        assert_close(y, conv_ref(scaled, weight, bias), FIRST_CONVOLUTION_TOLERANCE)


@compiled
@pytest.mark.parametrize("given_heads", ["both", "head", "pooled"])
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (1, 5, 7, 9), (2, 33, 2, 4), (1, 20, 3, 3), (0, 8, 4, 4)], ids=str)
def test_relu_pool_gradient(shape, given_heads):
    tap = (torch.randn(shape) * 2).round().relu()  # full of ties
    d_head = torch.randn(shape) if given_heads != "pooled" else None
    d_pooled = torch.randn(shape[0], shape[1], shape[2] // 2, shape[3] // 2) if given_heads != "head" else None
    expected = torch.zeros(shape)
    if d_pooled is not None:
        leaf = tap.clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.max_pool2d(leaf, 2), leaf, d_pooled)
    if d_head is not None:
        expected = expected + d_head
    actual = ops.relu_pool_bwd_cpu(tap, d_head, d_pooled)
    assert torch.equal(actual, expected * (tap > 0))


@compiled
def test_relu_pool_gradient_goes_to_not_a_number_as_torchs():
    tap = torch.rand(1, 8, 4, 4)
    tap[0, 2, 0, 1] = tap[0, 2, 1, 0] = tap[0, 5, 3, 3] = float("nan")
    d_pooled = torch.randn(1, 8, 2, 2)
    leaf = tap.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.max_pool2d(leaf, 2), leaf, d_pooled)
    assert torch.equal(ops.relu_pool_bwd_cpu(tap, None, d_pooled), expected)


@compiled
@pytest.mark.parametrize("shape", ((2, 64, 5, 7), (1, 3, 4, 4), (3, 13, 9, 2), (1, 17, 1, 1), (0, 8, 4, 4)))
@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_signs(shape, layout):
    y = LAYOUTS[layout](torch.where(torch.rand(shape) < 0.1, float("nan"), torch.randn(shape).relu()))
    signs = ops.pack_signs_cpu(y)
    bits = torch.stack([signs >> i & 1 for i in range(8)], -1).flatten(-2).bool()
    assert torch.equal(bits[..., : shape[1]].movedim(-1, 1), ~(y <= 0))
    assert not bits[..., shape[1] :].any()
    d_y, addend = LAYOUTS[layout](torch.randn(shape)), torch.randn(shape)
    for added in (None, addend):
        expected = torch.where(y <= 0, 0, d_y if added is None else d_y + added)
        found = ops.mask_by_signs_cpu(d_y, signs, added)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


@compiled
def test_opcheck():
    x, weight, bias = problem(2, 16, 24, 9, 7)
    filters, turned = cpu_filters.winograd_filters(weight), cpu_filters.winograd_filters(weight, turned=True)
    y, pooled, _ = ops.conv3x3_fwd_cpu(x, filters, bias, True, True)
    image = torch.rand(2, 3, 9, 7)
    first = cpu_filters.first_filters(torch.randn(24, 3, 3, 3), torch.randn(24))
    for op, *arguments in (
        (ops.conv3x3_fwd_cpu, x, filters, bias, False, False),
        (ops.conv3x3_fwd_cpu, x.to(memory_format=torch.channels_last), filters, bias, True, True),
        (ops.conv3x3_bwd_cpu, y, turned, 16, None, None),
        (ops.conv3x3_bwd_cpu, y, turned, 16, x, x),
        (ops.conv3x3_first_cpu, image, SHIFT, SCALE, *first, 24, True),
        (ops.relu_pool_bwd_cpu, y, y, pooled),
        (ops.pack_signs_cpu, x),
        (ops.mask_by_signs_cpu, x, ops.pack_signs_cpu(x), x),
    ):
        torch.library.opcheck(op.default, tuple(arguments))


@compiled
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, u, b: ops.conv3x3_fwd_cpu(x.double(), u, b, False, False), "float32"),
        (lambda x, u, b: ops.conv3x3_fwd_cpu(x[:, :4], u, b, False, False), "winograd_filters"),
        (lambda x, u, b: ops.conv3x3_fwd_cpu(x, u, b[:3], False, False), "winograd_filters"),
        (lambda x, u, b: ops.conv3x3_fwd_cpu(x[0], u, b, False, False), "N, C, H, W"),
        (lambda x, u, b: ops.conv3x3_bwd_cpu(x, u, 24, x, None), "addend"),
        (lambda x, u, b: ops.conv3x3_bwd_cpu(x, u, 24, None, x), "mask"),
        (lambda x, u, b: ops.conv3x3_bwd_cpu(x, u, 24, None, torch.zeros(3, dtype=torch.uint8)), "signs"),
        (lambda x, u, b: ops.relu_pool_bwd_cpu(x, None, x), "d_pooled"),
    ],
)
def test_wrong_arguments(call, message):
    x, weight, bias = problem(1, 8, 24, 6, 6)
    with pytest.raises(RuntimeError, match=message):
        call(x, cpu_filters.winograd_filters(weight), bias)

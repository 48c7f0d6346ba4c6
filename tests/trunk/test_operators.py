"""The CPU trunk's operators against torch's in float64. Those of the GPU are tested in tests/kernels/test_trunk.py."""

from __future__ import annotations

import concurrent.futures
import ctypes
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import lpips_fast  # noqa: F401  loads the compiled library
from lpips_fast.trunk import cpu_trunk
from lpips_fast.trunk.program import Pool
from tests.support.programs import Program, direct, first, phases, transposed, winograd
from tests.support.threads import threads
from tests.support.tolerances import (
    CONVOLUTION_TOLERANCE,
    FIRST_CONVOLUTION_TOLERANCE,
    FLAT_CONVOLUTION_TOLERANCE,
    MANY_CHANNELS_TOLERANCE,
    ONE_HOT_CONVOLUTION_TOLERANCE,
    PROGRAM_TOLERANCE,
)

ops = torch.ops.lpips_fast
compiled = pytest.mark.skipif(not cpu_trunk.available(), reason="the compiled library is not there")

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
INNER = {  # layers of stride 1 that take any x
    "direct 1x1": lambda cout, **options: direct(cout, 1, **options),
    "direct 3x3": lambda cout, **options: direct(cout, 3, **options),
    "direct 5x5": lambda cout, **options: direct(cout, 5, **options),
    "winograd 3x3": lambda cout, **options: winograd(cout, 3, **options),
    "winograd 5x5": lambda cout, **options: winograd(cout, 5, **options),
}
FIRST = {  # layers that take scaled images
    "first 3x3": lambda cout, **options: first(cout, 3, 1, 1, **options),
    "first 3x3, stride 2": lambda cout, **options: first(cout, 3, 2, **options),
    "first 11x11, stride 4": lambda cout, **options: first(cout, 11, 4, 2, **options),
    "phases 11x11, stride 4": lambda cout, **options: phases(cout, 11, 4, 2, **options),
    "phases 5x5, stride 2": lambda cout, **options: phases(cout, 5, 2, 1, **options),
}
EACH = {**INNER, **FIRST}
POOLS = (Pool(2, 2, False), Pool(2, 2, True), Pool(3, 2, False), Pool(3, 2, True), Pool(3, 1, False), Pool(4, 3, True))
AFFINE = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
LAYOUTS = {
    "nchw": lambda x: x.contiguous(),
    "nhwc": lambda x: nhwc(x),
    "channel slice": lambda x: nhwc(torch.cat([x, x, x], 1))[:, x.shape[1] : -x.shape[1]],
    "strided": lambda x: nhwc(x.repeat_interleave(2, 2).repeat_interleave(3, 3))[:, :, ::2, ::3],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


def nhwc(x):
    return x.contiguous(memory_format=torch.channels_last)


def activations(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


def assert_close(actual, expected, tolerance=CONVOLUTION_TOLERANCE):
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    error = (actual - expected).double().square().mean().sqrt()
    size = expected.double().square().mean().sqrt()
    assert error <= tolerance * size, f"relative error {error / size:.1e}"


def assert_all_close(found, expected):
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        assert f.is_contiguous(memory_format=torch.channels_last)
        assert_close(f, e)


def assert_equal(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert torch.equal(f, e)


def unpack(signs, channels):
    bits = torch.stack([(signs >> i) & 1 for i in range(8)], -1).flatten(-2).bool()
    assert not bits[..., channels:].any()
    return bits[..., :channels].permute(0, 3, 1, 2)


def identity(channels):
    """A last layer, which copies what is not negative."""
    return direct(channels, 1)


def copying(program):
    """The program, whose last layer is an `identity`."""
    weight, bias = program.tensors[-2:]
    weight.copy_(torch.eye(len(bias))[:, :, None, None])
    bias.zero_()
    program.make_filters()
    return program


# ---- One convolution


@compiled
@pytest.mark.parametrize("kernel", (3, 5))
def test_every_coefficient(kernel):
    """One-hot images by one-hot filters reach each product of coefficients of the three transforms."""
    program = Program(1, winograd(kernel**2, kernel))
    program.tensors[:] = torch.eye(kernel**2).view(-1, 1, kernel, kernel), torch.zeros(kernel**2)
    program.make_filters()
    x = torch.eye(64).view(64, 1, 8, 8)
    (y,) = program.forward(x)
    expected = F.conv2d(x, program.tensors[0], padding=kernel // 2)
    torch.testing.assert_close(y, nhwc(expected), **ONE_HOT_CONVOLUTION_TOLERANCE[kernel])


@compiled
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", INNER)
def test_convolution_and_its_gradient(kind, shape):
    n, cin, cout, h, w = shape
    program, x = Program(cin, INNER[kind](cout)), activations(n, cin, h, w)
    taps = program.forward(x)
    assert_all_close(taps, program.exact(x))
    d_taps = [torch.randn_like(tap) for tap in taps]
    d_x = program.backward((h, w), taps, [], d_taps)
    assert d_x.is_contiguous()
    assert_close(d_x, program.exact_backward((h, w), taps, [], d_taps))


@compiled
@pytest.mark.parametrize("shape", [(2, 32, 48, 9, 10), (1, 48, 304, 6, 21), (9, 16, 16, 1, 3)], ids=str)
def test_gradient_by_the_forwards_filters(shape):
    n, cin, cout, h, w = shape
    program, x = Program(cin, transposed(cout)), activations(n, cin, h, w)
    assert torch.equal(program.turned[0], program.filters[0])
    taps = program.forward(x)
    d_taps = [torch.randn_like(tap) for tap in taps]
    d_x = program.backward((h, w), taps, [], d_taps)
    assert_close(d_x, program.exact_backward((h, w), taps, [], d_taps))


@compiled
@pytest.mark.parametrize("kernel, padding", ((2, 0), (2, 1), (3, 0), (3, 2), (4, 1), (7, 3), (7, 6)))
def test_direct_convolution_of_any_kernel_and_padding(kernel, padding):
    program, x = Program(6, direct(20, kernel, padding)), activations(2, 6, 9, 8)
    taps = program.forward(x)
    assert_all_close(taps, program.exact(x))
    d_x = program.backward((9, 8), taps, [], taps)
    assert_close(d_x, program.exact_backward((9, 8), taps, [], taps))


@compiled
@pytest.mark.parametrize("scaled", (True, False))
@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 37, 43), (1, 3, 64, 11, 11), (3, 3, 20, 18, 16), (2, 1, 5, 29, 13)], ids=str
)
@pytest.mark.parametrize("kind", FIRST)
def test_first_layer_and_its_gradient(kind, shape, scaled):
    n, cin, cout, h, w = shape
    affine = tuple(t[:cin].contiguous() for t in AFFINE) if scaled else (None, None)
    program, x = Program(cin, FIRST[kind](cout)), torch.rand(n, cin, h, w) * 2 - 1
    taps = program.forward(x, affine=affine)
    tolerance = FIRST_CONVOLUTION_TOLERANCE if kind.startswith("first 3x3") else CONVOLUTION_TOLERANCE
    assert_close(taps[0], program.exact(x, affine=affine)[0], tolerance)
    assert taps[0].is_contiguous(memory_format=torch.channels_last)
    d_taps = [torch.randn_like(tap) for tap in taps]
    d_x = program.backward((h, w), taps, [], d_taps, affine[1])
    assert d_x.is_contiguous()
    assert_close(d_x, program.exact_backward((h, w), taps, [], d_taps, affine[1]))


@compiled
@pytest.mark.parametrize("kernel, stride, padding", ((3, 1, 1), (3, 2, 0), (5, 2, 1), (11, 4, 2), (9, 3, 1), (2, 1, 0)))
def test_first_layers_at_the_sides(kernel, stride, padding):
    """Of each remainder of the sides by the stride, and from the smallest image on."""
    kinds = [first] if kernel // stride < 2 or kernel <= 3 else [first, phases]
    for kind in kinds:
        program = Program(3, kind(17, kernel, stride, padding))
        least = max(kernel - 2 * padding, 1)
        for h, w in ((least, least + stride), *((least + i, least + 5 * stride - i) for i in range(stride))):
            x = torch.rand(1, 3, h, w) * 2 - 1
            taps = program.forward(x, affine=AFFINE)
            assert_close(taps[0], program.exact(x, affine=AFFINE)[0])
            d_x = program.backward((h, w), taps, [], taps, AFFINE[1])
            assert_close(d_x, program.exact_backward((h, w), taps, [], taps, AFFINE[1]))


@compiled
@pytest.mark.parametrize("kernel", (3, 5))
@pytest.mark.parametrize("channels", (256, 512))
def test_error_does_not_grow_with_the_channels(channels, kernel):
    """Activations have one sign, as after a ReLU. Most of the error is that of the sums over input channels."""
    program, x = Program(channels, winograd(64, kernel)), activations(1, channels, 24, 24)
    assert_close(program.forward(x)[0], program.exact(x)[0], MANY_CHANNELS_TOLERANCE[kernel])


@compiled
@pytest.mark.parametrize("channels", (64, 13, 8))
@pytest.mark.parametrize("kind", EACH)
def test_signs(kind, channels):
    """Of a layer that is no tap, those of its output as a tap."""
    cin, scaled = (3, AFFINE) if kind in FIRST else (16, (None, None))
    x = torch.randn(2, cin, 26, 29)
    x[1, 0, 12, 20] = torch.nan
    last = direct(1, 1)
    tap, _ = Program(cin, EACH[kind](channels), last).forward(x, affine=scaled)
    _, signs = Program(cin, EACH[kind](channels, tap=False), last).forward(x, affine=scaled, signs=True)
    assert tap.isnan().any()
    assert torch.equal(unpack(signs, channels), ~(tap <= 0))


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", EACH)
def test_layouts_of_images(kind, layout):
    for channels, cout, h, w in ((3, 32, 19, 20), (7, 5, 16, 13)):
        program, x = Program(channels, EACH[kind](cout)), torch.randn(2, channels, h, w)
        view = LAYOUTS[layout](x)
        assert torch.equal(view, x)
        assert_equal(program.forward(view), program.forward(x))


@compiled
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", EACH)
def test_layouts_of_gradients(kind, layout):
    program, x = Program(3, EACH[kind](32, pool=Pool(2, 2, False)), direct(24, 1)), torch.randn(2, 3, 27, 30)
    taps = program.forward(x)
    d_taps = [torch.randn_like(tap) for tap in taps]
    views = [LAYOUTS[layout](d) for d in d_taps]
    expected = program.backward((27, 30), taps, [], d_taps)
    assert torch.equal(program.backward((27, 30), taps, [], views), expected)


@compiled
@pytest.mark.parametrize("kind", FIRST)
def test_two_batches(kind):
    """They go through as one, the second after the first, each in its own layout."""
    program = Program(3, FIRST[kind](16, tap=False), direct(8, 1))
    a, b = torch.randn(2, 3, 15, 19), nhwc(torch.randn(3, 3, 15, 19))
    found = program.forward(a, b, affine=AFFINE, signs=True)
    assert len(found) == 2
    assert_equal(found, program.forward(torch.cat((a, b)), affine=AFFINE, signs=True))
    assert_equal(program.forward(b, a[:0]), program.forward(b))


@compiled
@pytest.mark.parametrize("kind", EACH)
def test_expanded_batch(kind):
    program, x = Program(3, EACH[kind](16)), torch.randn(1, 3, 15, 19)
    ((one,), (three,)) = program.forward(x), program.forward(x.expand(3, -1, -1, -1))
    assert torch.equal(three, one.expand(3, -1, -1, -1))


@compiled
@pytest.mark.parametrize("kind", EACH)
def test_empty_batches(kind):
    program = Program(3, EACH[kind](16, tap=False), direct(8, 1, pool=Pool(3, 2, True)), direct(4, 1))
    x = torch.randn(0, 3, 25, 27)
    *taps, signs = program.forward(x, affine=AFFINE if kind in FIRST else (None, None), signs=True)
    *expected, expected_signs = program.forward(torch.randn(1, 3, 25, 27), signs=True)
    assert [t.shape for t in (*taps, signs)] == [(0, *e.shape[1:]) for e in (*expected, expected_signs)]
    assert program.backward((25, 27), taps, [signs], taps).shape == x.shape


# ---- Programs


@compiled
@pytest.mark.parametrize("kind", INNER)
@pytest.mark.parametrize("cout", (16, 24))
def test_joined_convolutions(kind, cout):
    """SqueezeNet's Fire, as a tap, as none, and before a pool."""
    squeeze, outputs, x = direct(12, 1, tap=False), [], torch.rand(2, 3, 45, 38)
    for options in ({"tap": False}, {}, {"pool": Pool(3, 2, True)}):
        pair = direct(cout, 1, **options), INNER[kind](9, **options)
        program = Program(3, first(16, 3, 2, 0, pool=Pool(3, 2, True)), squeeze, pair, direct(11, 1))
        found = program.forward(x, affine=AFFINE, signs=True)
        n_taps = program.setting.n_taps
        taps, signs = found[:n_taps], found[n_taps:]
        assert_all_close(taps, program.exact(x, affine=AFFINE))
        outputs.append(found[-1] if options == {"tap": False} else taps[1])
        d_taps = [torch.randn_like(tap) for tap in taps]
        d_x = program.backward(x.shape[2:], taps, signs, d_taps, AFFINE[1])
        assert_close(d_x, program.exact_backward(x.shape[2:], taps, signs, d_taps, AFFINE[1]))
    signs, tap, same_tap = outputs
    assert torch.equal(unpack(signs, cout + 9), tap > 0)
    assert torch.equal(same_tap, tap)


@compiled
@pytest.mark.parametrize("before", ("none", "signs", "tap", "pool"))
@pytest.mark.parametrize("kind", INNER)
def test_gradient_before_a_relu(kind, before):
    """The gradient of a convolution goes on through the ReLU before it, by a tap, a tap and its pool, or signs."""
    options = {"none": None, "signs": {"tap": False}, "tap": {}, "pool": {"pool": Pool(3, 2, False)}}[before]
    for channels, h, w in ((16, 14, 15), (5, 9, 6), (40, 4, 5)):
        layers = [INNER[kind](channels + 3)] if options is None else [direct(channels, 1, **options), INNER[kind](9)]
        program, x = Program(7, *layers), torch.randn(2, 7, h, w)
        found = program.forward(x, signs=True)
        n_taps = program.setting.n_taps
        taps, signs = found[:n_taps], found[n_taps:]
        d_taps = [torch.randn_like(tap) for tap in taps]
        d_x = program.backward((h, w), taps, signs, d_taps)
        assert_close(d_x, program.exact_backward((h, w), taps, signs, d_taps))


@compiled
@pytest.mark.parametrize("size", ((12, 15), (7, 9), (5, 4)), ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("kind", EACH)
def test_pools_are_torchs(kind, pool, size):
    """Of each layer's output, also where it comes with the convolution. The pool changes no bit of the tap."""
    for channels in (64, 7):
        layer = EACH[kind](channels, pool=pool)
        h, w = ((side - 1) * layer.stride + layer.kernel - 2 * layer.padding for side in size)
        program, x = copying(Program(3, layer, identity(channels))), torch.randn(2, 3, h, w)
        tap, pooled = program.forward(x)
        assert tap.shape[2:] == size
        expected = F.max_pool2d(tap, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)
        assert torch.equal(pooled, expected)
        (alone,) = Program(3, layer._replace(pool=None)).forward(x)
        assert torch.equal(tap, alone)


@compiled
@pytest.mark.parametrize("kind", EACH)
def test_a_pool_larger_than_the_image(kind):
    """With ceil_mode there may be one, as in SqueezeNet at its smallest size."""
    pool, size = Pool(3, 2, True), (2, 4)
    layer = EACH[kind](16, pool=pool)
    h, w = ((side - 1) * layer.stride + layer.kernel - 2 * layer.padding for side in size)
    program, x = copying(Program(3, layer, identity(16))), torch.randn(2, 3, h, w)
    taps = program.forward(x)
    assert torch.equal(taps[1], F.max_pool2d(taps[0], 3, 2, ceil_mode=True))
    d_taps = [torch.randn_like(tap) for tap in taps]
    d_x = program.backward((h, w), taps, [], d_taps)
    assert_close(d_x, program.exact_backward((h, w), taps, [], d_taps))


@compiled
@pytest.mark.parametrize("not_numbers", (False, True))
@pytest.mark.parametrize("shape", [(2, 64, 8, 8), (1, 5, 7, 9), (2, 33, 6, 4), (1, 20, 4, 5)], ids=str)
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_gradient_of_a_pool_with_ties(pool, shape, not_numbers):
    """It goes where torch's does: to a window's first maximum, or to its last NaN."""
    _, channels, h, w = shape
    program = copying(Program(channels, direct(channels, 1, pool=pool), identity(channels)))
    program.tensors[:2] = program.tensors[2:]  # so that the gradient to the image is the one to the tap's ReLU's input
    program.make_filters()
    tap = nhwc((torch.randn(shape) * 2).round().relu())
    if not_numbers:
        tap = torch.where(torch.rand(shape) < 0.1, torch.nan, tap)
    pooled = nhwc(F.max_pool2d(tap, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode))
    d_tap, d_pooled = torch.randn(shape), torch.randn_like(pooled)
    leaf = tap.clone().requires_grad_()
    behind = F.max_pool2d(leaf, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode)
    # relu(pooled) passes no gradient where it is 0
    (expected,) = torch.autograd.grad((behind, leaf), leaf, (torch.where(pooled <= 0, 0, d_pooled), d_tap))
    expected = torch.where(tap <= 0, 0, expected)
    found = program.backward((h, w), [tap, pooled], [], [d_tap, d_pooled])
    if pool.kernel <= pool.stride:
        assert torch.equal(found, expected)
    else:  # a pixel of several windows has a sum
        assert_close(found, expected)


STRIDE_1 = st.sampled_from(sorted(INNER))
CHANNELS = st.integers(1, 40)


@compiled
@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 3), cin=CHANNELS, kinds=st.lists(STRIDE_1, min_size=1, max_size=3),
    couts=st.tuples(*[CHANNELS] * 3, st.integers(1, 4)), taps=st.integers(0, 7),
    pools=st.lists(st.sampled_from((None, *POOLS)), min_size=3, max_size=3),
    joined=st.booleans(), h=st.integers(1, 14), w=st.integers(1, 14), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_program(n, cin, kinds, couts, taps, pools, joined, h, w, seed):
    layers, side = [], min(h, w)
    for number, (kind, cout, pool) in enumerate(zip(kinds, couts, pools, strict=False)):
        last = number == len(kinds) - 1
        pool = None if last or pool is None or pool.kernel > side else pool
        side = side if pool is None else pool.side(side)
        layers.append(INNER[kind](cout, tap=last or pool is not None or bool(taps >> number & 1), pool=pool))
    if joined and len(layers) > 1:  # as in SqueezeNet, after a layer that is no tap
        layers[-2] = layers[-2]._replace(tap=False, pool=None)
        layers[-1] = direct(8 * couts[3], 1), layers[-1]
    program, x = Program(cin, *layers, seed=seed), activations(n, cin, h, w, seed=seed)
    for bias in program.tensors[1::2]:
        bias += 1  # so that a result of few outputs is not one that cancels
    program.make_filters()
    found = program.forward(x, signs=True)
    n_taps = program.setting.n_taps
    taps, signs = found[:n_taps], found[n_taps:]
    d_taps = [torch.randn_like(tap) for tap in taps]
    d_x = program.backward((h, w), taps, signs, d_taps)
    if n == 0:
        assert d_x.shape == x.shape
        return
    for tap, exact in zip(taps, program.exact(x), strict=True):
        assert_close(tap, exact, PROGRAM_TOLERANCE)
    assert_close(d_x, program.exact_backward((h, w), taps, signs, d_taps), PROGRAM_TOLERANCE)


# ---- Threads


def in_a_parallel_region(call, team):
    """What a call gives in each thread of a team of OpenMP's, as torch's own parallel loops have."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    libraries = {Path(line.split()[-1]) for line in lines if "gomp" in line}
    torchs = [path for path in libraries if path.is_relative_to(Path(torch.__file__).parent)]
    if not torchs:
        pytest.skip("torch does not run on GNU's OpenMP here")
    found = []
    body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.append(call()))
    ctypes.CDLL(str(torchs[0])).GOMP_parallel(body, None, team, 0)
    assert len(found) == team
    return found


@pytest.fixture(scope="module")
def everything():
    """A call with all kinds of layers, of images with and without equal inputs, that returns all results.

    Each operator has enough work for three threads: `kFlops` of csrc/trunk/program.h for each.
    """
    program = Program(
        3,
        phases(64, 11, 4, 2, pool=Pool(3, 2, False)),
        winograd(96, 5, pool=Pool(2, 2, False)),
        winograd(40, 3, tap=False),
        direct(16, 1, tap=False),
        (direct(24, 1), winograd(34, 3)),
        direct(24, 3),
        winograd(520, 3),
    )
    of_a_first_layer = Program(3, first(64, 3, 1, 1, pool=Pool(3, 2, True)), winograd(64, 3), winograd(64, 5))
    squares = drawing("squares", 1, 3, 190, 200)
    images = torch.cat((torch.rand(1, 3, 190, 200), squares))

    def call():
        results = []
        for one, x in ((program, images), (of_a_first_layer, images[..., :56, :66])):
            found = one.forward(x, affine=AFFINE, signs=True)
            n_taps = one.setting.n_taps
            d_x = one.backward(x.shape[2:], found[:n_taps], found[n_taps:], found[:n_taps], AFFINE[1])
            results += *found, d_x
        return results

    return call


@compiled
def test_threads_do_not_change_bits(everything):
    results = []
    for count in (1, 2, 3, 2):
        with threads(count):
            results.append(everything())
    for other in results[1:]:
        assert_equal(other, results[0])


@compiled
def test_calls_at_the_same_time(everything):
    with threads(2):
        expected = everything()
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            for future in [pool.submit(everything) for _ in range(3)]:
                assert_equal(future.result(), expected)


@compiled
def test_calls_within_a_parallel_region(everything):
    expected = everything()
    for found in in_a_parallel_region(everything, 2):
        assert_equal(found, expected)


# ---- What is not finite


def reached(side, layer, at):
    """The outputs of a side that read input `at`, and those of the tiles that do, as two masks."""
    kernel, stride, padding, y = layer.kernel, layer.stride, layer.padding, torch.arange(side)
    reads = (y * stride - padding <= at) & (at < y * stride - padding + kernel)
    if layer.algorithm in (cpu_trunk.Algorithm.FIRST, cpu_trunk.Algorithm.DIRECT):
        return reads, reads
    # A tile of 4 outputs reads 4 + kernel - 1 inputs, which are phases of `stride` pixels.
    inputs, tile = 3 + -(-kernel // stride), y // 4 * 4
    phase = (at + padding) // stride
    return reads, (tile <= phase) & (phase < tile + inputs)


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", EACH)
def test_not_a_number_stays_near_and_is_not_lost(kind, bad):
    """By Winograd's algorithm it makes NaN or 0 of the rest of its tiles, too. NaN makes NaN of all that it reaches."""
    channels, at = (3, (41, 30)) if kind in FIRST else (16, (9, 10))
    layer = EACH[kind](16)
    program, x = Program(channels, layer), torch.randn(1, channels, 80, 64)
    (clean,) = program.forward(x)
    x[0, 2, at[0], at[1]] = bad
    (y,) = program.forward(x)
    (rows, tile_rows), (cols, tile_cols) = (reached(s, layer, i) for s, i in zip(y.shape[2:], at, strict=True))
    near, in_tiles = rows[:, None] & cols, tile_rows[:, None] & tile_cols
    assert near.any()
    assert not y[..., near].isfinite().logical_and(y[..., near] > 0).any()
    if bad != bad:
        assert y[..., near].isnan().all()
    assert torch.equal(y[..., ~in_tiles], clean[..., ~in_tiles])


@compiled
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("channel", [2, 20])
@pytest.mark.parametrize("kernel", (3, 5))
def test_not_a_number_stays_near_on_a_flat_ground(bad, channel, kernel):
    x = drawing("flat", 1, 32, 20, 20).contiguous()
    x[0, channel, 0, 0] = bad
    (y,) = Program(32, winograd(16, kernel)).forward(x)
    reach = kernel // 2 + 1
    near = y[0, :, :reach, :reach]
    assert near.isnan().all() if bad != bad else not (near.isfinite() & (near > 0)).any()
    assert not y[0, :, 4:].isnan().any()
    assert not y[0, :, :, 4:].isnan().any()


@compiled
@pytest.mark.parametrize("size", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("kernel", (3, 5))
def test_a_large_value_does_not_spoil_a_flat_ground(kernel, size):
    """Rounding grows with a tile's largest input: what is copied comes from another tile."""
    program, x = Program(32, winograd(16, kernel)), 1e-3 * drawing("flat", 1, 32, 24, 24)
    x[0, :, 0, 0] = size
    (y,), (expected,) = program.forward(x), program.exact(x)
    assert_close(y[..., 4:, 4:], expected[..., 4:, 4:])


# ---- Equal inputs


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


def assert_repeats(x, y, layer):
    """Outputs of an image are equal where their inputs are; how many are those of an earlier one."""
    repeats = 0
    windows = F.unfold(x, layer.kernel, padding=layer.padding, stride=layer.stride)
    for inputs, outputs in zip(windows, y.flatten(2), strict=True):
        _, group = inputs.unique(dim=1, return_inverse=True)
        first_of = torch.full((int(group.max()) + 1,), len(group)).scatter_reduce(
            0, group, torch.arange(len(group)), "amin"
        )
        assert torch.equal(outputs, outputs[:, first_of[group]])
        repeats += len(group) - len(first_of)
    return repeats


PATTERNS = (
    "flat", "columns", "rows", "rules", "stripes of 2", "diagonals", "other diagonals", "checks", "squares",
    "an object",
)  # fmt: skip


@compiled
@pytest.mark.parametrize("shape", [(2, 64, 96, 24, 28), (1, 33, 20, 15, 17), (1, 256, 128, 16, 16)], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ("winograd 3x3", "winograd 5x5", "direct 1x1", "direct 3x3"))
def test_outputs_of_equal_inputs_are_equal(kind, pattern, shape):
    """So are direct convolution's in lpips, and pools send their gradient to the first of them."""
    n, cin, cout, h, w = shape
    layer, pool, x = INNER[kind](cout), Pool(2, 2, False), drawing(pattern, n, cin, h, w)
    program = copying(Program(cin, layer._replace(pool=pool), identity(cout)))
    y, pooled = program.forward(x)
    assert assert_repeats(x, y, layer) > 0
    assert_close(y, program.exact(x)[0])
    assert torch.equal(pooled, F.max_pool2d(y, 2))
    _, signs = copying(Program(cin, layer._replace(tap=False), identity(cout))).forward(x, signs=True)
    assert torch.equal(unpack(signs, cout), y > 0)


@compiled
def test_phases_without_a_tap():
    """Their pixels and the output lie in the workspace together, for several blocks of tiles."""
    program = Program(3, phases(24, 11, 4, 2, tap=False), direct(8, 1))
    x = torch.rand(1, 3, 230, 210)
    assert_all_close(program.forward(x), program.exact(x))


@compiled
@pytest.mark.parametrize("scaled", (True, False))
@pytest.mark.parametrize("kind", FIRST)
def test_first_layer_of_equal_inputs_is_equal(kind, scaled):
    layer, affine = FIRST[kind](40), AFFINE if scaled else (None, None)
    program = Program(3, layer)
    for pattern in PATTERNS:
        x = drawing(pattern, 2, 3, 61, 70)
        (y,) = program.forward(x, affine=affine)
        if scaled:
            x = (x - AFFINE[0].view(-1, 1, 1)) / AFFINE[1].view(-1, 1, 1)
        assert assert_repeats(x, y, layer) > 0


@compiled
@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 3), cin=CHANNELS, cout=CHANNELS, kernel=st.sampled_from((3, 5)), h=st.integers(1, 20),
    w=st.integers(1, 20), colours=st.integers(1, 3), scale=st.integers(1, 4), seed=st.integers(0, 1000),
    count=st.integers(1, 3),
)  # fmt: skip
def test_any_drawing(n, cin, cout, kernel, h, w, colours, scale, seed, count):
    labels = torch.randint(colours, (n, 1, -(-h // scale), -(-w // scale)))
    labels = labels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)[:, 0, :h, :w]
    x = nhwc(torch.randn(colours, cin).relu()[labels].permute(0, 3, 1, 2))
    layer = winograd(cout, kernel)
    program = Program(cin, layer, seed=seed)
    with threads(count):
        (y,) = program.forward(x)
    assert_repeats(x, y, layer)
    assert (y - program.exact(x)[0]).abs().max() <= FLAT_CONVOLUTION_TOLERANCE * max(1, x.abs().max())


# ---- The contract


@compiled
def test_opcheck():
    program = Program(
        3, first(24, 3, 2, 0, pool=Pool(3, 2, True)), direct(8, 1, tap=False), (direct(16, 1), winograd(16, 3))
    )
    x = torch.rand(2, 3, 19, 17)
    *taps, signs = program.forward(x, affine=AFFINE, signs=True)
    for images, affine, kept in (([x], (None, None), False), ([x, nhwc(x)], AFFINE, True)):
        arguments = images, *affine, program.filters, program.rows, kept
        torch.library.opcheck(ops.trunk_fwd_cpu.default, arguments)
    for scale in (None, AFFINE[1]):
        arguments = taps, [signs], taps, scale, program.turned, program.rows, 19, 17
        torch.library.opcheck(ops.trunk_bwd_cpu.default, arguments)


FORWARD = {"images": 0, "shift": 1, "scale": 2, "filters": 3, "program": 4}
BACKWARD = {"taps": 0, "signs": 1, "d_taps": 2, "scale": 3, "filters": 4, "program": 5, "height": 6}


def changed(arguments, at, change):
    """The arguments with one of them changed."""
    return [change(argument) if number == at else argument for number, argument in enumerate(arguments)]


@compiled
@pytest.mark.parametrize("argument, change, message", (
    ("images", lambda x: [], "images"),
    ("images", lambda x: [x[0].double()], "float32"),
    ("images", lambda x: [x[0][0]], "N, C, H, W"),
    ("images", lambda x: [x[0][:, :2]], "must be 2|must have 3 channels"),
    ("images", lambda x: [x[0], x[0][..., :-1]], r"\[1, 3, 19, 17\]"),
    ("images", lambda x: [x[0][..., :2, :]], "small"),
    ("shift", lambda x: x[:2], "shift"),
    ("shift", lambda x: None, "shift"),
    ("shift", lambda x: x.double(), "float32"),
    ("scale", lambda x: x.new_ones(6)[::2], "scale"),
    ("filters", lambda x: x[:-1], "filters"),
    ("filters", lambda x: [x[0][:, :2], *x[1:]], "filters"),
    ("filters", lambda x: [x[0].double(), *x[1:]], "float32"),
    ("filters", lambda x: [x[0], x[1][:-1], *x[2:]], "bias"),
    ("filters", lambda x: [*x[:-2], x[-2].transpose(0, 1).contiguous().transpose(0, 1), x[-1]], "filters"),
    ("program", lambda x: [], "program"),
    ("program", lambda x: x[:-1], "program"),
    ("program", lambda x: [7, *x[1:]], "program"),
    ("program", lambda x: [2, *x[1:]], "program"),  # Winograd's algorithm with a stride
    ("program", lambda x: [*x[:-12], *x[-12:-10], 5, *x[-9:]], "program"),  # not the channels of x
    ("program", lambda x: [*x[:-5], 1, *x[-4:]], "program"),  # the last one joined to none
    ("program", lambda x: [*x[:7], 1, *x[8:]], "program"),  # the first one joined
    ("program", lambda x: [*x[:8], 0, *x[9:]], "program"),  # a pool after what is no tap
    ("program", lambda x: [*x[:-4], 0, *x[-3:]], "the last convolution must be a tap"),
    ("program", lambda x: [x[0], cpu_trunk.Algorithm.DIRECT, *x[2:]], "algorithm"),  # a direct gradient with a stride
    ("program", lambda x: [*x[:4], 1 << 32, *x[5:]], "2\\^20"),
    ("program", lambda x: [*x[:4], -3, *x[5:]], "2\\^20"),
))  # fmt: skip
def test_wrong_arguments_forward(argument, change, message):
    program = Program(3, first(24, 3, 2, 0, pool=Pool(3, 2, True)), direct(8, 1, tap=False), winograd(20, 3))
    arguments = [[torch.rand(1, 3, 19, 17)], *AFFINE, program.filters, program.rows, True]
    ops.trunk_fwd_cpu(*arguments)
    with pytest.raises(RuntimeError, match=message):
        ops.trunk_fwd_cpu(*changed(arguments, FORWARD[argument], change))


@compiled
def test_joined_outputs_are_of_whole_bytes_of_signs():
    program = Program(3, first(16, 3), direct(8, 1, tap=False), (direct(12, 1), winograd(16, 3)))
    with pytest.raises(RuntimeError, match="8 k channels"):
        program.forward(torch.rand(1, 3, 12, 12))


@compiled
def test_joined_after_a_tap():
    """The forward has it, for those who want every layer's output; the backward refuses."""
    program, x = Program(3, first(16, 3), direct(8, 1), (direct(16, 1), winograd(16, 3))), torch.rand(1, 3, 14, 12)
    taps = program.forward(x)
    assert_all_close(taps, program.exact(x))
    with pytest.raises(RuntimeError, match="after a tap"):
        program.backward(x.shape[2:], taps, [], taps)


@compiled
@pytest.mark.parametrize("kind", INNER)
def test_wrong_arguments_of_a_program_of_activations(kind):
    program, x = Program(3, INNER[kind](8)), torch.randn(1, 3, 8, 8)
    with pytest.raises(RuntimeError, match="one batch"):
        program.forward(x, x)
    with pytest.raises(RuntimeError, match="scale"):
        program.forward(x, affine=AFFINE)


@compiled
@pytest.mark.parametrize("argument, change, message", (
    ("taps", lambda x: x[:-1], "taps"),
    ("taps", lambda x: [x[0].double(), x[1]], "float32"),
    ("taps", lambda x: [x[0][:, :2], x[1]], "taps"),
    ("taps", lambda x: [x[0], x[1].repeat(2, 1, 1, 1)], "taps"),
    ("signs", lambda x: [], "signs"),
    ("signs", lambda x: [x[0].float()], "signs"),
    ("signs", lambda x: [x[0][:, :2]], "signs"),
    ("d_taps", lambda x: x[:-1], "d_taps"),
    ("d_taps", lambda x: [x[0], x[1].double()], "float32"),
    ("d_taps", lambda x: [x[0], x[1][..., :1]], "d_taps"),
    ("scale", lambda x: x[:2], "scale"),
    ("filters", lambda x: x[:-1], "filters"),
    ("filters", lambda x: [x[0], x[1].double(), x[2]], "float32"),
    ("filters", lambda x: [x[0], x[1][:, :, :, :3], x[2]], "filters"),
    ("program", lambda x: [], "program"),
    ("program", lambda x: x[:-1], "program"),
    ("program", lambda x: [x[0], 0, *x[2:]], "program"),  # FIRST is no gradient
    ("height", lambda x: 30, "taps"),
))  # fmt: skip
def test_wrong_arguments_backward(argument, change, message):
    program = Program(3, first(24, 3, 2, 0, pool=Pool(3, 2, True)), direct(8, 1, tap=False), winograd(20, 3))
    *taps, signs = program.forward(torch.rand(1, 3, 19, 17), affine=AFFINE, signs=True)
    arguments = [taps, [signs], taps, AFFINE[1], program.turned, program.rows, 19, 17]
    ops.trunk_bwd_cpu(*arguments)
    with pytest.raises(RuntimeError, match=message):
        ops.trunk_bwd_cpu(*changed(arguments, BACKWARD[argument], change))

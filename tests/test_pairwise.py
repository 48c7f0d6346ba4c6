"""All pairs and embeddings against LPIPS itself, pair by pair, in float64."""

from __future__ import annotations

import functools
import math
import weakref

import numpy as np
import pytest
import torch

from lpips_fast import pairwise
from lpips_fast.sketch import Sketch, sketch_embeddings
from tests.support.comparisons import assert_close
from tests.support.images import SIZE, image
from tests.support.modules import Pixels
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.tolerances import (
    NEAR_DUPLICATE_TOLERANCE,
    PAIRWISE_TOLERANCE,
    REORDERED_TOLERANCE,
    ROUNDING_TOLERANCE,
    TILE_TOLERANCE,
    VALUE_TOLERANCE,
)


def _images(net, n=5, dtype=torch.float32):
    """Images among which 1 and 3, and 2 and 4, are near-duplicates."""
    x = image(n, *SIZE[net], seed=0, dtype=torch.float64)
    noise = torch.randn(2, *x.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[3] = x[1] + 1e-3 * noise[0]
    x[4] = x[2] + 2e-3 * noise[1]
    return x.to(dtype)


@pytest.fixture(scope="module")
def oracle(make_ours):
    """LPIPS in float64 of every image to every other."""

    def distances(net, x, y):
        fn = make_ours(net, backend="reference").double()
        with torch.no_grad():
            return torch.stack([fn(x[i : i + 1].double(), y.double()).flatten() for i in range(len(x))])

    return distances


class _Counted:
    """Counts the images that go through a trunk, and the largest number at once."""

    def __init__(self, fn):
        self.images, self.most = 0, 0
        fn.net.register_forward_pre_hook(self._count)

    def _count(self, _, args):
        self.images += len(args[0])
        self.most = max(self.most, len(args[0]))


@pytest.mark.parametrize(
    "net, size", (("alex", 33), ("alex", 64), ("vgg", 24), ("vgg", 48), ("vgg", 100), ("squeeze", 64))
)
def test_an_image_has_the_same_embedding_in_any_batch(make_ours, net, size):
    """To the bit on the CPU. With few small images the trunk would take other algorithms."""
    fn, x = make_ours(net), torch.rand(20, 3, size, size) * 2 - 1
    expected = fn.embed(x)
    for n in (1, 2, 3, 5, 9):
        assert torch.equal(fn.embed(x[:n]), expected[:n])
    assert fn.embed(x[:0]).shape == (0, expected.shape[1])


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("net", NETS)
def test_all_pairs_are_lpips(make_ours, oracle, net, dtype):
    x = _images(net, dtype=dtype)
    expected = oracle(net, x, x)
    fn = make_ours(net).to(dtype)
    found = fn.pairwise(x)
    assert found.dtype == dtype
    assert found.shape == (5, 5)
    atol = PAIRWISE_TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=0)
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()
    y = x[[4, 0, 2]]
    torch.testing.assert_close(fn.pairwise(x, y).double(), expected[:, [4, 0, 2]], atol=atol, rtol=0)


@pytest.mark.parametrize("net", NETS)
def test_near_duplicates_are_as_accurate_as_pairs(make_ours, oracle, net):
    x = _images(net)
    expected = oracle(net, x, x)
    near = (expected > 0) & (expected < pairwise.NEAR)
    assert near.sum() >= 2, "the images must hold near-duplicates"
    assert expected[near].min() < 1e-5, "so near that |a|^2 - 2ab + |b|^2 has lost them"
    fn = make_ours(net)
    with torch.no_grad():
        by_pairs = torch.stack([fn(x[i : i + 1], x).flatten() for i in range(len(x))])
    allowed = 2 * ((by_pairs - expected).abs() / expected)[near].max() + REORDERED_TOLERANCE
    for found in (fn.pairwise(x), fn.pairwise(x, x.clone()), fn.pairwise(x, block=2)):
        assert ((found - expected).abs() / expected)[near].max() <= allowed


@pytest.mark.parametrize("scale", (1e-6, 1e6))
def test_near_duplicates_by_weights_of_another_scale(make_ours, oracle, scale):
    """Training may leave weights of any scale: the threshold for near pairs follows the lengths of the vectors."""
    x = _images("alex")
    fn = make_ours(eval_mode=False)
    with torch.no_grad():
        for lin in fn.lins:
            lin.model[-1].weight *= scale
    expected = scale * oracle("alex", x, x)
    near = (expected > 0) & (expected < pairwise.NEAR * scale)
    assert near.any()
    for found in (fn.pairwise(x), fn.pairwise(x, x.clone())):
        torch.testing.assert_close(found.double()[near], expected[near], atol=0, rtol=NEAR_DUPLICATE_TOLERANCE)
        torch.testing.assert_close(found.double(), expected, atol=PAIRWISE_TOLERANCE[torch.float32] * scale, rtol=0)


def test_equal_images_of_x_and_y_are_exactly_equal(make_ours):
    x = image(3, *SIZE["alex"], seed=0)
    assert (make_ours().pairwise(x, x.clone()).diagonal() == 0).all()


@pytest.mark.parametrize("block", (1, 2, 3, 4, 5, 6, 7, 100))
def test_blocks_change_nothing(make_ours, block):
    """In float32 they change rounding: the order of a convolution's sums depends on the size of its batch."""
    x, y = image(7, 32, 32, seed=0), image(5, 32, 32, seed=1)
    fn, exact = make_ours(), make_ours().double()
    for arguments in ((x,), (x, y)):
        expected = exact.pairwise(*(a.double() for a in arguments))
        found = exact.pairwise(*(a.double() for a in arguments), block=block)
        torch.testing.assert_close(found, expected, atol=PAIRWISE_TOLERANCE[torch.float64], rtol=0)
        assert_close(fn.pairwise(*arguments, block=block), expected, VALUE_TOLERANCE[torch.float32])


def test_two_runs_agree_to_the_bit(make_ours):
    x = _images("alex")
    fn = make_ours()
    assert torch.equal(fn.pairwise(x, block=2), fn.pairwise(x, block=2))


def test_trunk_runs_once_an_image_up_to_two_blocks(make_ours, monkeypatch):
    monkeypatch.setattr(pairwise, "_FILLED_IMAGES", 1)
    fn = make_ours()
    x, y = image(8, 32, 32, seed=0), image(6, 32, 32, seed=1)
    for arguments, images in (
        ((x,), 8),
        ((x, None, 4), 8),
        ((x, None, 2), 4 * 2 + 3 * 2),  # four blocks; the last three again, less those still held
        ((x, y), 14),
        ((x, y, 6), 8 + 6),
    ):
        counted = _Counted(fn)
        fn.pairwise(*arguments[:2], block=arguments[2] if len(arguments) > 2 else None)
        assert counted.images == images, f"{images} images"


@pytest.mark.parametrize("net", NETS)
def test_sketches_estimate_all_pairs(make_ours, oracle, net):
    """Those of near-duplicates, too: the error is relative."""
    x, length = _images(net), 1024
    fn, expected = make_ours(net), oracle(net, x, x)
    y = x[[4, 0, 2]]
    for found, exact in (
        (fn.pairwise(x, sketch=length), expected),
        (fn.pairwise(x, y, sketch=length), expected[:, [4, 0, 2]]),
    ):
        assert found.dtype == torch.float32
        different = exact > 0
        assert different.sum() >= 12
        errors = found.double()[different] / exact[different] - 1
        assert errors.abs().max() < 4 * math.sqrt(2 / length)
        assert 0 < errors.square().mean().sqrt() < 1.5 * math.sqrt(2 / length)
        assert (found >= 0).all()
    found = fn.pairwise(x, sketch=length)
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_estimates_are_the_distances_of_sketches(make_ours, dtype):
    x = _images("alex", dtype=dtype)
    fn, wanted = make_ours().to(dtype), Sketch(100)
    shapes = [f.shape[1:] for f in fn.features(x).taps]
    s = sketch_embeddings(wanted, make_ours().double().embed(x.double()), shapes)
    expected = (s[:, None] - s).square().sum(dim=2)
    found = fn.pairwise(x, sketch=100)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=0, rtol=NEAR_DUPLICATE_TOLERANCE)


def test_sketches_take_each_image_once_and_a_batch_at_a_time(make_ours, monkeypatch):
    monkeypatch.setattr(pairwise, "_FILLED_IMAGES", 1)
    monkeypatch.setattr(pairwise, "_BATCH_PIXELS", 3 * 32 * 32)
    fn = make_ours()
    x, y = image(8, 32, 32, seed=0), image(6, 32, 32, seed=1)
    for arguments, images in (((x,), 8), ((x, y), 14)):
        counted = _Counted(fn)
        fn.pairwise(*arguments, sketch=64)
        assert (counted.images, counted.most) == (images, 3)


def test_memory_is_bounded_by_the_block(make_ours, monkeypatch):
    fn = make_ours()
    x = image(40, 32, 32, seed=0)
    live, most = {}, 0
    make = torch.empty

    def counted(*size, **options):
        nonlocal most
        made = make(*size, **options)
        live[id(made)] = made.nbytes
        weakref.finalize(made, live.pop, id(made))
        most = max(most, sum(live.values()))
        return made

    monkeypatch.setattr(pairwise.torch, "empty", counted)
    fn.pairwise(x, block=4)
    size = fn.embed(x[:1]).nbytes
    assert 0 < most <= 2 * 4 * size


def test_tiles_cover_the_upper_triangle_once(make_ours):
    x = image(5, 32, 32, seed=0)
    fn = make_ours()
    expected, seen = fn.pairwise(x), torch.zeros(5, 5)
    for rows, columns, tile in pairwise.pairwise_tiles(fn, x, block=2):
        torch.testing.assert_close(tile, expected[rows, columns], atol=TILE_TOLERANCE, rtol=0)
        seen[rows, columns] += 1
    assert (seen.triu() == torch.ones(5, 5).triu()).all()
    assert seen.max() == 1


def test_images_may_be_read_when_they_are_needed(make_ours):
    x = image(5, 32, 32, seed=0)

    class Folder:
        def __len__(self):
            return len(x)

        def __getitem__(self, rows):
            assert isinstance(rows, slice)
            assert len(range(len(x))[rows]) <= 2
            return x[rows]

    fn = make_ours()
    torch.testing.assert_close(fn.pairwise(Folder(), block=2), fn.pairwise(x), atol=TILE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("net", NETS)
def test_embeddings_squared_distances_are_lpips(make_ours, oracle, net):
    x = _images(net, 5)
    e = make_ours(net).embed(x).double()
    assert e.shape[0] == 5
    found = (e[:, None] - e).square().sum(dim=2)
    torch.testing.assert_close(found, oracle(net, x, x), atol=TILE_TOLERANCE, rtol=0)


@pytest.mark.parametrize("net, size", (("alex", 31872), ("squeeze", 118976), ("vgg", 499712)))
def test_documented_sizes_of_embeddings(make_ours, net, size):
    assert make_ours(net).embed(image(1, 64, 64, seed=0)).shape == (1, size)


@pytest.mark.parametrize("net", NETS)
def test_no_embedding_is_larger_than_assumed(make_ours, net):
    fn = make_ours(net)
    for h, w in ((32, 32), (33, 47), (64, 64), (100, 68)):
        per_pixel = fn.embed(image(1, h, w, seed=0)).shape[1] / (h * w)
        assert per_pixel <= fn.values_per_pixel


def test_any_distance_that_has_what_is_needed(make_ours):
    x = image(5, 8, 8, seed=0)
    a = torch.nn.functional.normalize(x.double(), dim=1)
    expected = (a[:, None] - a).square().sum(dim=2).mean(dim=(2, 3))
    for block in (None, 2):
        found = pairwise.pairwise(Pixels(make_ours().norm), x, block=block)
        torch.testing.assert_close(found.double(), expected, atol=PAIRWISE_TOLERANCE[torch.float32], rtol=0)


def test_normalize_maps_from_zero_to_one(make_ours):
    x = image(3, 32, 32, seed=0)
    fn = make_ours()
    torch.testing.assert_close(
        fn.pairwise((x + 1) / 2, normalize=True), fn.pairwise(x), atol=ROUNDING_TOLERANCE, rtol=0
    )
    torch.testing.assert_close(fn.embed((x + 1) / 2, normalize=True), fn.embed(x), atol=ROUNDING_TOLERANCE, rtol=0)


@pytest.mark.parametrize("version, lpips", (("0.0", True), ("0.1", False)))
def test_versions_and_unweighted(make_ours, version, lpips):
    x, y = image(2, 32, 32, seed=0), image(3, 32, 32, seed=1)
    fn = make_ours(version=version, lpips=lpips)
    with torch.no_grad():
        expected = torch.stack([fn(x[i : i + 1], y).flatten() for i in range(2)])
    torch.testing.assert_close(fn.pairwise(x, y), expected, atol=ROUNDING_TOLERANCE, rtol=ROUNDING_TOLERANCE)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_precision_accumulates_in_float32(make_ours, dtype):
    x = image(3, 32, 32, seed=0).to(dtype)
    fn = make_ours().to(dtype)
    found = fn.pairwise(x)
    assert found.dtype == torch.float32
    with torch.no_grad():
        expected = torch.stack([fn(x[i : i + 1], x).flatten() for i in range(3)])
    torch.testing.assert_close(found, expected, atol=PAIRWISE_TOLERANCE[dtype], rtol=0)


def test_neither_autocast_nor_low_precision_products_reach_the_distances(make_ours):
    x = image(3, 32, 32, seed=0)
    fn = make_ours(precision="float32")
    expected = fn.pairwise(x)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = fn.pairwise(x)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, expected, atol=ROUNDING_TOLERANCE, rtol=0)


def test_no_graph_is_made(make_ours):
    x = image(2, 32, 32, seed=0).requires_grad_()
    fn = make_ours()
    assert not fn.pairwise(x).requires_grad
    assert not fn.embed(x).requires_grad
    assert torch.is_grad_enabled()
    for _ in pairwise.pairwise_tiles(fn, x):
        assert torch.is_grad_enabled(), "the caller's setting, between tiles"


@pytest.mark.parametrize("n, m", ((0, 3), (3, 0), (0, 0), (1, 1)))
def test_few_images(make_ours, n, m):
    x, y = image(n, 32, 32, seed=0), image(m, 32, 32, seed=1)
    fn = make_ours()
    assert fn.pairwise(x, y).shape == (n, m)
    assert fn.pairwise(x).shape == (n, n)
    assert fn.pairwise(x, y, sketch=64).shape == (n, m)
    assert fn.pairwise(x, sketch=64).shape == (n, n)
    assert fn.embed(x).shape == (n, fn.embed(image(1, 32, 32, seed=0)).shape[1])


def test_black_images_have_no_nan(make_ours):
    found = make_ours().pairwise(torch.zeros(3, 3, 32, 32), torch.full((2, 3, 32, 32), -1.0))
    assert found.isfinite().all()


def test_errors(make_ours):
    fn = make_ours()
    x = image(2, 32, 32, seed=0)
    with pytest.raises(ValueError, match=r"one size, got \[32, 64\] and \[64, 32\]"):
        fn.pairwise(image(1, 32, 64, seed=0), image(1, 64, 32, seed=0))
    with pytest.raises(ValueError, match="must be"):
        fn.pairwise(x[0])
    for call in (fn.embed, fn.pairwise):
        with pytest.raises(TypeError, match=r"x must be a tensor .*, got list"):
            call([x[0], x[1]])
    with pytest.raises(TypeError, match=r"y must be a tensor .*, got list"):
        fn.pairwise(x, [x[0], x[1]])
    with pytest.raises(ValueError, match="sides of at least 31"):
        fn.embed(image(1, 20, 20, seed=0))
    with pytest.raises(TypeError, match=r"x is torch\.float64"):
        fn.pairwise(x.double())
    with pytest.raises(TypeError, match=r"y is torch\.float64"):
        fn.pairwise(x, x.double())
    fn = make_ours(eval_mode=False)
    with torch.no_grad():
        fn.lin2.model[-1].weight[0, 5] = -0.25
    for call in (fn.pairwise, functools.partial(fn.pairwise, sketch=64), fn.embed):
        with pytest.raises(ValueError, match=r"layer 2's linear weights have negative values \(down to -0.25\)"):
            call(x)


@pytest.mark.parametrize("block", (0, -1, 1.5, True, "auto", [2]), ids=repr)
def test_block_is_checked(make_ours, block):
    x = image(2, 32, 32, seed=0)
    for call in (make_ours().pairwise, functools.partial(pairwise.pairwise_tiles, make_ours())):
        with raises(ValueError, "block must be None or a number of images from 1", repr(block)):
            call(x, block=block)


@pytest.mark.parametrize("length", (0, -1, 1.5, True, "auto", [2]), ids=repr)
def test_sketch_is_checked(make_ours, length):
    with raises(ValueError, "sketch must be None or a length from 1", repr(length)):
        make_ours().pairwise(image(2, 32, 32, seed=0), sketch=length)


def test_sketches_have_no_blocks(make_ours):
    with raises(ValueError, "block must be None with a sketch", "got 2"):
        make_ours().pairwise(image(2, 32, 32, seed=0), block=2, sketch=64)


@pytest.mark.parametrize(
    "given, kind, words",
    (
        (None, TypeError, ("slices", "NoneType")),
        (2, TypeError, ("slices", "int")),
        ("ab", TypeError, ("slices", "str")),
        ({0: 1}, TypeError, ("slices", "dict")),
        (iter(()), TypeError, ("slices", "iterator")),
        (np.zeros((2, 3, 32, 32), np.float32), TypeError, ("slices", "ndarray")),
        (np.zeros(()), TypeError, ("slices", "ndarray")),
        (torch.zeros(()), ValueError, ("[N, 3, H, W]", "[]")),
        (torch.zeros(1, 2, 3, 32, 32), ValueError, ("[N, 3, H, W]", "[1, 2, 3, 32, 32]")),
    ),
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_images(make_ours, given, kind, words):
    fn, x = make_ours(), image(2, 32, 32, seed=0)
    for call in (fn.embed, fn.pairwise):
        with raises(kind, "x must be", *words):
            call(given)
    if given is not None:
        with raises(kind, "y must be", *words):
            fn.pairwise(x, given)


class _Spoiled:
    """Five images; every slice but the first is wrong."""

    def __init__(self, spoil):
        self.images, self.spoil = image(5, 32, 32, seed=0), spoil

    def __len__(self):
        return 5

    def __getitem__(self, rows):
        return self.spoil(self.images[rows]) if rows.start else self.images[rows]


@pytest.mark.parametrize(
    "spoil, kind, words",
    (
        (lambda x: x[1:], ValueError, ("x[4:5]", "[1, 3, H, W]", "length 5", "[0, 3, 32, 32]")),
        (lambda x: x[..., 1:], ValueError, ("x must be of one size", "[32, 32]", "[32, 31]")),
        (lambda x: x.numpy(), TypeError, ("x must be a tensor",)),
        (lambda x: x.byte(), TypeError, ("x must be floating point", "uint8")),
    ),
    ids=("fewer", "smaller", "array", "integers"),
)
def test_images_read_when_needed_are_checked_then(make_ours, spoil, kind, words):
    with raises(kind, *words):
        make_ours().pairwise(_Spoiled(spoil), block=2)

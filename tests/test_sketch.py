"""Sketches and their distances against the formulas in float64, by the compiled operators and in plain torch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from lpips_fast import _library, pairwise, sketch
from lpips_fast.head.operators import Norm
from lpips_fast.sketch import Sketch
from tests.support.comparisons import assert_close
from tests.support.features import LAYOUTS, in_layout
from tests.support.images import SIZE, image
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.threads import threads
from tests.support.tolerances import (
    SKETCH_DISTANCE_TOLERANCE,
    SKETCH_MEAN_TOLERANCE,
    SKETCH_SPREAD_TOLERANCE,
    SKETCH_TOLERANCE,
)

ops = torch.ops.lpips_fast
CPU = torch.device("cpu")
# C, H and W of taps: channels of whole vectors and others, more and fewer than a sketch has buckets, one pixel, none.
SHAPES = {
    "small": ((5, 3, 7), (1, 4, 1), (64, 9, 4)),
    "wide": ((130, 2, 2), (384, 1, 1), (33, 5, 3)),
    "no pixels": ((8, 3, 3), (6, 0, 4)),
    "nothing": ((6, 0, 4),),
}
LENGTHS = (1, 7, 64, 100)
NORMS = (Norm(), Norm(0.3), Norm(1e-10, inside_sqrt=True), Norm(0.3, inside_sqrt=True), Norm(0.0))

compiled = pytest.mark.skipif(_library.load_error is not None, reason=str(_library.load_error))


@pytest.fixture(params=(pytest.param("operator", marks=compiled), "torch"))
def way(request, monkeypatch):
    """How sketches and distances are computed. `torch-` in a test's name is plain torch."""
    if request.param == "torch":
        monkeypatch.setattr(sketch, "is_implemented", lambda operator, key: False)
    return request.param


def made(shapes, n=3, dtype=torch.float32, seed=0):
    """Features as those of ReLUs, some pixels all 0, of scales from 0.01 to 100; and weights, one of them 0."""
    gen = torch.Generator().manual_seed(seed)
    taps, weights = [], []
    for c, h, w in shapes:
        tap = torch.randn(n, c, h, w, generator=gen).relu() * 10 ** (4 * torch.rand(n, 1, h, w, generator=gen) - 2)
        tap[torch.rand(n, 1, h, w, generator=gen).expand(tap.shape) < 0.1] = 0
        taps.append(tap.to(dtype))
        weights.append(torch.rand(c, generator=gen))
        weights[-1][c // 2] = 0
    return taps, weights


def rows_of(tap, weight, norm):
    """u of one tap in float64, [N, P C]."""
    features = tap.double().numpy()
    norms = np.sqrt((features**2).sum(axis=1, keepdims=True) + (norm.eps if norm.inside_sqrt else 0))
    divisors = norms if norm.inside_sqrt else norms + norm.eps * (norms > 0)
    a = np.divide(features, divisors, out=np.zeros_like(features), where=divisors > 0)
    scaled = a * np.sqrt(weight.double().numpy() / max(1, tap.shape[2:].numel()))[:, None, None]
    return scaled.transpose(0, 2, 3, 1).reshape(len(tap), -1)


def expected_sketches(which, taps, weights, norm):
    """The sketches by the formula, from the generator's raw numbers."""
    u = np.concatenate([rows_of(*each, norm) for each in zip(taps, weights, strict=True)], axis=1)
    m, values = which.length, u.shape[1]
    words, offsets = (
        np.random.Philox(key=np.array([which.seed, stream], np.uint64)).random_raw(values + 1) for stream in (0, 1)
    )
    found = np.zeros((len(u), m))
    for j in range(values):
        sign = -1 if int(words[j // 64]) >> (j % 64) & 1 else 1
        bucket = (j + int(offsets[j // m]) % m) % m
        found[:, bucket] += sign * u[:, j]
    return torch.from_numpy(found)


# ---- Sketches


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shapes", SHAPES)
def test_sketches_follow_the_formula(way, shapes, length, dtype):
    taps, weights = made(SHAPES[shapes], dtype=dtype)
    which = Sketch(length, seed=5)
    found = sketch.sketch_taps(which, taps, weights, Norm())
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found, expected_sketches(which, taps, weights, Norm()), SKETCH_TOLERANCE[found.dtype])


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_every_norm(way, norm):
    taps, weights = made(SHAPES["small"])
    found = sketch.sketch_taps(Sketch(24), taps, weights, norm)
    assert_close(found, expected_sketches(Sketch(24), taps, weights, norm), SKETCH_TOLERANCE[torch.float32])


def test_without_weights_all_are_1(way):
    taps, weights = made(SHAPES["small"])
    ones = [torch.ones_like(weight) for weight in weights]
    found = sketch.sketch_taps(Sketch(24), taps, None, Norm())
    assert torch.equal(found, sketch.sketch_taps(Sketch(24), taps, ones, Norm()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(way, layout):
    taps, weights = made(SHAPES["wide"])
    taps = [in_layout(tap, layout) for tap in taps]
    found = sketch.sketch_taps(Sketch(24), taps, weights, Norm())
    assert_close(found, expected_sketches(Sketch(24), taps, weights, Norm()), SKETCH_TOLERANCE[torch.float32])


def test_no_images(way):
    taps, weights = made(SHAPES["small"], n=0)
    assert sketch.sketch_taps(Sketch(24), taps, weights, Norm()).shape == (0, 24)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16), ids=str)
def test_a_nan_is_in_its_own_image_alone(way, dtype):
    taps, weights = made(SHAPES["small"], dtype=dtype)
    clean = sketch.sketch_taps(Sketch(24), taps, weights, Norm())
    taps[0][1, 2, 0, 0] = torch.nan
    found = sketch.sketch_taps(Sketch(24), taps, weights, Norm())
    assert found[1].isnan().any()
    assert torch.equal(found[[0, 2]], clean[[0, 2]])


@compiled
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_threads_and_batch_change_no_bit(dtype):
    taps, weights = made(((64, 40, 41), (130, 31, 31)), n=7, dtype=dtype)
    assert sum(tap.numel() for tap in taps) >= 3 << 19  # enough for three threads
    one_by_one = [sketch.sketch_taps(Sketch(100), [t[i : i + 1] for t in taps], weights, Norm()) for i in range(7)]
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(sketch.sketch_taps(Sketch(100), taps, weights, Norm()), torch.cat(one_by_one))


@pytest.mark.parametrize("net", NETS)
def test_sketches_of_embeddings_are_those_of_taps(way, make_ours, net):
    fn = make_ours(net)
    x = image(3, *SIZE[net], seed=0)
    with torch.no_grad():
        taps = fn.features(x).taps
        found = sketch.sketch_embeddings(Sketch(), pairwise.embed(fn, x), [tap.shape[1:] for tap in taps])
        of_taps = sketch.sketch_taps(Sketch(), taps, fn.linear_weights(), fn.norm)
    assert_close(found, of_taps, SKETCH_TOLERANCE[torch.float32])


def test_signs_and_offsets_stay_the_same_forever():
    """Files keep sketches: other signs or offsets would make them worthless."""
    tables = sketch.signs_and_offsets(Sketch(), 31872, CPU)
    digests = [hashlib.sha256(table.numpy().tobytes()).hexdigest()[:16] for table in tables]
    assert digests == ["417e89982710066e", "ce0a53bf2ad9491d"]


def test_a_device_gets_signs_and_offsets_once():
    """A copy to a GPU waits for it."""
    first, again = (sketch.signs_and_offsets(Sketch(64), 1000, torch.device("meta")) for _ in range(2))
    assert first[0] is again[0]
    assert first[1] is again[1]


def test_seeds_give_other_signs_and_offsets():
    tables = [sketch.signs_and_offsets(Sketch(4, seed), 1000, CPU) for seed in (0, 1)]
    assert not any(torch.equal(*pair) for pair in zip(*tables, strict=True))
    assert all(set(signs.tolist()) == {-1, 1} and set(offsets.tolist()) == set(range(4)) for signs, offsets in tables)


# ---- What they estimate


@pytest.mark.parametrize("folded", (False, True))
def test_distances_of_sketches_estimate_distances(folded):
    """The mean over seeds is the distance, and the spread what `Sketch.spread` says, for far and near images."""
    length, draws = 64, 400
    gen = torch.Generator().manual_seed(0)
    shapes = ((40, 3, 3), (64, 2, 2))
    far = torch.rand(2, 616, generator=gen)
    near = far[:1] + 1e-3 * torch.randn(1, 616, generator=gen)
    shifted = far[:1] + 0.01  # the same difference in all coordinates
    embeddings = torch.cat([far, near, shifted])
    exact = (embeddings[1:] - embeddings[0]).double().square().sum(dim=1)
    ratios = []
    for seed in range(draws):
        sketches = sketch.sketch_embeddings(Sketch(4 * length if folded else length, seed), embeddings.double(), shapes)
        sketches = sketch.fold(sketches, length).double() if folded else sketches
        ratios.append((sketches[1:] - sketches[0]).square().sum(dim=1) / exact)
    spread = Sketch(length).spread
    ratios = torch.stack(ratios)
    assert (ratios.mean(dim=0) - 1).abs().max() <= SKETCH_MEAN_TOLERANCE * spread / draws**0.5
    assert ((ratios.std(dim=0) / spread) - 1).abs().max() <= SKETCH_SPREAD_TOLERANCE


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_folded_sketches_are_sums_of_buckets_drawn_at_random(dtype):
    taps, weights = made(SHAPES["small"])
    found = sketch.fold(sketch.sketch_taps(Sketch(96), taps, weights, Norm()).to(dtype), 24)
    order = np.random.Philox(key=np.array([0, 2], np.uint64)).random_raw(96).argsort()
    expected = expected_sketches(Sketch(96), taps, weights, Norm())[:, order].unflatten(1, (4, 24)).sum(dim=1)
    assert found.dtype == torch.float32
    assert_close(found, expected, SKETCH_TOLERANCE[dtype])


@pytest.mark.parametrize("channels", (slice(3, None, 8), slice(20, 24), slice(7, 8)), ids=str)
def test_differences_of_few_channels_keep_the_bound_when_folded(channels):
    """Sums of neighbouring buckets would join neighbours, and those modulo 64 the pixels of a channel, 64 apart."""
    shapes = ((64, 4, 4),)
    difference = torch.zeros(1, *shapes[0], dtype=torch.float64)
    difference[:, channels] = 1
    sketches = [sketch.sketch_embeddings(Sketch(256, seed), difference.flatten(1), shapes) for seed in range(400)]
    ratios = torch.stack([sketch.fold(s, 64).square().sum() for s in sketches]) / difference.square().sum()
    assert ratios.std() <= (1 + SKETCH_SPREAD_TOLERANCE) * Sketch(64).spread


# ---- Distances


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("length", (1, 7, 16, 100, 1024))
def test_distances(way, length, dtype):
    gen = torch.Generator().manual_seed(0)
    queries, rows = torch.randn(6, length, generator=gen), torch.randn(21, length, generator=gen).to(dtype)
    rows[3] = queries[2].to(dtype) + 1e-2  # near
    rows[4] = 0
    expected = (queries[:, None].double() - rows.double()).square().sum(dim=2)
    found = sketch.distances(queries, rows)
    assert found.dtype == torch.float32
    assert_close(found, expected, SKETCH_DISTANCE_TOLERANCE)


def test_the_distance_to_itself_is_0(way):
    rows = torch.randn(9, 100, generator=torch.Generator().manual_seed(0)).half()
    assert sketch.distances(rows.float(), rows).diagonal().tolist() == [0.0] * 9


@pytest.mark.parametrize("queries, rows", ((0, 3), (3, 0), (0, 0)))
def test_distances_of_nothing(way, queries, rows):
    assert sketch.distances(torch.zeros(queries, 8), torch.zeros(rows, 8)).shape == (queries, rows)


def test_rows_with_nan_have_nan(way):
    queries, rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)), torch.zeros(6, 40).half()
    rows[1, 39] = rows[4, 0] = torch.nan
    assert sketch.distances(queries, rows).isnan().tolist() == [[row in (1, 4) for row in range(6)]] * 5


@compiled
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("length", (96, 100))
def test_threads_queries_and_rows_change_no_bit_of_distances(length, dtype):
    gen = torch.Generator().manual_seed(0)
    queries, rows = torch.randn(7, length, generator=gen), torch.randn(2501, length, generator=gen).to(dtype)
    assert queries.shape[0] * rows.numel() >= 3 << 19  # enough for three threads
    whole = sketch.distances(queries, rows)
    for count in (1, 2, 3):
        with threads(count):
            assert torch.equal(sketch.distances(queries, rows), whole)
    for some_queries in (slice(0, 1), slice(2, 5), slice(6, 7)):
        for some_rows in (slice(0, 1), slice(5, 8), slice(1000, 1009), slice(2500, 2501)):
            found = sketch.distances(queries[some_queries], rows[some_rows])
            assert torch.equal(found, whole[some_queries, some_rows])


# ---- The operators' contract


def of_sketch(**changes):
    """Arguments of sketch_cpu, some of them changed."""
    taps, weights = made(((8, 3, 2), (5, 2, 2)))
    signs, offsets = sketch.signs_and_offsets(Sketch(16), 68, CPU)
    arguments = {
        "taps": [tap.contiguous(memory_format=torch.channels_last) for tap in taps],
        "scales": weights,
        "eps": 1e-10,
        "eps_inside_sqrt": False,
        "signs": signs,
        "offsets": offsets,
        "length": 16,
    }
    return tuple({**arguments, **changes}.values())


@compiled
def test_opcheck():
    torch.library.opcheck(ops.sketch_cpu.default, of_sketch())
    for dtype in (torch.float32, torch.float16):
        torch.library.opcheck(ops.sketch_distances_cpu.default, (torch.rand(2, 9), torch.rand(3, 9).to(dtype)))


WEIGHTS = made(((8, 3, 2), (5, 2, 2)))[1]


@compiled
@pytest.mark.parametrize(
    "changes, words",
    (
        ({"taps": []}, ("taps", "at least one")),
        ({"taps": [torch.rand(3, 8, 6), torch.rand(3, 5, 4)]}, ("taps", "[N, C, H, W]", "tap 0")),
        ({"taps": [torch.rand(3, 8, 3, 2), torch.rand(3, 5, 2, 2)]}, ("taps", "channels-last", "tap 0")),
        ({"taps": [torch.rand(3, 8, 1, 1), torch.rand(2, 5, 1, 1)]}, ("taps", "one N", "tap 1")),
        ({"taps": [torch.rand(3, 8, 1, 1), torch.rand(3, 5, 1, 1).half()]}, ("taps", "one type", "tap 1")),
        ({"taps": [torch.rand(3, 8, 1, 1)[:, ::2], torch.rand(3, 5, 1, 1)]}, ("taps", "dense", "tap 0")),
        ({"taps": [torch.ones(3, 8, 6, 1).long(), torch.ones(3, 5, 4, 1).long()]}, ("taps",)),
        ({"scales": WEIGHTS[:1]}, ("scales", "2", "got 1")),
        ({"scales": [WEIGHTS[1], WEIGHTS[0]]}, ("scales", "8", "float32")),
        ({"scales": [weight.double() for weight in WEIGHTS]}, ("scales", "8", "float32")),
        ({"signs": torch.ones(67, dtype=torch.int8)}, ("signs", "68", "int8")),
        ({"signs": torch.ones(68)}, ("signs", "68", "int8")),
        ({"signs": torch.ones(136, dtype=torch.int8)[::2]}, ("signs", "contiguous")),
        ({"offsets": torch.zeros(4, dtype=torch.int64)}, ("offsets", "5", "int64")),
        ({"offsets": torch.zeros(5, dtype=torch.int32)}, ("offsets", "5", "int64")),
        ({"offsets": torch.tensor([0, 1, 2, 3, 16])}, ("offsets", "[0, 16)", "got 16")),
        ({"offsets": torch.tensor([0, -1, 2, 3, 4])}, ("offsets", "[0, 16)", "got -1")),
        ({"length": 0}, ("length", "at least 1", "got 0")),
        ({"length": -5}, ("length", "at least 1", "got -5")),
    ),
)
def test_wrong_arguments_of_sketches(changes, words):
    with raises(RuntimeError, *words):
        ops.sketch_cpu(*of_sketch(**changes))


@compiled
def test_float64_taps_are_an_error():
    with raises(RuntimeError, "taps", "float32, float16 or bfloat16"):
        ops.sketch_cpu(*of_sketch(taps=[tap.double() for tap in of_sketch()[0]]))


@compiled
@pytest.mark.parametrize(
    "queries, rows, words",
    (
        (torch.rand(2, 9).double(), torch.rand(3, 9), ("queries", "float32")),
        (torch.rand(9), torch.rand(3, 9), ("queries", "matrix")),
        (torch.rand(9, 2).T, torch.rand(3, 9), ("queries", "contiguous")),
        (torch.rand(2, 9), torch.rand(3, 8), ("rows", "length 9")),
        (torch.rand(2, 9), torch.rand(9), ("rows", "matrix")),
        (torch.rand(2, 9), torch.rand(9, 3).T, ("rows", "contiguous")),
        (torch.rand(2, 9), torch.rand(3, 9).bfloat16(), ("rows", "float32 or float16")),
    ),
)
def test_wrong_arguments_of_distances(queries, rows, words):
    with raises(RuntimeError, *words):
        ops.sketch_distances_cpu(queries, rows)

"""The mean distance of all pairs, against the pairs' distances; its standard error, against the jackknife and draws."""

from __future__ import annotations

import itertools
import math
import weakref

import pytest
import torch

from lpips_fast import diversity, pairwise
from lpips_fast.diversity import Sample, mean_distance, sampled
from lpips_fast.sketch import Sketch
from tests.support.images import SIZE, image
from tests.support.modules import Pixels
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.tolerances import (
    MEAN_DISTANCE_TOLERANCE,
    PAIRWISE_TOLERANCE,
    REORDERED_TOLERANCE,
    SKETCHED_ERROR_TOLERANCE,
    STANDARD_ERROR_TOLERANCE,
)

EXACT = 8192  # longer than the embeddings of alex at 32 x 32: no two of their numbers share a bucket
SMALL = torch.Size((32, 32))


def distances(fn, x, y=None):
    """The distances of the embeddings in float64, from differences."""
    e, f = fn.embed(x).double(), fn.embed(x if y is None else y).double()
    return torch.stack([(a - f).square().sum(dim=1) for a in e])


def mean_of_pairs(d):
    n = len(d)
    return (d.sum() / (n * (n - 1))).item()


def jackknife(d, mean, one_set):
    """The standard error of the mean of distances by leaving out each image, as it is defined."""
    variance = 0.0
    for side in (0,) if one_set else (0, 1):
        n = d.shape[side]
        means = []
        for i in range(n):
            rest = [j for j in range(n) if j != i]
            left = d.index_select(side, torch.tensor(rest))
            means.append(mean(left[:, rest] if one_set else left))
        means = torch.tensor(means, dtype=torch.float64)
        variance += (n - 1) / n * (means - means.mean()).square().sum().item()
    return math.sqrt(variance)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("net", NETS)
def test_mean_of_all_pairs(make_ours, net, dtype):
    fn = make_ours(net).to(dtype)
    x, y = image(6, *SIZE[net], seed=0, dtype=dtype), image(4, *SIZE[net], seed=1, dtype=dtype)
    found = mean_distance(fn, x)
    assert found.pairs == 15
    assert found.mean == pytest.approx(mean_of_pairs(distances(fn, x)), rel=MEAN_DISTANCE_TOLERANCE)
    by_pairs = mean_of_pairs(fn.pairwise(x).double())
    assert found.mean == pytest.approx(by_pairs, abs=PAIRWISE_TOLERANCE[dtype])
    found = mean_distance(fn, x, y)
    assert found.pairs == 24
    assert found.mean == pytest.approx(distances(fn, x, y).mean().item(), rel=MEAN_DISTANCE_TOLERANCE)


@pytest.mark.parametrize("batch", (1, 2, 5, 100))
def test_standard_error_is_the_jackknife(make_ours, monkeypatch, batch):
    """Batches change the rounding of embeddings, and nothing else, where sketches are exact."""
    monkeypatch.setattr(pairwise, "_BATCH_PIXELS", batch * SMALL.numel())
    fn = make_ours().double()
    x, y = (image(n, *SMALL, seed=n, dtype=torch.float64) for n in (12, 7))
    x[3:6] *= 0.1
    assert fn.embed(x[:1]).shape[1] <= EXACT
    for arguments, mean in (((x,), mean_of_pairs), ((x, y), lambda d: d.mean().item())):
        found = mean_distance(fn, *arguments, sketch=EXACT)
        d = distances(fn, *arguments)
        assert found.mean == pytest.approx(mean(d), rel=MEAN_DISTANCE_TOLERANCE)
        expected = jackknife(d, mean, len(arguments) == 1)
        assert found.standard_error == pytest.approx(expected, rel=MEAN_DISTANCE_TOLERANCE)


@pytest.mark.parametrize("length", (64, 1024))
def test_standard_error_from_sketches(make_ours, length):
    """The distances of noise images to their mean vary little. Uncorrected sketches would add as much again."""
    fn, x = make_ours(), image(50, 64, 64, seed=0)
    expected = jackknife(distances(fn, x), mean_of_pairs, True)
    found = mean_distance(fn, x, sketch=length)
    assert found.standard_error == pytest.approx(expected, rel=SKETCHED_ERROR_TOLERANCE)


@pytest.mark.parametrize("sizes", ((40,), (30, 20)), ids=("one set", "two sets"))
def test_standard_error_is_the_deviation_of_means(make_ours, sizes):
    """Samples are drawn again and again from pools of images, which are their population."""
    gen = torch.Generator().manual_seed(0)
    pools = []
    for k in range(len(sizes)):
        spread = torch.rand(200, 1, 1, 1, generator=gen)
        pools.append(1 + k + spread * torch.randn(200, 3, 8, 8, generator=gen))
    fn, found = Pixels(make_ours().norm), []
    for _ in range(400):
        drawn = [pool[torch.randint(200, (n,), generator=gen)] for pool, n in zip(pools, sizes)]
        found.append(mean_distance(fn, *drawn, sketch=64))
    means, errors = (torch.tensor([getattr(f, name) for f in found]) for name in ("mean", "standard_error"))
    deviation, error = means.std().item(), errors.square().mean().sqrt().item()
    assert error == pytest.approx(deviation, rel=STANDARD_ERROR_TOLERANCE)


def test_batches_do_not_wait_for_the_device(make_ours, monkeypatch):
    """A number that Python reads, or a copy to the CPU, makes a GPU idle."""
    told = []
    for name in ("item", "cpu"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, real=real, name=name: told.append(name) or real(*a))
    monkeypatch.setattr(pairwise, "_BATCH_PIXELS", 2 * SMALL.numel())
    merge = Sample.merge
    monkeypatch.setattr(Sample, "merge", lambda *samples: told.append("batch") or merge(*samples))
    sampled(make_ours(), "x", image(6, *SMALL, seed=0), SMALL, False, Sketch(64))
    first, last = told.index("batch"), len(told) - told[::-1].index("batch")
    assert told[first:last] == ["batch"] * 3


def test_near_duplicates_do_not_cancel(make_ours, monkeypatch):
    monkeypatch.setattr(pairwise, "_BATCH_PIXELS", 4 * SMALL.numel())
    fn, one = make_ours(), image(1, *SMALL, seed=0)
    x = one + 1e-4 * image(10, *SMALL, seed=1)
    e = torch.cat([fn.embed(x[i : i + 4]) for i in range(0, 10, 4)]).double()
    expected = mean_of_pairs((e[:, None] - e).square().sum(dim=2))
    assert 0 < expected < 1e-7
    assert mean_distance(fn, x).mean == pytest.approx(expected, rel=MEAN_DISTANCE_TOLERANCE)


def test_equal_images_are_at_exactly_0(make_ours):
    x = image(1, *SMALL, seed=0).expand(5, -1, -1, -1)
    assert mean_distance(make_ours(), x) == (0, 0, 10)


def test_images_are_read_and_embedded_once_and_forgotten(make_ours, monkeypatch):
    monkeypatch.setattr(pairwise, "_FILLED_IMAGES", 1)
    monkeypatch.setattr(pairwise, "_BATCH_PIXELS", 2 * SMALL.numel())
    fn, x = make_ours(), image(7, *SMALL, seed=0)
    sizes, live = [], weakref.WeakSet()
    fn.net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    make = diversity.empty_embeddings

    def made(n, taps):
        assert n <= 2
        assert not live, "the batch before is still there"
        embeddings = make(n, taps)
        live.add(embeddings)
        return embeddings

    class Folder:
        def __len__(self):
            return len(x)

        def __getitem__(self, rows):
            return x[rows]

    monkeypatch.setattr(diversity, "empty_embeddings", made)
    found = mean_distance(fn, Folder(), sketch=16)
    assert sizes == [2, 2, 2, 1]
    assert found == mean_distance(fn, x, sketch=16)
    sample = sampled(fn, "x", x, SMALL, False, Sketch(16))
    assert torch.cat(sample.sketches).shape == (7, 16)
    assert sample.sketches[0].dtype == torch.float32
    assert sample.mean.dim() == 1


@pytest.mark.parametrize("cuts", ((), (4,), (1, 2, 9), (0, 5, 5, 10)), ids=str)
def test_samples_merge(make_ours, cuts):
    """In any parts, also parts of no images."""
    fn, x = make_ours().double(), image(10, *SMALL, seed=0, dtype=torch.float64)
    whole = sampled(fn, "x", x, SMALL, False, Sketch(EXACT))
    merged = Sample()
    for start, stop in itertools.pairwise((0, *cuts, 10)):
        part = x[start:stop]
        merged.merge(sampled(fn, "x", part, SMALL, False, Sketch(EXACT)) if len(part) else Sample())
    for found, expected in (
        (merged.mean_distance(), whole.mean_distance()),
        (merged.mean_distance_to(whole), whole.mean_distance_to(whole)),
    ):
        assert found.pairs == expected.pairs
        assert found[:2] == pytest.approx(expected[:2], rel=MEAN_DISTANCE_TOLERANCE)


def test_normalize_maps_from_zero_to_one(make_ours):
    fn, x = make_ours(), image(3, *SMALL, seed=0)
    found = mean_distance(fn, (x + 1) / 2, normalize=True)
    assert found == pytest.approx(mean_distance(fn, x), rel=REORDERED_TOLERANCE)


def test_half_precision(make_ours):
    fn, x = make_ours().bfloat16(), image(4, *SMALL, seed=0).bfloat16()
    assert mean_distance(fn, x).mean == pytest.approx(mean_of_pairs(distances(fn, x)), rel=MEAN_DISTANCE_TOLERANCE)


def test_few_images(make_ours):
    fn, x = make_ours(), image(3, *SMALL, seed=0)
    found = mean_distance(fn, x[:2])
    assert found.mean == pytest.approx(fn(x[:1], x[1:2]).item(), rel=REORDERED_TOLERANCE)
    assert math.isnan(found.standard_error)
    assert mean_distance(fn, x).standard_error > 0
    for n, m in ((1, 1), (1, 2), (2, 1)):
        assert math.isnan(mean_distance(fn, x[:n], x[-m:]).standard_error)
    assert mean_distance(fn, x[:2], x[1:]).standard_error > 0
    for n in (0, 1):
        with raises(ValueError, "x must be at least 2 images", f"got {n}"):
            mean_distance(fn, x[:n])
    with raises(ValueError, "x and y must be at least 1 image each, got 3 and 0"):
        mean_distance(fn, x, x[:0])


@pytest.mark.parametrize("length", (0, -1, 1.5, True, None, "1024"), ids=repr)
def test_sketch_is_checked(make_ours, length):
    with raises(ValueError, "sketch must be a length from 1", repr(length)):
        mean_distance(make_ours(), image(2, *SMALL, seed=0), sketch=length)


def test_errors(make_ours):
    fn, x = make_ours(eval_mode=False), image(2, *SMALL, seed=0)
    with raises(ValueError, "x and y must be of one size, got [32, 32] and [64, 32]"):
        mean_distance(fn, x, image(2, 64, 32, seed=0))
    with raises(TypeError, "y must be a tensor", "list"):
        mean_distance(fn, x, [x])
    with raises(TypeError, "y is torch.float64"):
        mean_distance(fn, x, x.double())
    with torch.no_grad():
        fn.lin2.model[-1].weight[0, 5] = -0.25
    with raises(ValueError, "layer 2's linear weights have negative values (down to -0.25)"):
        mean_distance(fn, x)

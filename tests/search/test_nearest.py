"""Candidates and their confirmation on vectors that are no images, against float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lpips_fast.search import nearest
from lpips_fast.search.nearest import SketchEstimates, VectorEstimates, confirm, merged, scan
from lpips_fast.sketch import Sketch
from tests.support.raises import raises
from tests.support.tolerances import INDEX_TOLERANCE

N, D, K = 400, 640, 7
SKETCH = Sketch(128)


@pytest.fixture
def vectors():
    """Clusters, so that the nearest are much nearer than the others, and some equal vectors."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, D, generator=generator)
    vectors = centres.repeat(N // 20, 1) + 0.2 * torch.randn(N, D, generator=generator)
    vectors[50:60] = vectors[3]
    return vectors


@pytest.fixture
def queries(vectors):
    return vectors[[3, 17, 200]] + 0.05 * torch.randn(3, D, generator=torch.Generator().manual_seed(1))


def sketched(vectors):
    """By a plain count sketch in float64: nearest.py knows of a sketch no more than its spread."""
    generator = torch.Generator().manual_seed(2)
    buckets = torch.randint(SKETCH.length, (D,), generator=generator)
    signs = torch.randint(2, (D,), generator=generator).double() * 2 - 1
    made = torch.zeros(len(vectors), SKETCH.length, dtype=torch.float64)
    return made.index_add_(1, buckets, vectors.double() * signs).float()


def estimates_of(kind, queries, vectors):
    if kind == "vectors":
        return VectorEstimates(queries, vectors)
    return SketchEstimates(sketched(queries), sketched(vectors).half(), SKETCH)


def exact(queries, vectors):
    return (queries.double()[:, None] - vectors.double()).square().sum(dim=2)


@pytest.mark.parametrize("kind", ("vectors", "sketches"))
@pytest.mark.parametrize("block", (1, 33, N))
def test_the_nearest_are_candidates_and_are_confirmed(vectors, queries, kind, block, monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", block * 4 * (D if kind == "vectors" else SKETCH.length))
    estimates = estimates_of(kind, queries, vectors)
    candidates = scan(estimates, K, range(N))
    expected = exact(queries, vectors)
    for found, distances in zip(candidates, expected, strict=True):
        assert {*distances.argsort(stable=True)[:K].tolist()} <= {*found.rows.tolist()}
        assert K <= len(found.rows) < N
        assert (found.estimates.diff() >= 0).all()
    read = []

    def stored(rows):
        read.append(rows)
        return vectors[list(rows)], rows

    distances, rows, lost = confirm(queries, candidates, K, estimates, stored)
    assert (lost == 0).all()
    order = expected.argsort(dim=1, stable=True)[:, :K]
    assert torch.equal(rows, order)
    torch.testing.assert_close(distances.double(), expected.gather(1, order), **INDEX_TOLERANCE[torch.float32])
    assert all(sorted(rows) == [*rows] for rows in read)


def test_confirming_ends_when_no_other_can_be_nearer(vectors, queries):
    """Each cluster has 20 vectors. The candidates by sketch are more, but the others need not be read."""
    estimates = estimates_of("sketches", queries, vectors)
    candidates = scan(estimates, 30, range(N))
    read = set()

    def stored(rows):
        read.update(rows)
        return vectors[list(rows)], rows

    confirm(queries, candidates, 1, estimates, stored)
    assert len(read) < sum(len(found.rows) for found in candidates) / 2


@pytest.mark.parametrize("kind", ("vectors", "sketches"))
def test_parts_of_the_rows_give_the_candidates_of_all(vectors, queries, kind):
    """However many processes share them, also ones that get fewer than k or none."""
    estimates = estimates_of(kind, queries, vectors)
    whole = scan(estimates, K, range(N))
    for cuts in ((0, N), (0, 100, N), (0, 2, 2, 50, 51, N)):
        parts = [scan(estimates, K, range(*ends)) for ends in itertools.pairwise(cuts)]
        for found, expected in zip(merged(estimates, parts, K), whole, strict=True):
            if kind == "sketches":
                assert torch.equal(found.rows, expected.rows)
                assert torch.equal(found.estimates, expected.estimates)
            else:  # products of other shapes may round differently
                assert {*found.rows.tolist()} == {*expected.rows.tolist()}


@pytest.mark.parametrize("kind", ("vectors", "sketches"))
def test_equal_vectors_come_in_their_order(vectors, kind):
    vectors[77] = vectors[3]
    estimates = estimates_of(kind, vectors[3:4], vectors)
    distances, rows, _ = confirm(
        vectors[3:4], scan(estimates, 5, range(N)), 5, estimates, lambda rows: (vectors[list(rows)], rows)
    )
    assert rows.tolist() == [[3, 50, 51, 52, 53]]
    assert (distances == 0).all()


def test_what_is_gone_is_left_out(vectors, queries):
    estimates = estimates_of("sketches", queries, vectors)
    first = exact(queries, vectors).argmin(dim=1).tolist()

    def stored(rows):
        kept = [row for row in rows if row not in first]
        return vectors[kept], kept

    _, rows, lost = confirm(queries, scan(estimates, K + 1, range(N)), K, estimates, stored)
    assert (lost >= 1).all()
    assert not {*first} & {*rows.flatten().tolist()}
    expected = exact(queries, vectors)
    expected[:, first] = math.inf
    assert torch.equal(rows, expected.argsort(dim=1, stable=True)[:, :K])
    none = confirm(queries, scan(estimates, K, range(N)), K, estimates, lambda rows: (vectors[:0], []))
    assert none[0].isinf().all()
    assert (none[1] == -1).all()


@pytest.mark.parametrize("factory", ("Flat", "HNSW32", "IVF8,Flat", "IVF4,PQ16x4"))
def test_faiss_finds_candidates_among_sketches(vectors, queries, factory):
    faiss = pytest.importorskip("faiss")
    estimates = estimates_of("sketches", queries, vectors)
    index = faiss.index_factory(SKETCH.length, factory)
    index.train(estimates.stored.float().numpy())
    index.add(estimates.stored.float().numpy())
    candidates = nearest.by_faiss(estimates, index, 1)
    for found, query, distances in zip(candidates, estimates.queries, exact(queries, vectors), strict=True):
        assert distances.argmin() in found.rows
        by_hand = (query.double() - estimates.stored[found.rows].double()).square().sum(dim=1)
        torch.testing.assert_close(found.estimates.double(), by_hand, **INDEX_TOLERANCE[torch.float32])
        assert (found.estimates.diff() >= 0).all()


def test_how_much_faiss_is_asked_for(vectors, queries, monkeypatch):
    """More, as long as the last that it finds may still be among the nearest; but not without end."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(nearest, "_MOST_OF_FAISS", 300)
    asked = []

    class Fake:
        ntotal = N

        def search(self, x, n):
            asked.append(n)
            rows = torch.arange(n).expand(len(x), -1)
            return torch.zeros(rows.shape).numpy(), rows.numpy()

    everywhere_alike = torch.zeros(N, SKETCH.length).half()
    alike = SketchEstimates(sketched(queries), everywhere_alike, SKETCH)
    nearest.by_faiss(alike, Fake(), 3)
    assert asked == [100, 300]
    asked.clear()
    nearest.by_faiss(alike, Fake(), 35)
    assert asked == [350]


def test_many_queries_take_smaller_blocks(vectors, monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK_BYTES", 16 * len(vectors) * 10)
    estimates = estimates_of("sketches", vectors, vectors)
    asked = []
    of = estimates.of
    monkeypatch.setattr(estimates, "of", lambda rows: (asked.append(rows.stop - rows.start), of(rows))[1])
    assert [found.rows[0].item() for found in scan(estimates, 1, range(N))][:3] == [0, 1, 2]
    assert max(asked) == 10


def test_no_queries_are_merged(vectors):
    estimates = estimates_of("sketches", vectors[:0], vectors)
    assert merged(estimates, [[], []], K) == []


@pytest.mark.parametrize("kind", ("vectors", "sketches"))
@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_what_is_not_finite(vectors, queries, kind, value):
    vectors[123, 4] = value
    estimates = estimates_of(kind, queries, vectors)
    with raises(ValueError, "images must be finite", "images[123]"):
        scan(estimates, K, range(100, N))
    sound = estimates_of(kind, queries, vectors.nan_to_num(posinf=0))
    with raises(ValueError, "images must be finite", "images[123]"):
        confirm(
            queries, [nearest.Candidates(torch.zeros(1), torch.tensor([123]))] * 3, 1, sound,
            lambda rows: (vectors[list(rows)], rows),
        )  # fmt: skip

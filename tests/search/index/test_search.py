"""The index against LPIPS itself: what it finds."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

import lpips_fast.search
from lpips_fast.search import Index
from tests.support.images import image
from tests.support.indexes import SIZE, N
from tests.support.parameters import NETS
from tests.support.tolerances import (
    EQUAL_IMAGES_TOLERANCE,
    INDEX_EMBEDDING_TOLERANCE,
    INDEX_FLOAT16_MEDIAN_TOLERANCE,
    INDEX_FLOAT16_TOLERANCE,
    INDEX_TOLERANCE,
    OTHERS_TOLERANCE,
)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("k", (1, 4, N, N + 5))
def test_finds_the_nearest(fn, images, queries, distances, dtype, k, monkeypatch):
    expected, order = distances.sort(dim=1)
    for block_bytes in (lpips_fast.search.nearest._BLOCK_BYTES, 5 * 4 * fn.embed(images[:1]).shape[1]):
        monkeypatch.setattr(lpips_fast.search.nearest, "_BLOCK_BYTES", block_bytes)
        found, indices = Index.build(fn, images, dtype=dtype, batch=5).search(queries, k)
        assert torch.equal(indices, order[:, :k])
        torch.testing.assert_close(found, expected[:, :k], **INDEX_TOLERANCE[dtype])


def test_float16_keeps_small_values(fn, images):
    """Unscaled, most values of a large image's embedding would be subnormal in float16."""
    x = image(2, 128, 128, seed=5)
    found, _ = Index.build(fn, x).search(x[:1], 2)
    with torch.no_grad():
        expected = fn(x[:1], x[1:]).item()
    assert found[0, 0] < EQUAL_IMAGES_TOLERANCE
    assert found[0, 1].item() == pytest.approx(expected, rel=OTHERS_TOLERANCE)


@pytest.mark.parametrize("faiss", (None, "Flat"))
@pytest.mark.parametrize("n", (4, 60))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_equal_images_come_in_their_order(fn, images, n, dtype, faiss, monkeypatch):
    """Any number of them, in any number of blocks, at any distance from the query."""
    if faiss:
        pytest.importorskip("faiss")
    x = images[[3, 4, *[3] * (n - 2)]]
    index = Index.from_embeddings(fn, fn.embed(x), (SIZE, SIZE), dtype=dtype)  # equal to the bit
    for block_bytes in (lpips_fast.search.nearest._BLOCK_BYTES, 7 * 4 * index.vectors.shape[1]):
        monkeypatch.setattr(lpips_fast.search.nearest, "_BLOCK_BYTES", block_bytes)
        for k in (1, 2, 3):
            found, indices = index.search(images[3:4], k, faiss=faiss)
            assert indices.tolist() == [[0, 2, 3][:k]]
            assert found.max() < EQUAL_IMAGES_TOLERANCE
        for order in index.search(images[[9, 5, 4]], n, faiss=faiss)[1]:
            assert order[order != 1].tolist() == [0, *range(2, n)]


@pytest.fixture(scope="module")
def stills(make_ours):
    """For a net and a size: 300 frames of a still with some noise, and their distances from ten of them in float64."""

    @functools.cache
    def make(net, size):
        noise = 7e-4 * torch.randn(300, 3, size, size, generator=torch.Generator().manual_seed(4))
        frames = image(1, size, size, seed=0) + noise
        e = make_ours(net).double().embed(frames.double())
        distances = torch.stack([(e - e[i]).square().sum(dim=1) for i in range(10)])
        assert 5e-7 < distances.median() < 3e-6
        return frames, distances

    return make


@pytest.mark.parametrize("sketch", (1024, None))
@pytest.mark.parametrize("net", NETS)
def test_equal_images_that_go_through_the_trunk_apart(make_ours, images, sketch, net):
    """In batches of other sizes convolutions could round differently, and mix up their order."""
    x = images[[4, *[3] * 21]]
    index = Index.build(make_ours(net), x, dtype=torch.float32, sketch=sketch)
    for k in (1, 5, 17, 21):
        found, indices = index.search(images[3:4], k)
        assert indices.tolist() == [[*range(1, k + 1)]]
        assert (found == 0).all()
        assert index.search(images[5:6], 22)[1][0].tolist() in ([0, *range(1, 22)], [*range(1, 22), 0])


@pytest.mark.parametrize("faiss", (None, "Flat", "HNSW32"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("net, size", (("alex", 32), ("alex", 64), ("squeeze", 33), ("vgg", 16)))
def test_near_duplicates_are_told_from_each_other(make_ours, stills, net, size, dtype, faiss):
    """Their distances differ by less than matrix products round them."""
    if faiss:
        pytest.importorskip("faiss")
    fn = make_ours(net)
    frames, exact = stills(net, size)
    index = Index.build(fn, frames, dtype=dtype)
    queries = frames[: len(exact)]
    found, indices = index.search(queries, faiss=faiss)
    vectors = index.vectors.double() / size
    among_vectors = torch.stack([(vectors - e).square().sum(dim=1) for e in fn.embed(queries).double()])
    assert recall(indices, among_vectors) == 1
    assert recall(indices, exact) >= (1 if dtype == torch.float32 else 0.8)  # float16 keeps less of an image
    nearest, exact = exact.sort(dim=1).values[:, 1:5].mean(), exact.gather(1, indices)
    assert exact[:, 1:].mean() <= 1.01 * nearest
    assert (exact[:, 0] == 0).all()
    assert (found[:, 0] < EQUAL_IMAGES_TOLERANCE).all()
    allowed = INDEX_TOLERANCE[dtype]["rtol"] * exact + EQUAL_IMAGES_TOLERANCE
    if dtype == torch.float16:
        allowed += INDEX_FLOAT16_TOLERANCE * exact.sqrt()
    assert ((found - exact).abs() <= allowed).all()


def recall(indices, exact):
    """The share of the images nearest by the exact distances [Q, N] that are among the indices [Q, k]."""
    nearest = exact.argsort(dim=1)[:, : indices.shape[1]]
    return (indices[:, :, None] == nearest[:, None]).sum().item() / indices.numel()


@pytest.mark.parametrize("faiss", (None, "Flat"))
def test_only_queries_with_near_duplicates_have_many_candidates(fn, images, faiss):
    if faiss:
        pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(4)
    frames = images[3] + 1e-4 * torch.randn(100, 3, SIZE, SIZE, generator=generator)
    index = Index.build(fn, torch.cat((images, frames)), dtype=torch.float32)
    candidates = index.candidates(index.queries(images[[3, 9]]), 3, faiss=faiss)
    assert len(candidates[0].rows) == 101
    assert len(candidates[1].rows) <= 6


@pytest.mark.parametrize("net, size", (("alex", 64), ("squeeze", 64), ("vgg", 32)))
def test_what_float16_changes(make_ours, net, size):
    """The change is some 1e-5 sqrt(d), as the docstring of `build` says."""
    x = image(12, size, size, seed=0)
    noise = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    x = torch.cat((x, x[:8] + torch.logspace(-4, -1, 8).view(8, 1, 1, 1) * noise))
    fn = make_ours(net)
    found, indices = Index.build(fn, x).search(x, len(x))
    e = make_ours(net).double().embed(x.double())
    exact = (e[:, None] - e).square().sum(dim=2).gather(1, indices)
    errors = ((found - exact).abs() / exact.sqrt())[:, 1:]
    assert errors.median() < INDEX_FLOAT16_MEDIAN_TOLERANCE
    assert errors.max() < INDEX_FLOAT16_TOLERANCE


def test_equal_images_are_at_zero(fn, images):
    """The distance is 0, in float16, too, if embeddings agree to the bit; else it is within the rounding of float32."""
    for dtype in (torch.float16, torch.float32):
        index = Index.from_embeddings(fn, fn.embed(images), (SIZE, SIZE), dtype=dtype)
        found, indices = index.search(images, 1)
        assert indices.flatten().tolist() == list(range(N))
        assert (found == 0).all()
        for i in range(N):
            found, indices = index.search(images[i : i + 1], 1)
            assert indices.item() == i
            assert 0 <= found.item() < EQUAL_IMAGES_TOLERANCE


def test_from_embeddings_is_as_from_images(fn, images, queries):
    built = Index.build(fn, images)
    made = Index.from_embeddings(fn, fn.embed(images), (SIZE, SIZE))
    torch.testing.assert_close(made.vectors, built.vectors, **INDEX_EMBEDDING_TOLERANCE)
    assert made.header == built.header._replace(normalize=None, raw=None)


def test_layers_that_train_and_embeddings_with_a_graph(make_ours, images):
    fn = make_ours(eval_mode=False)
    embeddings = fn.embed(images).requires_grad_()
    for index in (Index.build(fn, images), Index.from_embeddings(fn, embeddings, (SIZE, SIZE))):
        assert not index.vectors.requires_grad
        assert index.search(images[4:5], 1)[1].item() == 4


def test_resizing_and_normalize(fn, queries, images):
    large = torch.nn.functional.interpolate(images, scale_factor=3, mode="bilinear")
    index = Index.build(fn, (large + 1) / 2, size=(40, 36), normalize=True)
    _, indices = index.search((large[4:6] + 1) / 2, 1, normalize=True)
    assert indices.flatten().tolist() == [4, 5]
    _, indices = index.search((images[4:6] + 1) / 2, 1, normalize=True)
    assert indices.flatten().tolist() == [4, 5], "queries of another size are resized, too"


@pytest.mark.parametrize("faiss", (None, "Flat"))
def test_no_queries_and_no_images(fn, images, faiss):
    if faiss:
        pytest.importorskip("faiss")
    for n, n_queries in ((0, 2), (2, 0), (0, 0)):
        index = Index.from_embeddings(fn, fn.embed(images[:n]), (SIZE, SIZE))
        for found in index.search(images[:n_queries], 3, faiss=faiss):
            assert found.shape == (n_queries, n)


@pytest.mark.parametrize("kind", ({"sketch": 1024}, {}), ids=str)
@pytest.mark.parametrize("processes", (1, 2, 3, N + 1))
@pytest.mark.parametrize("k", (4, N + 5))
def test_rows_may_be_shared(fn, images, queries, kind, processes, k):
    """As processes share them: also where one has fewer than k rows, or none."""
    index = Index.build(fn, images, **kind)
    compared = index.queries(queries)
    ends = [N * rank // processes for rank in range(processes + 1)]

    def find(k):
        parts = [index.candidates(compared, k, rows=range(*rows)) for rows in itertools.pairwise(ends)]
        return index.merged(compared, parts, k)

    found = index.nearest(compared, k, find)
    for shared, alone in zip(found, index.search(queries, k), strict=True):
        assert torch.equal(shared, alone)

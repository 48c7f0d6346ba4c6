"""FAISS as the source of candidates."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.search import Index
from tests.support.indexes import N
from tests.support.raises import raises
from tests.support.tolerances import (
    INDEX_TOLERANCE,
)


def test_faiss_missing(fn, images, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match="lpips_fast\\[faiss\\]"):
        Index.build(fn, images).search(images, faiss="Flat")


@pytest.mark.parametrize("factory", ("Flat", "SQfp16", "HNSW16,Flat", "IVF2,Flat"))
def test_faiss_finds_the_nearest(fn, images, queries, distances, factory):
    pytest.importorskip("faiss")
    index = Index.build(fn, images)
    found, indices = index.search(queries, 2, faiss=factory)
    expected, order = distances.sort(dim=1)
    assert torch.equal(indices[:, 0], order[:, 0])
    torch.testing.assert_close(found[:, 0], expected[:, 0], **INDEX_TOLERANCE[torch.float16])
    if not factory.startswith("IVF"):  # which looks into one of its lists only
        assert torch.equal(indices, index.search(queries, 2)[1])
    missing = indices == -1
    assert torch.equal(missing, found.isinf())


@pytest.mark.parametrize(
    "factory, reason",
    (
        ("nonsense", "could not parse index string nonsense"),
        ("", "could not parse"),
        ("PQ7", "multiple of the number of subquantizers"),
        ("IVF50,Flat", "Number of training points (12)"),
        ("PCA64,Flat", "PCA matrix cannot output 64 dimensions"),
        ("IDMap,Flat", "use add_with_ids"),
        ("MinMax,Flat", "add not implemented for this type of index"),
        ("NSG32", "cannot build a graph smaller than 100"),
    ),
)
def test_faiss_strings_are_checked(fn, images, factory, reason):
    pytest.importorskip("faiss")
    with raises(ValueError, "faiss must be a factory string", repr(factory), f"{N} vectors", reason):
        Index.build(fn, images).search(images[:1], faiss=factory)


@pytest.mark.parametrize("at", ("add", "search"))
@pytest.mark.parametrize("kind", (RuntimeError, MemoryError))
def test_wherever_faiss_fails(fn, images, monkeypatch, at, kind):
    faiss = pytest.importorskip("faiss")

    def fail(*_):
        raise kind("Error in f at file.cpp:1: no such thing")

    monkeypatch.setattr(faiss.IndexFlat, at, fail)
    with raises(ValueError, "faiss must be a factory string", "'Flat'", f"{N} vectors", "no such thing"):
        Index.build(fn, images).search(images[:1], faiss="Flat")


@pytest.mark.parametrize(
    "factory",
    ("HNSW0", "HNSW1", "IVF4_HNSW1,Flat", "NSG1", "IVF0,Flat"),
)
def test_numbers_in_faiss_strings(fn, images, factory):
    with raises(ValueError, "faiss must be a factory string with numbers from 1", "from 2 after HNSW", repr(factory)):
        Index.build(fn, images[:2]).search(images[:1], faiss=factory)


@pytest.mark.parametrize("factory", (3, True, ["Flat"]), ids=repr)
def test_faiss_is_a_string(fn, images, factory):
    with raises(TypeError, "faiss must be None or a FAISS factory string", type(factory).__name__):
        Index.build(fn, images[:2]).search(images[:1], faiss=factory)


def test_faiss_and_vectors_that_are_not_finite(fn, images):
    pytest.importorskip("faiss")
    index = Index.build(fn, images)
    index.vectors[3, 5] = torch.nan
    with raises(ValueError, "images must be finite", "images[3]"):
        index.search(images[:1], faiss="Flat")

"""What the index refuses, and how it says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lpips_fast.search
from lpips_fast.search import Index
from tests.support.indexes import SIZE, N, rewrite
from tests.support.parameters import NETS
from tests.support.raises import raises


def test_errors(fn, images):
    with pytest.raises(ValueError, match="images must be at least one"):
        Index.build(fn, images[:0])
    with pytest.raises(ValueError, match=f"one an image, {N}, got 1"):
        Index.build(fn, images, names=["a"])
    with pytest.raises(ValueError, match=r"float16 or torch.float32, got torch.bfloat16"):
        Index.build(fn, images, dtype=torch.bfloat16)


SIZES = (64, (64,), (40, 40, 40), (-40, 40), (40, 0), (40.0, 40.0), (True, 40), (30, 40), "40", "64x64", None)


@pytest.mark.parametrize("rows", (range(0, N, 2), range(-3, 3), range(0, N + 1), range(5, 3)), ids=repr)
def test_ranges_are_checked(fn, images, rows):
    index = Index.build(fn, images, sketch=64)
    with raises(ValueError, "rows must be a range of step 1 within 0 to 12", repr(rows)):
        index.candidates(index.queries(images[:1]), 2, rows=rows)
    assert len(index.candidates(index.queries(images[:1]), 2, rows=range(3, 3))[0].rows) == 0


@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_size_is_checked(fn, images, size):
    words = "size must be height and width", "at least 31 pixels", "'alex'", repr(size)
    if size is not None:
        with raises(ValueError, *words):
            Index.build(fn, images, size=size)
    with raises(ValueError, *words):
        Index.from_embeddings(fn, fn.embed(images[:2]), size)


def test_sizes_and_counts_may_be_numpys(fn, images, tmp_path):
    index = Index.build(fn, images, size=np.array([40, 40]), batch=np.int64(5))
    index.save(tmp_path / "images.index")
    assert index.header.size == (40, 40)
    assert index.search(images[:1], np.int64(2))[1].shape == (1, 2)


@pytest.mark.parametrize("count", (0, -1, 1.5, True, "2", None), ids=repr)
def test_counts_are_checked(fn, images, count):
    index = Index.build(fn, images[:2])
    with raises(ValueError, "k must be a number of images from 1", repr(count)):
        index.search(images, k=count)
    with raises(ValueError, "batch must be a number of images from 1", repr(count)):
        Index.build(fn, images, batch=count)


@pytest.mark.parametrize(
    "names, kind, words",
    (
        ("ab", TypeError, ("list of strings or paths", "'ab'")),
        ({"a", "b"}, TypeError, ("list of strings or paths", "{")),
        (Path("ab"), TypeError, ("list of strings or paths", "Path")),
        (2, TypeError, ("list of strings or paths", "2")),
        (["a", np.int64(1)], TypeError, ("names[1]", "string or a path", "int64")),
        (["a", None], TypeError, ("names[1]", "string or a path", "NoneType")),
        (["a"], ValueError, ("one an image, 2", "got 1")),
    ),
    ids=("string", "set", "path", "int", "int64", "none", "too few"),
)
def test_names_are_checked_before_anything_is_built(fn, images, names, kind, words, monkeypatch):
    embeddings = fn.embed(images[:2])
    with raises(kind, "names", *words):
        Index.from_embeddings(fn, embeddings, (SIZE, SIZE), names=names)
    monkeypatch.setattr(lpips_fast.search.index, "embed_rows", lambda *_: pytest.fail("images were embedded"))
    with raises(kind, "names", *words):
        Index.build(fn, images[:2], names=names)


def test_paths_as_names(fn, images, tmp_path):
    index = Index.build(fn, images[:2], names=[Path("a/b.png"), "a/b.png"])
    assert index.names == ["a/b.png", "a/b.png"]
    index.save(tmp_path / "images.index")
    assert [*Index.load(tmp_path / "images.index", fn).names] == index.names


@pytest.mark.parametrize("size", (None, (40, 40)))
@pytest.mark.parametrize(
    "given, kind, words",
    (
        (None, TypeError, ("must be a tensor", "NoneType")),
        (["a.png"], TypeError, ("must be a tensor", "list")),
        (torch.zeros(3, 40, 40), ValueError, ("[N, 3, H, W]", "[3, 40, 40]")),
        (torch.zeros(2, 4, 32, 32), ValueError, ("[N, 3, H, W]", ", 4, ")),
        (torch.zeros(2, 3, 0, 32), ValueError, ("at least 31", "0 x 32")),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, ("floating point", "torch.uint8")),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), TypeError, ("torch.float64", "torch.float32")),
    ),
    ids=("none", "list", "rank", "channels", "no pixels", "uint8", "float64"),
)
def test_images_and_queries_are_checked(fn, images, size, given, kind, words):
    with raises(kind, "images", *words):
        Index.build(fn, given, size=size)
    if kind is TypeError or size is not None:
        with raises(kind, "queries", *words):
            Index.build(fn, images[:2], size=size or (SIZE, SIZE)).search(given)


@pytest.mark.parametrize("net", NETS)
def test_embeddings_must_fit_net_and_size(make_ours, images, net):
    fn = make_ours(net)
    embeddings = fn.embed(images[:2])
    assert len(Index.from_embeddings(fn, embeddings, [SIZE, SIZE])) == 2
    for size in ((SIZE, SIZE + 16), (SIZE + 16, SIZE)):
        with raises(ValueError, f"{net!r}", f"size {size[0]} x {size[1]}", f"got {list(embeddings.shape)}"):
            Index.from_embeddings(fn, embeddings, size)


@pytest.mark.parametrize(
    "embeddings, kind, words",
    (
        (torch.zeros(2, 3, SIZE, SIZE), ValueError, ("embeddings must be [N, ", f"[2, 3, {SIZE}, {SIZE}]")),
        (torch.zeros(2, 5, dtype=torch.int64), TypeError, ("embeddings must be", "floating", "int64")),
        (np.zeros((2, 5)), TypeError, ("embeddings must be", "tensor", "ndarray")),
    ),
    ids=("images", "integers", "array"),
)
def test_what_is_no_embeddings(fn, embeddings, kind, words):
    with raises(kind, *words):
        Index.from_embeddings(fn, embeddings, (SIZE, SIZE))


@pytest.mark.parametrize("dtype", (torch.float16, torch.float32))
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
def test_what_could_never_be_found_is_refused(fn, images, value, dtype):
    spoiled = images.clone()
    spoiled[7, 1, 2, 3] = value
    for size in (None, (40, 40)):
        with raises(ValueError, "images must be finite", "images[7]"):
            Index.build(fn, spoiled, size=size, batch=5, dtype=dtype)
    embeddings = fn.embed(images)
    embeddings[4, 5] = value
    with raises(ValueError, "embeddings must be finite", "embeddings[4]"):
        Index.from_embeddings(fn, embeddings, (SIZE, SIZE), dtype=dtype)


@pytest.mark.parametrize("column, kind", (("vectors", {}), ("sketches", {"sketch": 64}), ("vectors", {"sketch": 64})))
@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_what_is_not_finite_is_found_by_search(fn, images, tmp_path, column, kind, value, monkeypatch):
    """`load` does not refuse it: it would have to read all of a large file."""
    path = tmp_path / "damaged.index"
    index = Index.build(fn, images[:2], vectors=True, **kind)
    index.save(path)
    spoiled = images[:2].clone()
    spoiled[1, 0, 3, 3] = value
    with raises(ValueError, "queries must be finite", "queries[1]"):
        Index.load(path, fn).search(spoiled)
    numbers = getattr(index, column).clone()
    numbers[1, 5] = value
    rewrite(path, {column: numbers})
    for block_bytes in (lpips_fast.search.nearest._BLOCK_BYTES, 1):
        monkeypatch.setattr(lpips_fast.search.nearest, "_BLOCK_BYTES", block_bytes)
        with raises(ValueError, "images must be finite", "images[1]"):
            Index.load(path, fn).search(images[:1])


@pytest.mark.parametrize("kind", ({}, {"sketch": 64}), ids=str)
def test_taps_that_were_left_out(make_ours, images, tmp_path, kind):
    fn = make_ours()
    index = Index.build(fn, images, **kind)
    index.save(tmp_path / "images.index")
    fn.L = 3
    for use in (lambda: index.search(images[:1]), lambda: index.add(images[:1])):
        with raises(ValueError, "L, the number of taps in use, must be 5", "got 3"):
            use()
    with raises(ValueError, "was made with values", "build it again"):
        Index.load(tmp_path / "images.index", fn)
    assert Index.build(fn, images, **kind).search(images[4:5], 1)[1].item() == 4


def test_queries_beyond_float16_are_refused(make_ours, images):
    """They are refused as such images are; float32 accepts both."""
    fn = make_ours(eval_mode=False)
    with torch.no_grad():
        fn.lin0.model[-1].weight.fill_(1e9)
    with raises(ValueError, "images must be finite", "images[0]"):
        Index.build(fn, images)
    index = Index.build(fn, images, dtype=torch.float32)
    assert index.search(images[4:5], 1)[1].item() == 4
    index.vectors = torch.zeros(index.vectors.shape, dtype=torch.float16)
    with raises(ValueError, "queries must be finite", "queries[0]"):
        index.search(images[4:5])


@pytest.mark.parametrize("built", (True, False))
def test_queries_are_in_the_range_of_the_images(fn, images, tmp_path, built):
    path = tmp_path / "images.index"
    index = Index.build(fn, (images + 1) / 2, normalize=built)
    index.save(path)
    for either in (index, Index.load(path, fn)):
        assert either.search((images[4:5] + 1) / 2, 1, normalize=built)[1].tolist() == [[4]]
        with raises(ValueError, f"images given with normalize={built}", f"normalize={not built}"):
            either.search(images[4:5], normalize=not built)
    with raises(TypeError, "normalize must be True or False", "'no'"):
        index.search(images, normalize="no")
    with raises(TypeError, "normalize must be True or False", "'no'"):
        Index.build(fn, images, normalize="no")


def test_an_index_that_does_not_know_the_range(fn, images, tmp_path):
    """Indexes of `from_embeddings` take either range."""
    path = tmp_path / "images.index"
    Index.from_embeddings(fn, fn.embed(images), (SIZE, SIZE)).save(path)
    index = Index.load(path, fn)
    assert index.header.normalize is index.header.reading is None
    assert index.header.transparent is index.header.opaque is None
    assert index.search(images[4:5], 1)[1].tolist() == [[4]]
    assert index.search((images[4:5] + 1) / 2, 1, normalize=True)[1].tolist() == [[4]]

"""Images that are added, removed and replaced: the index is then as one built of the images there are."""

from __future__ import annotations

import pytest
import torch

from lpips_fast.search import Index
from tests.support.images import image
from tests.support.indexes import SIZE, N
from tests.support.raises import raises
from tests.support.tolerances import INDEX_EMBEDDING_TOLERANCE, INDEX_TOLERANCE

KINDS = ({}, {"sketch": 128}, {"sketch": 128, "vectors": True})
NAMES = [f"{i}.png" for i in range(N)]


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return request.param


def assert_same(index, expected, queries):
    assert len(index) == len(expected)
    assert (index.names is None) == (expected.names is None)
    assert index.names is None or [*index.names] == [*expected.names]
    for column in ("sketches", "vectors"):
        mine, other = getattr(index, column), getattr(expected, column)
        assert (mine is None) == (other is None)
        if mine is not None:  # convolutions may round differently in batches of other sizes
            torch.testing.assert_close(mine, other, **INDEX_EMBEDDING_TOLERANCE)
    (found, rows), (wanted, order) = index.search(queries, 4), expected.search(queries, 4)
    assert torch.equal(rows, order)
    torch.testing.assert_close(found, wanted, **INDEX_TOLERANCE[torch.float16])


def test_add(fn, images, queries, kind):
    index = Index.build(fn, images[:4], **kind)
    index.add(images[4:9], batch=2)
    index.add(images[9:], batch=3)
    assert_same(index, Index.build(fn, images, **kind), queries)


def test_remove(fn, images, queries, kind):
    index = Index.build(fn, images, names=NAMES, **kind)
    index.remove(["3.png", "0.png"])
    kept = [1, 2, *range(4, N)]
    assert_same(index, Index.build(fn, images[kept], names=[NAMES[i] for i in kept], **kind), queries)
    index.remove(torch.tensor([0, len(index) - 1]))
    kept = kept[1:-1]
    assert_same(index, Index.build(fn, images[kept], names=[NAMES[i] for i in kept], **kind), queries)


def test_update(fn, images, queries, kind):
    index = Index.build(fn, images, names=NAMES, **kind)
    new = image(2, SIZE, SIZE, seed=9)
    index.update(new, names=["5.png", "2.png"])
    kept = [i for i in range(N) if i not in (2, 5)]
    names = [*(NAMES[i] for i in kept), "5.png", "2.png"]
    assert_same(index, Index.build(fn, torch.cat((images[kept], new)), names=names, **kind), queries)
    assert index.search(new, 1)[1].tolist() == [[N - 2], [N - 1]]


def test_a_loaded_index_changes_in_memory_alone(fn, images, queries, tmp_path, kind):
    path = tmp_path / "images.index"
    Index.build(fn, images, names=NAMES, **kind).save(path)
    before = path.read_bytes()
    index = Index.load(path, fn, images=images)
    index.remove([7])
    index.add(images[7:8], names=["new.png"])
    assert path.read_bytes() == before
    index.save(path)
    order = [*range(7), *range(8, N), 7]
    names = [*NAMES[:7], *NAMES[8:], "new.png"]
    assert_same(
        Index.load(path, fn, images=images[order]), Index.build(fn, images[order], names=names, **kind), queries
    )


def test_names_that_come_several_times(fn, images):
    index = Index.build(fn, images[:4], names=["a", "b", "a", "c"])
    index.update(images[4:5], names=["a"])
    assert index.names == ["b", "c", "a"]
    assert index.search(images[4:5], 1)[1].item() == 2


def test_faiss_sees_the_changes(fn, images):
    pytest.importorskip("faiss")
    index = Index.build(fn, images[:6], sketch=128)
    assert index.search(images[9:10], 1, faiss="Flat")[1].item() < 6
    index.add(images[6:])
    assert index.search(images[9:10], 1, faiss="Flat")[1].item() == 9


def test_an_index_without_its_images(fn, images, tmp_path):
    """Its images are not known after a change either."""
    path = tmp_path / "images.index"
    Index.build(fn, images[:6], sketch=128).save(path)
    index = Index.load(path, fn)
    index.add(images[6:])
    index.remove([0])
    assert index.images is None
    assert index.search(images[9:10], 1, estimate=True)[1].item() == 8


@pytest.mark.parametrize(
    "change, error, words",
    (
        (lambda i, x: i.add(x[:2]), ValueError, ("names must be given",)),
        (lambda i, x: i.add(x[:2], names=["p"]), ValueError, ("one an image, 2", "got 1")),
        (lambda i, x: i.add(x[:2], names=["p", "q"], normalize=True), ValueError, ("normalize=False", "True")),
        (lambda i, x: i.add(x[:1, :, 1:], names=["p"]), ValueError, ("32 x 32", "31 x 32")),
        (lambda i, x: i.add(x[:1] * torch.inf, names=["p"]), ValueError, ("images must be finite", "images[0]")),
        (lambda i, x: i.add(x[:1], names=["p"], batch=0), ValueError, ("batch must be", "0")),
        (lambda i, x: i.add(["a.png"], names=["p"]), TypeError, ("images must be a tensor", "list")),
        (lambda i, x: i.remove(["1.png", "none.png"]), ValueError, ("which must be names", "'none.png'")),
        (lambda i, x: i.remove([0, N]), ValueError, ("which must be indices below 12", "12")),
        (lambda i, x: i.remove([-1]), ValueError, ("which must be indices below 12", "-1")),
        (lambda i, x: i.remove("1.png"), TypeError, ("which must be a list", "'1.png'")),
        (lambda i, x: i.remove(3), TypeError, ("which must be a list", "3")),
        (lambda i, x: i.update(x[:1], names=["none.png"]), ValueError, ("'none.png'",)),
        (lambda i, x: i.update(x[:2], names=["1.png", "1.png"]), ValueError, ("names must be given, each once",)),
        (lambda i, x: i.update(x[:1], names=None), ValueError, ("names must be given",)),
        (lambda i, x: i.update(x[:1] * torch.nan, names=["1.png"]), ValueError, ("images must be finite",)),
    ),
)
def test_what_does_not_fit_changes_nothing(fn, images, queries, change, error, words):
    index = Index.build(fn, images, names=NAMES, sketch=128)
    with raises(error, *words):
        change(index, images)
    assert_same(index, Index.build(fn, images, names=NAMES, sketch=128), queries)


def test_an_index_without_names(fn, images):
    index = Index.build(fn, images)
    with raises(ValueError, "names must be None"):
        index.add(images[:1], names=["a"])
    with raises(ValueError, "which must be indices", "no names"):
        index.remove(["a"])
    index.remove([])
    assert len(index) == N

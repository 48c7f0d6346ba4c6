"""The index against LPIPS itself: what it finds, what it refuses, and its file."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

import lpips_fast.search
from lpips_fast.search import Index
from tests.support.images import image
from tests.support.parameters import NETS
from tests.support.raises import raises
from tests.support.tolerances import (
    EQUAL_IMAGES_TOLERANCE,
    INDEX_EMBEDDING_TOLERANCE,
    INDEX_FLOAT16_MEDIAN_TOLERANCE,
    INDEX_FLOAT16_TOLERANCE,
    INDEX_TOLERANCE,
    OTHERS_TOLERANCE,
)

N, Q, SIZE = 12, 3, 32


@pytest.fixture(scope="module")
def fn(make_ours):
    return make_ours()


@pytest.fixture(scope="module")
def images():
    x = image(N, SIZE, SIZE, seed=0)
    x[7] = x[2] + 1e-2 * torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    return x


@pytest.fixture(scope="module")
def queries(images):
    noise = torch.randn(Q, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    return images[[2, 5, 9]] + 0.02 * noise


@pytest.fixture(scope="module")
def distances(fn, images, queries):
    with torch.no_grad():
        return torch.stack([fn(q[None], images).flatten() for q in queries])


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


def test_only_queries_with_near_duplicates_have_many_candidates(fn, images):
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(4)
    frames = images[3] + 1e-4 * torch.randn(100, 3, SIZE, SIZE, generator=generator)
    index = Index.build(fn, torch.cat((images, frames)), dtype=torch.float32)
    queries = fn.embed(images[[3, 9]]) * SIZE
    for candidates in (index._nearest(queries, 3), index._by_faiss(queries, 3, "Flat")):
        assert len(candidates[0]) == 101
        assert len(candidates[1]) <= 6


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


def test_a_file_that_does_not_tell_the_range(fn, images, tmp_path):
    """Indexes of `from_embeddings`, and files written before `normalize` was recorded, take either range."""
    path = tmp_path / "images.index"
    Index.from_embeddings(fn, fn.embed(images), (SIZE, SIZE)).save(path)
    rewrite(path, header=without(read_header(path), "normalize", "raw", "reading", "transparent", "opaque"))
    index = Index.load(path, fn)
    assert index.header.normalize is index.header.reading is None
    assert index.header.transparent is index.header.opaque is None
    assert index.search(images[4:5], 1)[1].tolist() == [[4]]
    assert index.search((images[4:5] + 1) / 2, 1, normalize=True)[1].tolist() == [[4]]


def read_header(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["header"])


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def rewrite(path, vectors=None, **metadata):
    """Changes a saved index's file; None removes a text, and a value that is no text becomes JSON."""
    with safe_open(path, "pt") as file:
        texts = {**file.metadata(), **metadata}
        vectors = file.get_tensor("vectors") if vectors is None else vectors
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in texts.items() if v is not None}
    path.write_bytes(save({"vectors": vectors}, texts))


@pytest.fixture(scope="module")
def saved(fn, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "sound.index"
    Index.build(fn, images[:2], names=["a", "b"]).save(path)
    return path


BAD_SIZES = (
    "ab",
    None,
    [64],
    [0, 0],
    10**9,
    [10**9, 10**9],
    [30_000, 30_000],
    [10**30, 32],
    [SIZE, SIZE + 16],
    [1.5, 64],
)


@pytest.mark.parametrize(
    "changes, words",
    (
        ({"header": None}, ("header must have", "None")),
        ({"header": "{"}, ("header must be JSON",)),
        ({"header": "[" * 10**5}, ("header must be JSON", "recursion")),
        ({"header": [1, 2]}, ("header must have", "[1, 2]")),
        ({"header": {"net": "alexnet"}}, ("header must have", "trunk_sha256", "got net")),
        ({"format_version": None}, ("format None", "build it again")),
        ({"format": None}, ("not an index of lpips_fast",)),
        ({"names": "no JSON"}, ("names must be JSON",)),
        ({"names": [1, 2]}, ("names[0]", "int 1")),
        ({"names": ["a", None]}, ("names[1]", "NoneType")),
        ({"names": '"ab"'}, ("names must be a list", "'ab'")),
        ({"names": "null"}, ("names must be a list", "None")),
        ({"names": {"a": 1, "b": 2}}, ("names must be a list", "{'a'")),
        ({"names": ["a"]}, ("names must be one an image, 2", "got 1")),
    ),
    ids=repr,
)
def test_damaged_metadata(fn, saved, tmp_path, changes, words):
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    rewrite(path, **changes)
    with raises(ValueError, str(path), "cannot be read as an index", *words):
        Index.load(path, fn)


@pytest.mark.parametrize(
    "fields, words",
    (
        ({"extra": 1}, ("header must have", ", extra")),
        ({"resized": "yes"}, ("resized", "yes")),
        ({"normalize": 2}, ("normalize", "2")),
        ({"raw": "no"}, ("raw", "'no'")),
        ({"transparent": 1}, ("its transparent must be true or false", "1")),
        ({"opaque": "no"}, ("its opaque must be true or false", "'no'")),
        ({"reading": "white"}, ("reading must be options by name", "'white'")),
        ({"reading": ["white"]}, ("reading must be options by name", "['white']")),
        ({"resized": None}, ("resized", "None")),
        ({"net": None}, ("made with net None",)),
        *(({"size": size}, ("size" if size != [SIZE, SIZE + 16] else "got F16",)) for size in BAD_SIZES),
    ),
    ids=repr,
)
def test_damaged_headers(fn, saved, tmp_path, fields, words):
    """Nothing of the size that a file claims is allocated."""
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    rewrite(path, header={**read_header(path), **fields})
    with raises(ValueError, str(path), "cannot be read as an index", *words):
        Index.load(path, fn)


DTYPES = (torch.bool, torch.int32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64)


@pytest.mark.parametrize("net", NETS)
def test_damaged_vectors(make_ours, images, tmp_path, net):
    fn, path = make_ours(net), tmp_path / "damaged.index"
    index = Index.build(fn, images[:2])
    index.save(path)
    whole = index.vectors
    wrong = [torch.tensor(1.0), whole[0], whole[None], whole[:, :0], whole[:, 1:].contiguous()]
    for vectors in (*wrong, *(torch.zeros(whole.shape, dtype=dtype) for dtype in DTYPES)):
        rewrite(path, vectors)
        with raises(ValueError, str(path), f"vectors must be F16 or F32 [N, {whole.shape[1]}]", f"{[*vectors.shape]}"):
            Index.load(path, fn)
    path.write_bytes(save({"other": whole}, {"format": "lpips_fast.Index"}))
    with raises(ValueError, str(path), "cannot be read as an index"):
        Index.load(path, fn)


@pytest.mark.parametrize("net, size", (("alex", (31, 57)), ("vgg", (16, 45)), ("squeeze", (17, 90))))
def test_the_length_of_a_vector(make_ours, net, size):
    fn = make_ours(net)
    assert lpips_fast.search.header.vector_length(fn, size) == fn.embed(image(1, *size, seed=0)).shape[1]


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_vectors_that_are_not_finite_are_found_by_search(fn, images, saved, tmp_path, value, monkeypatch):
    """`load` does not refuse them: it would have to read all of a large file."""
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    vectors = Index.load(path, fn).vectors.clone()
    vectors[1, 5] = value
    rewrite(path, vectors)
    for block_bytes in (lpips_fast.search.nearest._BLOCK_BYTES, 1):
        monkeypatch.setattr(lpips_fast.search.nearest, "_BLOCK_BYTES", block_bytes)
        with raises(ValueError, "images must be finite", "images[1]"):
            Index.load(path, fn).search(images[:1])
    spoiled = images[:2].clone()
    spoiled[1, 0, 3, 3] = value
    with raises(ValueError, "queries must be finite", "queries[1]"):
        Index.load(saved, fn).search(spoiled)


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


def test_faiss_and_vectors_that_are_not_finite(fn, images):
    pytest.importorskip("faiss")
    index = Index.build(fn, images)
    index.vectors[3, 5] = torch.nan
    with raises(ValueError, "images must be finite", "images[3]"):
        index.search(images[:1], faiss="Flat")


def test_where_an_index_cannot_be_saved(fn, images, tmp_path):
    index = Index.build(fn, images[:2])
    for path in (tmp_path / "nowhere" / "images.index", tmp_path, Path("/dev/null")):
        with raises(OSError, f"index {path} cannot be written"):
            index.save(path)
    assert list(tmp_path.iterdir()) == []


def test_a_saved_index_finds_the_same(fn, images, queries, tmp_path):
    path = tmp_path / "images.index"
    names = [f"ü{i}.png" for i in range(N)]
    index = Index.build(fn, images, names=names)
    index.save(path)
    loaded = Index.load(path, fn)
    assert loaded.names == names
    assert len(loaded) == N
    assert loaded.header == index.header
    for found, expected in zip(loaded.search(queries, 3), index.search(queries, 3)):
        assert torch.equal(found, expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_interrupted_save_leaves_what_was_there(fn, images, tmp_path, monkeypatch):
    path = tmp_path / "images.index"
    Index.build(fn, images[:2]).save(path)
    before = path.read_bytes()

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise SafetensorError("disk full")

    monkeypatch.setattr(lpips_fast.search, "save_file", fail)
    with raises(OSError, f"{path} cannot be written", "disk full"):
        Index.build(fn, images).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_refuses_another_distance(fn, make_ours, images, tmp_path):
    path = tmp_path / "images.index"
    Index.build(fn, images).save(path)
    other_linear, other_trunk = make_ours(), make_ours()
    with torch.no_grad():
        other_linear.lin3.model[-1].weight[0, 0] += 0.5
        next(other_trunk.net.parameters())[0, 0, 0, 0] += 0.5
    for other, message in (
        (make_ours("squeeze"), "net alexnet, this LPIPS has squeezenet1_1"),
        (make_ours(version="0.0"), "version 0.1, this LPIPS has 0.0"),
        (make_ours(lpips=False), "lpips True, this LPIPS has False"),
        (other_linear, "linear_sha256"),
        (other_trunk, "trunk_sha256"),
    ):
        with pytest.raises(ValueError, match=f"was made with {message}"):
            Index.load(path, other)
    with pytest.raises(ValueError, match="images of 32 x 32 pixels, the queries are of 32 x 40"):
        Index.load(path, fn).search(image(1, 32, 40, seed=0))


def test_refuses_what_is_no_index(fn, images, tmp_path):
    path = tmp_path / "images.index"
    with pytest.raises(FileNotFoundError, match="no index"):
        Index.load(path, fn)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="cannot be read as an index"):
        Index.load(path, fn)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not an index of lpips_fast"):
        Index.load(path, fn)
    Index.build(fn, images).save(path)
    with safe_open(path, "pt") as file:
        metadata, vectors = file.metadata(), file.get_tensor("vectors")
    save_file({"vectors": vectors}, path, {**metadata, "format_version": "2"})
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        Index.load(path, fn)
    Index.build(fn, images).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as an index"):
        Index.load(path, fn)


def test_errors(fn, images):
    with pytest.raises(ValueError, match="images must be at least one"):
        Index.build(fn, images[:0])
    with pytest.raises(ValueError, match=f"one an image, {N}, got 1"):
        Index.build(fn, images, names=["a"])
    with pytest.raises(ValueError, match=r"float16 or torch.float32, got torch.bfloat16"):
        Index.build(fn, images, dtype=torch.bfloat16)


SIZES = (64, (64,), (40, 40, 40), (-40, 40), (40, 0), (40.0, 40.0), (True, 40), (30, 40), "40", "64x64", None)


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
    assert Index.load(tmp_path / "images.index", fn).names == index.names


@pytest.mark.parametrize("size", (None, (40, 40)))
@pytest.mark.parametrize(
    "given, kind, words",
    (
        (None, TypeError, ("must be a tensor", "NoneType")),
        (["a.png"], TypeError, ("must be a tensor", "list")),
        (torch.zeros(3, 40, 40), ValueError, ("[N, 3, H, W]", "[3, 40, 40]")),
        (torch.zeros(2, 4, 32, 32), ValueError, ("[N, 3, H, W]", "[2, 4, ")),
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


@pytest.mark.parametrize("faiss", (None, "Flat"))
def test_no_queries_and_no_images(fn, images, faiss):
    if faiss:
        pytest.importorskip("faiss")
    for n, n_queries in ((0, 2), (2, 0), (0, 0)):
        index = Index.from_embeddings(fn, fn.embed(images[:n]), (SIZE, SIZE))
        for found in index.search(images[:n_queries], 3, faiss=faiss):
            assert found.shape == (n_queries, n)


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

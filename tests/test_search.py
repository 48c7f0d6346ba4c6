"""The index against LPIPS itself: what it finds, what it refuses, and its file."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import lpips_fast.search
from lpips_fast.search import Index

from .images import image

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


@pytest.mark.parametrize("dtype, atol", ((torch.float32, 1e-7), (torch.float16, 1e-5)))
@pytest.mark.parametrize("k", (1, 4, N, N + 5))
def test_finds_the_nearest(fn, images, queries, distances, dtype, atol, k, monkeypatch):
    expected, order = distances.sort(dim=1)
    for block_bytes in (lpips_fast.search._BLOCK_BYTES, 5 * 4 * fn.embed(images[:1]).shape[1]):
        monkeypatch.setattr(lpips_fast.search, "_BLOCK_BYTES", block_bytes)
        found, indices = Index.build(fn, images, dtype=dtype, batch=5).search(queries, k)
        assert torch.equal(indices, order[:, :k])
        torch.testing.assert_close(found, expected[:, :k], atol=atol, rtol=1e-3)


def test_float16_keeps_small_values(fn, images):
    """Unscaled, most values of a large image's embedding would be subnormal in float16."""
    x = image(2, 128, 128, seed=5)
    found, _ = Index.build(fn, x).search(x[:1], 2)
    with torch.no_grad():
        expected = fn(x[:1], x[1:]).item()
    assert found[0, 0] < 1e-6
    assert found[0, 1].item() == pytest.approx(expected, rel=1e-4)


def test_equal_images_come_in_their_order(fn, images):
    x = images[[3, 4, 3, 3]]
    found, indices = Index.build(fn, x, dtype=torch.float32).search(images[3:4], 3)
    assert indices.tolist() == [[0, 2, 3]]
    assert found.max() < 1e-9


def test_from_embeddings_is_as_from_images(fn, images, queries):
    built = Index.build(fn, images)
    made = Index.from_embeddings(fn, fn.embed(images), (SIZE, SIZE))
    torch.testing.assert_close(made.vectors, built.vectors, atol=1e-3, rtol=1e-3)
    assert made.header == built.header


def test_resizing_and_normalize(fn, queries, images):
    large = torch.nn.functional.interpolate(images, scale_factor=3, mode="bilinear")
    index = Index.build(fn, (large + 1) / 2, size=(40, 36), normalize=True)
    _, indices = index.search((large[4:6] + 1) / 2, 1, normalize=True)
    assert indices.flatten().tolist() == [4, 5]
    _, indices = index.search(images[4:6], 1)
    assert indices.flatten().tolist() == [4, 5], "queries of another size are resized, too"


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
        raise OSError("disk full")

    monkeypatch.setattr(lpips_fast.search, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        Index.build(fn, images).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_refuses_another_distance(fn, make_ours, images, tmp_path):
    path = tmp_path / "images.index"
    Index.build(fn, images).save(path)
    other_linear, other_trunk = make_ours(), make_ours()
    with torch.no_grad():
        other_linear.lin3.weight[0, 0] += 0.5
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
    with pytest.raises(ValueError, match="batch must be at least 1 image, got 0"):
        Index.build(fn, images, batch=0)
    with pytest.raises(ValueError, match=r"float16 or torch.float32, got torch.bfloat16"):
        Index.build(fn, images, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        Index.build(fn, images).search(images, 0)


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
    torch.testing.assert_close(found[:, 0], expected[:, 0], atol=1e-5, rtol=1e-3)
    if not factory.startswith("IVF"):  # which looks into one of its lists only
        assert torch.equal(indices, index.search(queries, 2)[1])
    missing = indices == -1
    assert torch.equal(missing, found.isinf())

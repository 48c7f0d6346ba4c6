"""The file of an index: what comes back, and what is refused."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from lpips_fast.search import Index, files
from tests.support.indexes import N, rewrite
from tests.support.parameters import NETS
from tests.support.raises import raises


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
    ),
    ids=repr,
)
def test_damaged_metadata(fn, saved, tmp_path, changes, words):
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    rewrite(path, **changes)
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
        rewrite(path, {"vectors": vectors})
        with raises(ValueError, str(path), f"vectors must be F16 or F32 [N, {whole.shape[1]}]", f"{[*vectors.shape]}"):
            Index.load(path, fn)
    path.write_bytes(save({"other": whole}, {"format": "lpips_fast.Index"}))
    with raises(ValueError, str(path), "cannot be read as an index"):
        Index.load(path, fn)


def test_where_an_index_cannot_be_saved(fn, images, tmp_path):
    index = Index.build(fn, images[:2])
    for path in (tmp_path / "nowhere" / "images.index", tmp_path, Path("/dev/null")):
        with raises(OSError, f"index {path} cannot be written"):
            index.save(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ({}, {"sketch": 128}, {"sketch": 100, "vectors": True}), ids=str)
def test_a_saved_index_finds_the_same(fn, images, queries, tmp_path, kind):
    path = tmp_path / "images.index"
    names = [f"ü{i}.png" for i in range(N - 2)] + ["", "bytes \udcff"]
    index = Index.build(fn, images, names=names, **kind)
    index.save(path)
    loaded = Index.load(path, fn, images=images)
    assert [*loaded.names] == names
    assert loaded.names[-3] == names[-3]
    assert loaded.names[1:4] == names[1:4]
    assert len(loaded) == N
    assert loaded.header == index.header
    for found, expected in zip(loaded.search(queries, 3), index.search(queries, 3)):
        assert torch.equal(found, expected)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "kind", ({}, {"sketch": 100}, {"sketch": 64, "vectors": True, "dtype": torch.float32}), ids=str
)
def test_the_file_is_safetensors(fn, images, tmp_path, kind, monkeypatch):
    """As its own package would write it, however few rows are in memory at once."""
    path = tmp_path / "images.index"
    index = Index.build(fn, images, names=[f"{i}.png" for i in range(N)], **kind)
    index.stamps = torch.arange(2 * N).view(N, 2)
    for block_bytes in (files._BLOCK_BYTES, 1, 5 * 2 * 100):
        monkeypatch.setattr(files, "_BLOCK_BYTES", block_bytes)
        index.save(path)
        with safe_open(path, "pt") as file:
            columns = {name: file.get_tensor(name) for name in file.keys()}
        assert torch.equal(columns["stamps"], index.stamps)
        rows = zip(*(columns[name] for name in ("vectors", "sketches") if name in columns), strict=True)
        sums = [zlib.crc32(b"".join(part.numpy().tobytes() for part in row)) for row in rows]
        assert columns["checksums"].tolist() == [[*value.to_bytes(4, "little")] for value in sums]
        assert bytes(columns["names"].tolist()) == "".join(index.names).encode()
        assert columns["name_ends"].tolist()[-1] == len(columns["names"])
        for name in ("sketches", "vectors"):
            stored = getattr(index, name)
            assert (stored is None) == (name not in columns)
            assert stored is None or torch.equal(columns[name], stored)


@pytest.mark.parametrize("kind", ({}, {"sketch": 100}, {"sketch": 64, "vectors": True}), ids=str)
def test_sound_rows(fn, images, tmp_path, kind, monkeypatch):
    """One bit of a row is enough."""
    path = tmp_path / "images.index"
    index = Index.build(fn, images, **kind)
    index.save(path)
    for block_bytes in (files._BLOCK_BYTES, 1):
        monkeypatch.setattr(files, "_BLOCK_BYTES", block_bytes)
        assert files.sound_rows(path).tolist() == [True] * N
    damaged = set()
    for row, name in enumerate(("vectors", "sketches", "checksums"), start=3):
        if name == "checksums" or getattr(index, name) is not None:
            with safe_open(path, "pt") as file:
                column = file.get_tensor(name)
            column[row].view(torch.uint8)[-1] ^= 1
            rewrite(path, {name: column})
            damaged.add(row)
    assert {row for row, sound in enumerate(files.sound_rows(path)) if not sound} == damaged


def test_rows_of_several_tables(fn, images, tmp_path):
    path = tmp_path / "images.index"
    names = [f"{i}.png" for i in range(N)]
    whole = Index.build(fn, images, names=names, sketch=64)
    tables = [whole.table.selected(torch.tensor(rows)) for rows in ([3, 1, 7], [0, 2], [*range(4, 7), *range(8, N)])]
    places = {name: (t, row) for t, table in enumerate(tables) for row, name in enumerate(table.names)}
    files.write(path, whole.header, tables, torch.tensor([places[name] for name in names]))
    joined = Index.load(path, fn)
    assert [*joined.names] == names
    assert torch.equal(joined.sketches, whole.sketches)
    assert joined.vectors is joined.stamps is None
    whole.save(tmp_path / "whole.index")
    assert path.read_bytes() == (tmp_path / "whole.index").read_bytes()


def test_an_empty_index(fn, images, tmp_path):
    index = Index.build(fn, images[:2], names=["a", "b"], sketch=64)
    index.remove(["b", "a"])
    index.save(tmp_path / "empty.index")
    loaded = Index.load(tmp_path / "empty.index", fn, images=images[:0])
    assert len(loaded) == len(loaded.names) == 0
    assert loaded.search(images[:1])[1].shape == (1, 0)
    loaded.add(images[3:5], names=["c", "d"])
    assert loaded.search(images[4:5], 1)[1].tolist() == [[1]]


@pytest.mark.parametrize(
    "tensors, words",
    (
        ({"vectors": None, "sketches": None}, ("must have vectors, or the sketches", "names")),
        ({"sketches": None}, ("the sketches that its header tells of", "'vectors'")),
        ({"sketches": torch.zeros(2, 64, dtype=torch.float16)}, ("sketches must be F16 [N, 128]", "[2, 64]")),
        ({"sketches": torch.zeros(2, 128)}, ("sketches must be F16 [N, 128]", "got F32")),
        ({"sketches": torch.zeros(3, 128, dtype=torch.float16)}, ("vectors must be", "N = 3", "got F16 [2, ")),
        ({"checksums": None}, ("must have checksums", "'names'")),
        ({"checksums": torch.zeros(2, 3, dtype=torch.uint8)}, ("checksums must be U8 [N, 4]", "[2, 3]")),
        ({"stamps": torch.zeros(2, 3, dtype=torch.int64)}, ("stamps must be I64 [N, 2]", "[2, 3]")),
        ({"name_ends": torch.zeros(1, dtype=torch.int64)}, ("name_ends must be I64 [N]", "[1]")),
        ({"name_ends": torch.tensor([1, 9])}, ("names must be the bytes that name_ends tells of", "[4]")),
        ({"name_ends": torch.tensor([1.0, 4.0])}, ("name_ends must be I64", "got F32")),
        ({"names": None}, ("names",)),
        ({"names": torch.zeros(4, dtype=torch.int8)}, ("names must be the bytes", "torch.int8")),
    ),
    ids=str,
)
def test_damaged_columns(fn, saved, tmp_path, tensors, words):
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    assert [*Index.load(path, fn).names] == ["a", "bü"]
    rewrite(path, tensors)
    with raises(ValueError, str(path), "cannot be read as an index", *words):
        Index.load(path, fn)


def test_names_that_lie_outside(fn, saved, tmp_path):
    """Found when the name is asked for: reading all of them takes as long as there are many."""
    path = tmp_path / "damaged.index"
    shutil.copy(saved, path)
    rewrite(path, {"name_ends": torch.tensor([9, 4])})
    names = Index.load(path, fn).names
    with raises(ValueError, "damaged", "name 0", "0 to 9 of 4"):
        names[0]
    with raises(ValueError, "damaged", "name 1", "9 to 4 of 4"):
        names[-1]
    with raises(ValueError, "damaged", "name 0", "0 to 9 of 4"):
        list(names)
    with pytest.raises(IndexError):
        names[2]


def test_names_that_are_no_text(fn, images, tmp_path):
    index = Index.build(fn, images[:2], names=["a", "\ud800"])
    with raises(ValueError, "names[1] must be text", "ud800"):
        index.save(tmp_path / "images.index")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_what_was_there(fn, images, tmp_path, monkeypatch):
    path = tmp_path / "images.index"
    Index.build(fn, images[:2]).save(path)
    before = path.read_bytes()

    def fail(tables, order):
        yield tables[0][:1]
        raise OSError("disk full")

    monkeypatch.setattr(files, "_in_order", fail)
    with raises(OSError, f"{path} cannot be written", "disk full"):
        Index.build(fn, images).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


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
    rewrite(path, format_version="1")
    with pytest.raises(ValueError, match="format 1, this version reads 3"):
        Index.load(path, fn)
    Index.build(fn, images).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot be read as an index"):
        Index.load(path, fn)

"""Files and folders appear under their name whole or not at all."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from lpips_fast import _files
from tests.support.raises import raises


@pytest.fixture(params=(0o022, 0o077))
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_is_replaced_at_the_end(tmp_path, umask):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with _files.replacing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    path, done = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda file: done.append((os.fstat(file).st_size, path.exists())))
    with _files.replacing(path) as temporary:
        temporary.write_text("new")
    assert done == [(3, False)]


@pytest.mark.parametrize("there", (False, True))
@pytest.mark.parametrize("error", (ValueError, KeyboardInterrupt))
def test_an_exception_leaves_the_file_as_it_was(tmp_path, error, there):
    path = tmp_path / "a.txt"
    if there:
        path.write_text("old")

    def write_half():
        with _files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == ([("a.txt", "old")] if there else [])


def test_the_file_that_a_link_leads_to_is_replaced(tmp_path):
    target, link = tmp_path / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with _files.replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("kind", ("folder", "pipe", "link to itself"))
def test_no_other_kind_of_file_is_replaced(tmp_path, kind):
    path = tmp_path / "a"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to itself": lambda: path.symlink_to(path)}[kind]()
    with raises(FileExistsError, str(path), "not replaced"), _files.replacing(path):
        pytest.fail("it was accepted")
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_appears_at_the_end(tmp_path, umask):
    path = tmp_path / "parent" / "folder"
    with _files.making_folder(path) as temporary:
        (temporary / "a.txt").write_text("new")
        assert not path.exists()
    assert (path / "a.txt").read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask
    assert os.listdir(path.parent) == ["folder"]


def test_an_exception_leaves_no_folder(tmp_path):

    def write_half():
        with _files.making_folder(tmp_path / "folder") as temporary:
            (temporary / "a.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_there_is_not_made(tmp_path):
    with raises(FileExistsError, str(tmp_path), "there already"), _files.making_folder(tmp_path):
        pytest.fail("it was accepted")


@pytest.mark.parametrize("size", (0, 1, 2**20, 2**20 + 1))
def test_sha256(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(content)
    assert _files.sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()

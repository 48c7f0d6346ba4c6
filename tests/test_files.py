"""Files and folders appear under their name complete or not at all."""

from __future__ import annotations

import hashlib
import os

import pytest

from lpips_fast._files import making_folder, replacing, sha256_of


def interrupted(maker, path, error=KeyboardInterrupt):
    """Begins a file or a folder, and raises the error amid it."""
    with maker(path) as temporary:
        (temporary / "a.txt" if temporary.is_dir() else temporary).write_text("half")
        raise error


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path, there, error):
    path = tmp_path / "a.txt"
    if there:
        path.write_text("old")
    with pytest.raises(error):
        interrupted(replacing, path, error)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * there


def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "folder", "circle"):
        with pytest.raises(FileExistsError, match=name), replacing(tmp_path / name) as temporary:
            temporary.write_text("new")
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "folder", "pipe"]


@pytest.mark.parametrize("there", [True, False])
def test_links_stay(tmp_path, there):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target.txt"
    if there:
        target.write_text("old")
    (tmp_path / "link.txt").symlink_to(target)
    with replacing(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_text() == "new"
    assert list((tmp_path / "far").iterdir()) == [target]


def test_permissions_follow_the_umask(tmp_path):
    """A temporary file is for its owner alone; the final one is as any new file."""
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "a.txt"), making_folder(tmp_path / "made"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750


def test_a_folder_is_made_whole(tmp_path):
    path = tmp_path / "deep" / "made"
    with making_folder(path) as temporary:
        (temporary / "a.txt").write_text("a")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["a.txt"]
    with pytest.raises(FileExistsError, match=r"made is there already"), making_folder(path):
        pytest.fail("it was there")
    with pytest.raises(KeyboardInterrupt):
        interrupted(making_folder, tmp_path / "deep" / "other")
    assert list((tmp_path / "deep").iterdir()) == [path]


def test_sha256_of_a_file_larger_than_a_read(tmp_path):
    content = bytes(range(256)) * 2**13 + b"end"
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()

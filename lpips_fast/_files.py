"""Files and folders that appear under their name only when they are complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which replaces `path` at the end of the block and is removed on an exception.

    If `path` is a link, the file that it leads to is replaced.

    Raises:
        FileExistsError: `path` is there and is no regular file.
    """
    target = replaceable(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # else, after a power cut, the name may be there without the content
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replaceable(path: Path) -> Path:
    """The file that `path` leads to through links: a regular file, or one that does not exist yet.

    Raises:
        FileExistsError: `path` leads to a folder, a device, a pipe or a socket.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        kind = "a folder" if target.is_dir() else "no regular file (a device, a pipe, a link to itself)"
        raise FileExistsError(f"{path} is {kind} and is not replaced")
    return target


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which becomes `path` at the end of the block and is removed on an exception.

    Raises:
        FileExistsError: `path` is there already.
    """
    if path.exists():
        raise FileExistsError(f"{path} is there already: name a folder that is to be made")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    """The process's umask, which can be read only by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask

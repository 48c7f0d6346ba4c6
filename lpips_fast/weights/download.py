"""Downloads: a file appears under its name only when it is complete and its hash is right."""

from __future__ import annotations

import os
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from lpips_fast._files import sha256_of

_TIMEOUT = 20  # seconds without a byte, and for each of a host's addresses
_CHUNK = 2**20
_RANGE_NOT_SATISFIABLE = 416


def download(url: str, path: Path, sha256: str, progress: bool) -> None:
    """Downloads `url` to `path`, unless `path` is there already.

    After an interruption, the bytes that arrived stay in `path` + '.partial', and the next call continues from there.
    If several processes call it at once, one downloads and the others wait.

    Args:
        url: the address.
        path: the file to make; its folder is made, too.
        sha256: the first digits of the file's SHA-256; a file with another hash is removed.
        progress: whether to show a progress bar.

    Raises:
        OSError: the file cannot be downloaded or written, or its hash is another.
    """
    from filelock import FileLock  # imported here: few processes download anything

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", mode=0o666):  # any user of the folder may take it
        if path.exists():
            return
        partial = path.with_name(f"{path.name}.partial")
        try:
            _fetch(url, partial, progress)
        except HTTPException as error:
            raise OSError(f"{url}: {type(error).__name__} {error}") from error
        found = sha256_of(partial)
        if not found.startswith(sha256):
            partial.unlink()
            raise OSError(f"what {url} gave has the SHA-256 {found}, not {sha256}...; it was removed")
        os.replace(partial, path)


def _fetch(url: str, partial: Path, progress: bool) -> None:
    """Appends the bytes of the file that `partial` does not have yet."""
    from tqdm import tqdm

    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "lpips_fast"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE:  # `partial` has the full length already
            return
        raise
    with response:
        if response.status != 206:  # the server ignores ranges and sends the file from its beginning
            done = 0
        length = response.headers["Content-Length"]
        total = None if length is None else done + int(length)
        with (
            partial.open("ab" if done else "wb") as file,
            tqdm(
                total=total,
                initial=done,
                unit="B",
                unit_scale=True,
                desc=partial.stem,
                disable=not progress,
            ) as bar,
        ):
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
                done += len(chunk)
    if total is not None and done < total:
        raise OSError(f"{url} ended after {done} of {total} bytes; the next attempt goes on from there")

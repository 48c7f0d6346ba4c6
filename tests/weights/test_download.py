"""Downloads from a server in this process: complete and unchanged or an error, resumed, once for several processes."""

from __future__ import annotations

import hashlib
import http.server
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import lpips_fast
from lpips_fast.weights import download as module
from lpips_fast.weights import published
from lpips_fast.weights.download import download
from tests.support.raises import raises

CONTENT = random.Random(0).randbytes(3 * 2**20 + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; tests set its faults."""

    content = CONTENT
    takes_ranges = True
    cut: int | None = None  # bytes after which it hangs up
    seconds = 0.0  # to wait before it answers
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []  # of the requests
        self.url = f"http://127.0.0.1:{self.server_port}/file.pth"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        time.sleep(self.server.seconds)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.takes_ranges else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.server.content) - start))
        self.end_headers()
        self.wfile.write(self.server.content[start : self.server.cut])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "on" / "demand" / "file.pth"


def files(path):
    return sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock")


def test_whole_file(server, path, capsys):
    download(server.url, path, SHA256[:8], progress=True)
    assert path.read_bytes() == CONTENT
    assert files(path) == ["file.pth"]
    out, err = capsys.readouterr()
    assert not out
    assert "file.pth" in err
    download(server.url, path, SHA256[:8], progress=True)
    assert server.ranges == [None]  # there already: not asked for again


@pytest.mark.parametrize("takes_ranges", (True, False))
def test_goes_on_after_a_broken_connection(server, path, takes_ranges):
    server.cut, server.takes_ranges = 2**20 + 5, takes_ranges
    with raises(OSError, server.url, str(2**20 + 5), str(len(CONTENT)), "goes on from there"):
        download(server.url, path, SHA256, progress=False)
    assert files(path) == ["file.pth.partial"]
    server.cut = None
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT
    assert files(path) == ["file.pth"]
    assert server.ranges == [None, f"bytes={2**20 + 5}-"]


def test_stopped_between_the_last_byte_and_the_check(server, path):
    path.parent.mkdir(parents=True)
    path.with_name("file.pth.partial").write_bytes(CONTENT)
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("partial", (b"", b"of something else", CONTENT + b"!"), ids=("none", "other", "longer"))
def test_another_file_is_removed(server, path, partial):
    """The wrong file may come from the server or from an earlier attempt; the next attempt starts anew."""
    if partial:
        path.parent.mkdir(parents=True)
        path.with_name("file.pth.partial").write_bytes(partial)
    else:
        server.content = CONTENT[::-1]
    with raises(OSError, server.url, "SHA-256", SHA256, "removed"):
        download(server.url, path, SHA256, progress=False)
    assert files(path) == []
    server.content = CONTENT
    download(server.url, path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT


def test_a_server_that_has_no_such_file(server, path):
    server.status = 404
    with raises(OSError, "404"):
        download(server.url, path, SHA256, progress=False)
    assert files(path) == []


def test_a_server_that_does_not_answer(server, path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    server.seconds = 0.6
    with raises(OSError, "timed out"):
        download(server.url, path, SHA256, progress=False)


def test_several_processes_at_once(server, path):
    """One process downloads, and all have the file."""
    server.seconds = 0.5
    code = "import sys, pathlib; from lpips_fast.weights.download import download; "
    code += "download(sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], False)"
    command = [sys.executable, "-c", code, server.url, str(path), SHA256]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert path.read_bytes() == CONTENT
    assert files(path) == ["file.pth"]
    assert server.ranges == [None]


@pytest.fixture
def torchvision_from(server, monkeypatch, tmp_path):
    """Makes the server the address of AlexNet's weights, and the cache empty."""

    def torchvision_from(content: bytes) -> Path:
        name = f"alexnet-owt-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        url = server.url.replace("file.pth", name)
        monkeypatch.setitem(published.NETS, "alex", published.NETS["alex"]._replace(url=url))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        server.content = content
        return tmp_path / "hub" / "checkpoints" / name

    return torchvision_from


def test_trunk_weights(torchvision_from, trunk_states, tmp_path, capfd):
    torch.save(trunk_states["alex"], tmp_path / "alex.pth")
    path = torchvision_from((tmp_path / "alex.pth").read_bytes())
    for _ in range(2):
        module = lpips_fast.LPIPS(verbose=False)
        assert torch.equal(module.net.state_dict()["slice1.0.weight"], trunk_states["alex"]["features.0.weight"])
    assert files(path) == [path.name]
    assert capfd.readouterr() == ("", "")


def test_trunk_weights_that_are_another_file(torchvision_from, server):
    path = torchvision_from(CONTENT)
    server.content = CONTENT[:-1]
    with raises(RuntimeError, "'alex'", path.name, "SHA-256", "removed", "TORCH_HOME", "trunk_weights="):
        lpips_fast.LPIPS(verbose=False)
    assert files(path) == []


def test_a_broken_file_in_the_cache_is_named(torchvision_from, server):
    path = torchvision_from(CONTENT)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a fi")
    with raises(ValueError, str(path), "cannot be read", "deleted", "lpips-fast weights --net alex"):
        lpips_fast.LPIPS(verbose=False)
    assert server.ranges == []

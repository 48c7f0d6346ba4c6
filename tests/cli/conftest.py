"""The command line as people run it, as a process; and the network that it runs.

A process takes seconds to start. So a test starts few processes and checks much, and runs a command in its own process
where it can. Commands compute on the CPU even if there is a GPU, because tests compare their numbers with the library
on the CPU.
"""

from __future__ import annotations

import functools
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lpips_fast
from lpips_fast.cli import app, model
from lpips_fast.cli.model import find_device
from lpips_fast.cli.settings import Settings
from tests.support.commands import TIMEOUT, command, environment
from tests.support.image_files import save_noise


@pytest.fixture
def run(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs lpips-fast in the test's folder and checks its exit status."""

    def run(
        *arguments: object,
        status: int = 0,
        processes: int = 1,
        threads: int | None = None,
        script: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command(*arguments, processes=processes, script=script),
            cwd=tmp_path,
            env={**environment(), **({"OMP_NUM_THREADS": str(threads)} if threads else {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def run_and_stop(tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs lpips-fast until `ready()`, and sends it a signal."""

    def run_and_stop(*arguments: object, ready: Callable[[], bool], sends: signal.Signals):
        process = subprocess.Popen(
            command(*arguments),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
        )
        try:
            while not ready():
                assert process.poll() is None, f"ended too soon:\n{process.stderr.read()}"
            process.send_signal(sends)
            out, err = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run_and_stop


@pytest.fixture
def call(tmp_path, monkeypatch) -> Callable[..., str]:
    """Runs a command in this process, which is quicker, and returns its output in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model, "find_device", lambda name: find_device("cpu" if name == "auto" else name))

    def call(*arguments: object, status: int = 0) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert result.exit_code == status, f"status {result.exit_code}: {result.output} {result.exception!r}"
        return " ".join(result.output.replace("│", " ").split())

    return call


@pytest.fixture
def mistake(call) -> Callable[..., str]:
    """As `call`, for wrong usage."""
    return functools.partial(call, status=2)


@pytest.fixture(scope="session")
def trunk(tmp_path_factory, trunk_states) -> list[str]:
    """Options for a small network that needs no download: SqueezeNet with random weights."""
    path = tmp_path_factory.mktemp("weights") / "squeeze.pth"
    torch.save(trunk_states["squeeze"], path)
    return ["--net", "squeeze", "--trunk-weights", str(path)]


@pytest.fixture(scope="session")
def settings(trunk) -> Settings:
    """The options of `trunk`, on the CPU, with images read in this process."""
    return Settings(net="squeeze", trunk_weights=Path(trunk[-1]), device="cpu", workers=0)


@pytest.fixture(scope="session")
def fn(trunk_states):
    """The network of `trunk`, as the library makes it."""
    return lpips_fast.LPIPS(net="squeeze", trunk_weights=trunk_states["squeeze"])


@pytest.fixture(scope="session")
def measure(fn):
    """The distance of two images uint8 [H, W, 3], with a mask uint8 [H, W] or none, as the library gives it."""

    def measure(a: np.ndarray, b: np.ndarray, mask: np.ndarray | None = None) -> float:
        weight = None if mask is None else torch.from_numpy(mask / 255)[None, None]
        with torch.no_grad():
            return fn(lpips_fast.im2tensor(a), lpips_fast.im2tensor(b), weight=weight).item()

    return measure


@pytest.fixture(scope="session")
def distance(measure):
    """The distance of two image files, as the library gives it."""

    def distance(a: Path, b: Path) -> float:
        return measure(lpips_fast.load_image(a), lpips_fast.load_image(b))

    return distance


@pytest.fixture
def photos(tmp_path):
    """20 images of one size, one of them broken; and a query equal to another one."""
    for i in range(20):
        save_noise(tmp_path / "photos" / f"{i:02d}.png", i)
    (tmp_path / "photos" / "11.png").write_bytes((tmp_path / "photos" / "11.png").read_bytes()[:500])
    shutil.copy(tmp_path / "photos" / "07.png", tmp_path / "query.png")
    return tmp_path

"""How a command ends: exit statuses, and stdout that is closed."""

from __future__ import annotations

import functools
import os
import subprocess

import pytest
import typer

from lpips_fast.cli import errors
from lpips_fast.cli.command import exit_status
from tests.support.commands import TIMEOUT, command, environment
from tests.support.image_files import save_noise


def test_no_room(capsys):
    with pytest.raises(typer.Exit) as ended, exit_status():
        raise MemoryError("Unable to allocate 28 GiB")
    assert ended.value.exit_code == errors.FAILED
    assert "error: Unable to allocate 28 GiB" in capsys.readouterr().err
    with pytest.raises(typer.Exit), exit_status():
        raise MemoryError
    assert "error: MemoryError" in capsys.readouterr().err


@pytest.fixture
def pairs(tmp_path):
    for i in range(12):
        for side in "ab":
            save_noise(tmp_path / side / f"{i}.png", i)
    return tmp_path


def test_closed_stdout(pairs, trunk):
    done = subprocess.run(
        command("dirs", "a", "b", *trunk, "--csv", "out.csv"),
        cwd=pairs,
        env=environment(),
        stderr=subprocess.PIPE,
        preexec_fn=functools.partial(os.close, 1),
        text=True,
        timeout=TIMEOUT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (pairs / "out.csv").read_text().count("\n") == 13


def test_stdout_that_nobody_reads_on(pairs, trunk):
    arguments = command("dirs", "a", "b", *trunk, "--batch-size", 1, "--csv", "-")
    with subprocess.Popen(
        arguments, cwd=pairs, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "name,a,b,lpips,error,run\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141

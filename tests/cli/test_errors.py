"""The exit statuses are those that docs/cli.md lists, and each exception ends a command with its own."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
import typer

from lpips_fast.cli import errors
from lpips_fast.cli.command import exit_status

ROOT = Path(__file__).parents[2]


def test_statuses_are_those_of_the_documents():
    text = (ROOT / "docs" / "cli.md").read_text()
    section = text[text.index("## Exit status") :]
    listed = {int(status): meaning for status, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", section, re.MULTILINE)}
    for status, words in (
        (errors.READ_ERRORS, "could not be read or compared"),
        (errors.USAGE, "wrong usage"),
        (errors.FAILED, "the run failed"),
        (errors.INTERRUPTED, "interrupted"),
        (errors.STDOUT_CLOSED, "stdout"),
    ):
        assert words in listed.pop(status)
    assert listed == {0: "all well"}


def test_statuses_of_signals_are_the_shells():
    assert errors.INTERRUPTED == 128 + signal.SIGINT
    assert errors.STDOUT_CLOSED == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    "error, status, said",
    [
        (errors.UsageError("no folder"), errors.USAGE, "lpips-fast: error: no folder\n"),
        (errors.ReadError("a.png is broken"), errors.READ_ERRORS, "lpips-fast: error: a.png is broken\n"),
        (OSError("no room"), errors.FAILED, "lpips-fast: error: no room\n"),
        (RuntimeError("no weights"), errors.FAILED, "lpips-fast: error: no weights\n"),
        (KeyboardInterrupt(), errors.INTERRUPTED, "lpips-fast: interrupted\n"),
        (BrokenPipeError(), errors.STDOUT_CLOSED, ""),
    ],
    ids=repr,
)
def test_each_exception_has_its_status(capsys, error, status, said):
    with pytest.raises(typer.Exit) as ended, exit_status():
        raise error
    assert ended.value.exit_code == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("kind", [ValueError, TypeError, AssertionError])
def test_defects_keep_their_traceback(kind):
    """An exception of a kind that no command expects is a defect, and is not made into a message."""
    with pytest.raises(kind, match="a defect"), exit_status():
        raise kind("a defect")

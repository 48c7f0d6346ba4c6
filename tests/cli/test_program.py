"""What the program says about itself, and how it ends on wrong usage."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import lpips_fast
from lpips_fast.cli import app

COMMANDS = sorted(command.name for command in app.registered_commands)


def test_program(run):
    text = run("--help").stdout
    for name in COMMANDS:
        assert name in text
    assert "Exit status" in text
    assert CliRunner().invoke(app, ["--version"]).output.strip() == lpips_fast.__version__


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name):
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert "Examples" in result.output
    assert f"lpips-fast {name}" in result.output


def test_usage_errors(mistake):
    assert "No such command" in mistake("pear")
    assert "--nett" in mistake("pair", "a.png", "b.png", "--nett", "alex")
    assert "alexnet" in mistake("pair", "a.png", "b.png", "--net", "alexnet")
    assert "--size must be WIDTHxHEIGHT" in mistake("matrix", ".", "--size", "256")


def test_options_of_images_and_videos_stand_together():
    text = CliRunner().invoke(app, ["video", "--help"]).output
    panel = text[text.index("Reading files") :].split("╰")[0]
    for option in ("--background", "--range", "--color-matrix"):
        assert option in panel


@pytest.mark.parametrize("name", ["pair", "dirs", "matrix", "duplicates", "map", "video"])
def test_common_options(name):
    text = CliRunner().invoke(app, [name, "--help"]).output
    for option in ("--net", "--version", "--device", "--precision", "--batch-size", "--workers", "--weights"):
        assert option in text
    assert "--normalize" in text
    assert "--json" in text

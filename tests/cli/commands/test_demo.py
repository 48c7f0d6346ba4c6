"""`demo`: the options that reach the demo, which tests/demo tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def shown(call, monkeypatch):
    """What the demo is called with."""
    calls = []
    monkeypatch.setattr("lpips_fast.demo.main", lambda *arguments: calls.append(arguments))

    def shown(*options):
        call("demo", *options)
        return calls.pop()

    return shown


def test_options(shown):
    assert shown() == ("alex", 60, Path("demo.png"))
    assert shown("--net", "vgg", "--steps", 3, "--output", "x.svg") == ("vgg", 3, Path("x.svg"))


def test_mistakes(mistake):
    assert "--steps" in mistake("demo", "--steps", 0)
    assert "resnet" in mistake("demo", "--net", "resnet")


def test_several_processes_share_no_demo(mistake, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "demo is one process's work" in mistake("demo")

"""What results and journals hold of the options, and options that are refused."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import pytest

from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.settings import Reading, Settings, VideoReading
from tests.support.raises import raises


def test_described():
    assert Settings().described() == {
        "net": "alex",
        "version": "0.1",
        "weights": None,
        "trunk_weights": None,
        "normalize": True,
        "precision": "inherit",
    }


# Options on which no number depends, and another value for each option.
OF_THE_RUN = {"device": "cuda:1", "batch_size": 1, "workers": 0, "strict": True}
OF_NUMBERS = {
    "net": "vgg",
    "version": "0.0",
    "weights": Path(__file__),
    "trunk_weights": Path(__file__),
    "normalize": False,
    "precision": "bfloat16",
}


def test_described_are_the_options_that_change_numbers():
    assert {field.name for field in dataclasses.fields(Settings)} == {*OF_THE_RUN, *OF_NUMBERS}
    plain = Settings().described()
    assert dataclasses.replace(Settings(), **OF_THE_RUN).described() == plain
    for name, value in OF_NUMBERS.items():
        changed = dataclasses.replace(Settings(), **{name: value}).described()
        assert changed[name] == (str(value) if isinstance(value, Path) else value)
        assert {key for key in plain if changed[key] != plain[key]} == {name}


def test_two_names_of_a_net_are_one():
    assert Settings(net="vgg16").described() == Settings(net="vgg").described()


@pytest.mark.parametrize("option", ["weights", "trunk_weights"])
def test_weights_are_described_by_their_content(tmp_path, option):
    path = tmp_path / "w.pth"
    path.write_bytes(b"first")
    found = Settings(**{option: path}).described()
    assert found[option] == str(path)
    assert found[f"{option}_sha256"] == hashlib.sha256(b"first").hexdigest()
    path.write_bytes(b"other")
    assert Settings(**{option: path}).described() != found


def test_weights_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nowhere.pth", tmp_path, tmp_path / "pipe"):
        with raises(UsageError, f"no weights file {path}"):
            Settings(weights=path).described()


@pytest.mark.parametrize("cores, readers", [(2, 2), (64, 8), (None, 1)])
def test_as_many_readers_as_cores_up_to_eight(monkeypatch, cores, readers):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert Settings().reader_count() == readers
    assert Settings(workers=0).reader_count() == 0
    assert Settings(workers=20).reader_count() == 20


def test_reading():
    plain = Reading()
    assert (plain.background_color, plain.value_range) == ("white", None)
    assert plain.described() == {"background": "white", "range": None}
    given = Reading("#0a0B0c", "-1e3:4095")
    assert (given.background_color, given.value_range) == ("#0a0B0c", (-1000, 4095))
    assert given.described() == {"background": "#0a0b0c", "range": [-1000, 4095]}
    assert VideoReading(color_matrix="bt709").described() == {**plain.described(), "color_matrix": "bt709"}


@pytest.mark.parametrize(
    "one, other",
    [
        (Reading("white"), Reading()),
        (Reading("#FFFFFF"), Reading()),
        (Reading("black"), Reading("#000000")),
        (Reading("#ABCDEF"), Reading("#abcdef")),
        (Reading(range="0:4095"), Reading(range="0.0:4.095e3")),
    ],
)
def test_two_names_of_a_reading_are_one(one, other):
    assert one.described() == other.described()
    assert one.described() != Reading("#123456").described()


@pytest.mark.parametrize("kind", [Reading, VideoReading])
def test_readings_that_are_refused(kind):
    for text in ("blue", "#fff", "#gggggg", ""):
        with raises(UsageError, "--background must be white, black, #rrggbb or drop", f"got {text!r}"):
            kind(background=text)
    for text in ("4095", "9:3", "3:3", "0:inf", "0:x", "0:1:2", ":", "nan:1", ""):
        with raises(UsageError, "--range must be LOW:HIGH", f"got {text!r}"):
            kind(range=text)

"""The files that commands write: checked before the work, whole, of one run."""

from __future__ import annotations

import csv
import json
import os

import pytest

from lpips_fast.cli import output
from lpips_fast.cli.errors import UsageError
from tests.support.image_files import save_noise

OUTPUTS = [
    (("pair", "a.png", "b.png"), "--json"),
    (("dirs", "a", "b"), "--csv"),
    (("dirs", "a", "b"), "--report"),
    (("matrix", "a"), "--csv"),
    (("matrix", "a"), "--heatmap"),
    (("map", "a.png", "b.png"), "--output"),
    (("index", "a"), "--output"),
    (("search", "a.png", "a"), "--json"),
    (("duplicates", "a"), "--report"),
    (("video", "a", "b"), "--plot"),
]


@pytest.mark.parametrize("arguments, option", OUTPUTS, ids=[f"{a[0]}{o}" for a, o in OUTPUTS])
def test_outputs_are_checked_before_anything_is_read(mistake, tmp_path, arguments, option):
    assert f"{option} nodir/x.png cannot be written: there is no folder" in mistake(*arguments, option, "nodir/x.png")
    (tmp_path / "folder.png").mkdir()
    assert f"{option} folder.png cannot be written: folder.png is a folder" in mistake(*arguments, option, "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png is no regular file" in mistake(*arguments, option, "pipe.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "pipe.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_is_read_only(mistake, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "--csv locked/x.csv cannot be written" in mistake("dirs", "a", "b", "--csv", "locked/x.csv")


@pytest.mark.parametrize(
    "arguments",
    [
        ("pair", "a.png", "b.png", "--csv", "x", "--json", "./x"),
        ("pair", "a.png", "b.png", "--csv", "-", "--json", "-"),
        ("dirs", "a", "b", "--csv", "x", "--report", "link"),
        ("dirs", "a", "b", "--json", "-", "--report", "-"),
        ("matrix", "a", "--csv", "x.png", "--heatmap", "x.png"),
        ("map", "a.png", "b.png", "-o", "x.png", "--json", "x.png"),
    ],
)
def test_two_outputs_in_one_file(mistake, tmp_path, arguments):
    (tmp_path / "link").symlink_to("x")
    assert "are the same file" in mistake(*arguments)


def test_csv_in_the_place_of_the_journal(mistake, tmp_path, trunk):
    for side in "ab":
        save_noise(tmp_path / side / "0.png", 0)
    told = mistake("dirs", "a", "b", "--json", "x", "--csv", "x.partial", *trunk)
    assert "--csv x.partial is where --json keeps its journal" in told
    os.mkfifo(tmp_path / "x.partial")
    assert "x.partial is no regular file" in mistake("dirs", "a", "b", "--json", "x", "--resume", *trunk)


def test_the_lock_goes_with_the_run(tmp_path):
    files = {"--csv": tmp_path / "x.csv"}
    with output.claiming(files):
        with pytest.raises(UsageError, match="another run is writing it"), output.claiming(files):
            pass
        assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / ".x.csv.lock").touch()  # a killed process leaves its lock
    with output.claiming(files):
        pass
    assert not list(tmp_path.iterdir())


def test_json_is_utf8(tmp_path):
    """Also where the name of a file is not."""
    document = {"name": "b\udce9 \N{SNOWMAN} \\udce9"}
    output.write_json(tmp_path / "x.json", document)
    text = (tmp_path / "x.json").read_bytes().decode()
    assert "\N{SNOWMAN}" in text
    assert json.loads(text) == document


@pytest.mark.parametrize("name", ["a\rb", "a\nb", "a\r\n", 'a"b', "a,b"])
def test_names_in_csv(tmp_path, name):
    output.write_csv(tmp_path / "out.csv", [{"name": name, "lpips": 0.5}], ["name", "lpips"])
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file, strict=True)) == [["name", "lpips"], [name, "0.5"]]
    assert b"\r" not in (tmp_path / "out.csv").read_bytes().replace(name.encode(), b"")

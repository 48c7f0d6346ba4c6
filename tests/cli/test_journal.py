"""`--resume` with files that are damaged, or of a run with other weights: refused by name, and left as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lpips_fast.cli.errors import UsageError
from lpips_fast.cli.journal import Journal
from tests.support.image_files import save_noise

SETTINGS = {"net": "alex"}
COLUMNS = ["name", "a", "b", "lpips", "error"]
ROW = {"name": "0.png", "a": "a/0.png", "b": "b/0.png", "lpips": 0.5}


def resumed(path: Path) -> Journal:
    """The journal of a run that goes on with a file."""
    json_file = path.with_suffix("") if path.suffix == ".partial" else path
    to_csv = path.suffix == ".csv"
    return Journal(None if to_csv else json_file, path if to_csv else None, SETTINGS, COLUMNS, True)


def refused(path: Path) -> str:
    """The error about a damaged file, which stays as it is."""
    before = path.read_bytes()
    with pytest.raises(UsageError) as error:
        resumed(path)
    assert path.read_bytes() == before
    assert [p for p in path.parent.iterdir()] == [path]
    assert f"--resume: {path} is damaged, or no result of this command: " in str(error.value)
    return str(error.value)


@pytest.fixture
def whole(tmp_path) -> str:
    """A CSV file of a run."""
    journal = Journal(None, tmp_path / "out.csv", SETTINGS, COLUMNS, False)
    journal.start()
    journal.append([ROW, {**ROW, "name": "1\r.png", "lpips": 0.25}])
    return (tmp_path / "out.csv").read_bytes().decode()


def test_csv(tmp_path, whole):
    path = tmp_path / "out.csv"
    assert [(row["name"], row["lpips"]) for row in resumed(path).rows] == [("0.png", 0.5), ("1\r.png", 0.25)]
    path.write_bytes(whole[:-20].encode())
    assert [row["name"] for row in resumed(path).rows] == ["0.png"]
    path.write_bytes(b"")
    assert resumed(path).rows == []


@pytest.mark.parametrize(
    "change, told",
    [
        (("0.5", "half"), "result 1: could not convert string to float: 'half'"),
        (("0.25", "inf"), "result 2: 'inf' is not finite"),
        (("0.25", "nan"), "result 2: 'nan' is not finite"),
        (("name,", "image,"), "no column 'name', but ['image'"),
        (("lpips,", "distance,"), "no column 'lpips'"),
        (("name,", "\ufeffname,"), "no column 'name', but ['\\ufeffname'"),
        ((",0.5", ",0.5,7"), "result 1: it has not a cell a column"),
        ((",b/0.png", ""), "result 1: it has not a cell a column"),
        (('"1\r.png"', "1\r.png"), "new-line character seen in unquoted field"),
        (('"1\r.png"', '"1\r.png'), "unexpected end of data"),
        (("a/0.png", "a" * 200_000), "field larger than field limit"),
    ],
)
def test_damaged_csv(tmp_path, whole, change, told):
    assert change[0] in whole
    (tmp_path / "out.csv").write_bytes(whole.replace(*change, 1).encode())
    assert told in refused(tmp_path / "out.csv")


@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.json.partial"])
@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", bytes(range(256)) * 9, b"no line", b"[" * 99999])
def test_binary(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)
    (tmp_path / name).write_bytes(content + b"\n")
    refused(tmp_path / name)


@pytest.mark.parametrize("name", ["out.json", "out.json.partial"])
@pytest.mark.parametrize(
    "row, told",
    [
        (7, "result 2: 7 is no row"),
        ("text", "result 2: 'text' is no row"),
        ([ROW], "is no row"),
        ({key: ROW[key] for key in ("a", "b", "lpips")}, "result 2: it has no 'name'"),
        ({key: ROW[key] for key in ("name", "a", "b")}, "result 2: it has no 'lpips'"),
        ({**ROW, "name": ["0.png"]}, "['0.png'] is no text"),
        ({**ROW, "lpips": [0.5]}, "result 2: TypeError"),
        ({**ROW, "lpips": float("inf")}, "result 2: inf is not finite"),
        ({**ROW, "lpips": 10**400}, "result 2: OverflowError"),
    ],
)
def test_damaged_rows(tmp_path, name, row, told):
    rows = [ROW, row]
    lines = [SETTINGS, *rows] if name.endswith("partial") else [{"settings": SETTINGS, "results": rows}]
    (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert told in refused(tmp_path / name)


@pytest.mark.parametrize("document", [7, [], {}, {"settings": 7}, {"settings": SETTINGS, "results": {"name": 1}}])
def test_damaged_documents(tmp_path, document):
    (tmp_path / "out.json").write_text(json.dumps(document) + "\n")
    refused(tmp_path / "out.json")


def test_results_of_an_older_version(tmp_path):
    (tmp_path / "out.json").write_text(json.dumps({"settings": {}, "results": [ROW]}) + "\n")
    with pytest.raises(UsageError, match="other settings: net is not in it, as in results of an older version"):
        resumed(tmp_path / "out.json")
    (tmp_path / "out.json").unlink()
    (tmp_path / "out.csv").write_text("name,lpips\n0.png,0.5\n")
    assert "it has no column 'a', but ['name', 'lpips'] (older versions had fewer)" in refused(tmp_path / "out.csv")


@pytest.mark.parametrize("settings", [7, [], "net", None])
def test_damaged_settings_of_a_journal(tmp_path, settings):
    (tmp_path / "out.json.partial").write_text(json.dumps(settings) + "\n")
    refused(tmp_path / "out.json.partial")


def test_damaged_tiles(call, tmp_path, trunk):
    for i in range(3):
        save_noise(tmp_path / "x" / f"{i}.png", i)
    arguments = ("matrix", "x", "--block", "2", *trunk, "--json", "out.json")
    call(*arguments)
    settings = json.loads((tmp_path / "out.json").read_text())["settings"]
    partial = tmp_path / "out.json.partial"
    for row in (
        {"name": "0,1", "lpips": [[0.5, 0.5]]},
        {"name": "0,1", "lpips": [0.5, 0.5]},
        {"name": "0,1", "lpips": [[0.5], [0.5, 0.5]]},
        {"name": "0,1", "lpips": [[0.5], [float("inf")]]},
        {"name": "0,1", "lpips": [["half"], [0.5]]},
        {"name": "0,1", "lpips": {}},
        {"name": "0,1"},
        {"name": "1,0", "lpips": [[0.5, 0.5]]},
        {"name": "0,9", "lpips": [[0.5], [0.5]]},
        {"name": "-1,1", "lpips": [[0.5], [0.5]]},
        {"name": "0", "lpips": [[0.5], [0.5]]},
        {"name": 7, "lpips": [[0.5], [0.5]]},
        [7],
    ):
        text = f"{json.dumps(settings)}\n{json.dumps(row)}\n"
        partial.write_text(text)
        assert "out.json.partial is damaged" in call(*arguments, "--resume", status=2), row
        assert partial.read_text() == text
    partial.write_text(f'{json.dumps(settings)}\n{{"name": "0,1", "lpips": [[0.5], [0.25]]}}\n{{"name": "1,')
    call(*arguments, "--resume")
    found = json.loads((tmp_path / "out.json").read_text())["matrix"]
    assert [found[0][2], found[1][2]] == [0.5, 0.25]


@pytest.mark.parametrize("out", ["out.json", "out.csv"])
def test_other_weights_under_the_same_name(call, tmp_path, trunk, trunk_states, out):
    for side in "ab":
        for i in range(2):
            save_noise(tmp_path / side / f"{i}\r.png", i + ord(side))
    state = trunk_states["squeeze"]
    torch.save(state, tmp_path / "trunk.pth")
    arguments = ("dirs", "a", "b", "--net", "squeeze", "--trunk-weights", "trunk.pth", f"--{out[4:]}", out)
    call(*arguments)
    before = (tmp_path / out).read_bytes()
    call(*arguments, "--resume")
    assert (tmp_path / out).read_bytes() == before
    torch.save({name: 2 * tensor for name, tensor in state.items()}, tmp_path / "trunk.pth")
    assert "other settings" in call(*arguments, "--resume", status=2)
    assert (tmp_path / out).read_bytes() == before

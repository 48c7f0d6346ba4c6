"""`--background`, `--range` and the notices about files, with every command that reads images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import save_noise
from tests.support.tolerances import EQUAL_IMAGES_TOLERANCE


@pytest.fixture
def views(tmp_path) -> Path:
    """Folders `truth`, with transparent surroundings of 12 objects, and `rendered`, the objects on black; `plain`."""
    for i in range(12):
        rgb = np.random.default_rng(i).integers(0, 256, (40, 48, 3)).astype(np.uint8)
        alpha = np.zeros((40, 48, 1), np.uint8)
        alpha[8:32, 8:40] = 255
        rendered = np.where(alpha, rgb, np.uint8(0))
        save(tmp_path / "truth" / f"{i:02d}.png", np.concatenate([rgb, alpha], axis=2))
        save(tmp_path / "rendered" / f"{i:02d}.png", rendered)
        save(tmp_path / "stored" / f"{i:02d}.png", rgb)
    return tmp_path


@pytest.fixture
def thermal(tmp_path) -> Path:
    """Folders `a` and `b` of 4 images of 16 bits each, whose values are from 27000 to 29000."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    for i in range(4):
        for side, noise in (("a", 0), ("b", 50)):
            values = 28000 + 900 * np.sin(x / 5 + i) * np.cos(y / 7) + rng.normal(0, 1 + noise, x.shape)
            values[0, :2] = 27000, 29000
            save(tmp_path / side / f"{i}.png", values.clip(27000, 29000).astype(np.uint16))
    return tmp_path


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def result(path: Path) -> dict:
    return json.loads(path.read_text())


def test_pair(call, views, trunk):
    pair = ("pair", "truth/00.png", "rendered/00.png", "--json", "out.json", *trunk)
    told = call(*pair)
    assert (
        "truth/00.png: transparent, and compared with an image that is not; transparent pixels show white (--background"
    ) in told
    assert result(views / "out.json")["lpips"] > 0.05
    assert result(views / "out.json")["settings"]["background"] == "white"
    for background in ("black", "#000000"):
        assert "transparent" not in call(*pair, "--background", background), "it was chosen"
        assert result(views / "out.json")["lpips"] == 0
        assert result(views / "out.json")["settings"]["background"] == "black"  # one colour, one name
    assert "transparent" not in call(*pair, "--background", "white"), "it was chosen, too"
    assert result(views / "out.json")["lpips"] > 0.05
    assert "transparent" not in call("pair", "truth/00.png", "stored/00.png", "--background", "drop", *trunk)
    assert "transparent" not in call("pair", "truth/00.png", "truth/01.png", *trunk)
    assert "transparent" not in call("pair", "rendered/00.png", "rendered/01.png", *trunk)
    opaque = np.full((40, 48, 4), 255, np.uint8)
    save(views / "opaque.png", opaque)
    assert "transparent" not in call("pair", "opaque.png", "rendered/00.png", *trunk), "its alpha is 255 everywhere"


def test_masks_leave_the_background_in_sight(call, views, trunk):
    """The network sees the surroundings, too. So their background matters, and a notice tells of it."""
    pair = ("pair", "truth/00.png", "rendered/00.png", "--mask", "alpha", "--json", "out.json", *trunk)
    assert "transparent pixels show white" in call(*pair)
    assert result(views / "out.json")["lpips"] > 0.01
    call(*pair, "--background", "black")
    assert result(views / "out.json")["lpips"] == 0


def test_colors_as_stored(call, views, trunk):
    call("pair", "truth/00.png", "stored/00.png", "--background", "drop", "--json", "out.json", *trunk)
    assert result(views / "out.json")["lpips"] == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_dirs(call, views, trunk, workers):
    dirs = ("dirs", "truth", "rendered", "--workers", workers, "--batch-size", 4, *trunk)
    told = call(*dirs, "--csv", "out.csv", "--report", "out.html")
    assert "truth/00.png and 11 more: transparent, and compared with an image that is not" in told
    assert told.count("transparent pixels show white") == 1
    assert '<th scope="row">background</th><td>white</td>' in (views / "out.html").read_text()
    call(*dirs, "--background", "black", "--json", "out.json", "--report", "out.html")
    assert result(views / "out.json")["summary"]["max"] == 0
    assert result(views / "out.json")["settings"]["background"] == "black"
    assert '<th scope="row">background</th><td>black</td>' in (views / "out.html").read_text()

    assert "other settings" in call(*dirs, "--background", "black", "--csv", "out.csv", "--resume", status=2)
    told = call(*dirs, "--background", "#010000", "--json", "out.json", "--resume", status=2)
    assert "background was 'black', is '#010000'" in told
    call(*dirs, "--csv", "out.csv", "--resume")
    call(*dirs, "--background", "black", "--json", "out.json", "--resume")


def test_processes_speak_once(run, views, trunk):
    done = run("dirs", "truth", "rendered", "--batch-size", 1, *trunk, processes=2, threads=1)
    assert done.stderr.count("truth/00.png and 11 more: transparent") == 1
    assert done.stderr.count("transparent pixels show") == 1


def test_the_report_shows_what_was_compared(views, trunk, call, monkeypatch):
    shown = []
    monkeypatch.setattr("lpips_fast.cli.report.report_page", lambda *arguments: shown.append(arguments[6]) or "")
    call("dirs", "truth", "rendered", "--background", "#102030", "--report", "out.html", "--workers", 0, *trunk)
    [groups] = shown
    pairs = [pair for group in groups.values() for pair in group]
    assert pairs
    assert all((pair.image0[0, 0] == (0x10, 0x20, 0x30)).all() for pair in pairs)


def test_matrix(call, views, trunk):
    told = call("matrix", "truth", "rendered", "--block", 4, "--json", "out.json", *trunk)
    assert "truth/00.png and 11 more: transparent" in told
    assert told.count("transparent pixels show") == 1
    assert "transparent" not in call("matrix", "truth", *trunk)
    black = ("matrix", "truth", "rendered", "--background", "black", *trunk)
    call(*black, "--json", "black.json")
    assert np.abs(np.diag(result(views / "black.json")["matrix"])).max() < EQUAL_IMAGES_TOLERANCE
    told = call(*black, "--json", "out.json", "--resume", status=2)
    assert "background was 'white', is 'black'" in told


def test_map(call, views, trunk):
    show = ("map", "truth/00.png", "rendered/00.png", "-o", "map.png", "--json", "out.json", *trunk)
    assert "truth/00.png: transparent" in call(*show)
    call(*show, "--background", "black")
    assert result(views / "out.json")["max"] == 0
    assert result(views / "out.json")["settings"]["background"] == "black"


def test_index_and_search(call, views, trunk):
    query = ("search", "rendered/03.png", "-k", 1, "--json", "out.json", *trunk)
    assert "truth/00.png and 11 more: transparent" in call(*query, "truth")
    call(*query, "truth", "--background", "black")
    assert result(views / "out.json")["results"][0]["lpips"] < EQUAL_IMAGES_TOLERANCE
    told = call("index", "truth", "-o", "truth.index", "--background", "black", *trunk)
    assert "transparent" not in told, "as all of them are"
    call(*query, "truth.index", "--background", "black")
    assert result(views / "out.json")["results"][0]["lpips"] < EQUAL_IMAGES_TOLERANCE
    assert result(views / "out.json")["settings"]["background"] == "black"
    assert "truth.index was made with --background 'black', and is used with --background 'white'" in call(
        *query, "truth.index", status=2
    )
    told = call(*query, "truth.index", "--background", "black", "--range", "0:9", status=1)
    assert "rendered/03.png cannot be read" in told
    save_noise(views / "truth" / "x.png", 0, 48, 40)
    told = call("index", "truth", "-o", "mixed.index", *trunk)
    assert "truth/00.png and 11 more: transparent, and other images are not; transparent pixels show white" in told
    assert "transparent" not in call("search", "rendered/03.png", "mixed.index", *trunk), "told when it was made"
    assert "transparent" not in call("index", "truth", "-o", "black.index", "--background", "black", *trunk)


@pytest.mark.parametrize(
    "folder, query, transparent",
    [
        ("truth", "rendered/03.png", "an image in x.index"),
        ("rendered", "truth/03.png", "truth/03.png"),
        ("truth", "truth/03.png", None),
        ("rendered", "rendered/03.png", None),
    ],
)
def test_an_index_knows_whether_its_images_are_transparent(call, views, trunk, folder, query, transparent):
    call("index", folder, "-o", "x.index", "--workers", 0, *trunk)
    told = call("search", query, "x.index", *trunk)
    if transparent:
        assert f"{transparent}: transparent, and compared with an image that is not; transparent pixels show" in told
        assert "an index made with --background takes another colour" in told
        for color in ("white", "#FFFFFF"):
            assert "transparent" not in call("search", query, "x.index", "--background", color, *trunk)
    else:
        assert "transparent" not in told


def test_video(call, views, trunk):
    frames = ("video", "truth", "rendered", *trunk)
    told = call(*frames, "--json", "out.json")
    assert "truth frame 0 and 11 more: transparent" in told
    told = call(*frames, "--json", "out.json", "--resume", "--background", "black", status=2)
    assert "background was 'white', is 'black'" in told
    call(*frames, "--json", "black.json", "--background", "black")
    assert result(views / "black.json")["summary"]["max"] == 0


def test_animations(call, views, trunk):
    for side in ("truth", "rendered"):
        first, *rest = (Image.open(path) for path in sorted((views / side).iterdir()))
        first.save(views / f"{side}.webp", save_all=True, append_images=rest, lossless=True, duration=40)
    animations = ("video", "truth.webp", "rendered.webp", "--json", "out.json", *trunk)
    assert "truth.webp frame 0 and 11 more: transparent" in call(*animations)
    call(*animations, "--background", "black")
    assert result(views / "out.json")["summary"]["max"] == 0


def test_video_files(call, views, trunk):
    av = pytest.importorskip("av", reason="video files need PyAV")
    for side in ("truth", "rendered"):
        with av.open(str(views / f"{side}.mov"), "w") as container:
            stream = container.add_stream("png", rate=25)
            stream.width, stream.height, stream.pix_fmt = 48, 40, "rgba" if side == "truth" else "rgb24"
            for path in sorted((views / side).iterdir()):
                frame = av.VideoFrame.from_ndarray(np.array(Image.open(path)), format=stream.pix_fmt)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    videos = ("video", "truth.mov", "rendered.mov", "--json", "out.json", *trunk)
    assert "truth.mov frame 0 and 11 more: transparent" in call(*videos)
    assert result(views / "out.json")["summary"]["min"] > 0.05
    call(*videos, "--background", "black")
    assert result(views / "out.json")["summary"]["max"] == 0
    told = call(*videos, "--range", "0:4095", status=2)
    assert "truth.mov: --range is for images of 16 or 32 bits" in told


def test_few_levels_of_sixteen_bits(call, thermal, trunk):
    pair = ("pair", "a/0.png", "b/0.png", "--json", "out.json", *trunk)
    told = call(*pair)
    assert "a/0.png and 1 more: only the high byte of the 16 bits is compared, and it takes few levels" in told
    assert "values run from 27000 to 29000 (--range 27000:29000 spreads" in told
    assert result(thermal / "out.json")["settings"]["range"] is None
    coarse = result(thermal / "out.json")["lpips"]
    assert "high byte" not in call(*pair, "--range", "27000:29000")
    assert result(thermal / "out.json")["settings"]["range"] == [27000, 29000]
    assert result(thermal / "out.json")["lpips"] != coarse
    for side in "ab":
        values = np.array(Image.open(thermal / side / "0.png"), np.float64)
        save(thermal / f"{side}.png", np.rint((values - 27000) * 255 / 2000).astype(np.uint8))
    stretched = result(thermal / "out.json")["lpips"]
    call("pair", "a.png", "b.png", "--json", "out.json", *trunk)
    assert result(thermal / "out.json")["lpips"] == stretched


@pytest.mark.parametrize("workers", [0, 2])
def test_few_levels_in_folders(call, thermal, trunk, workers):
    dirs = ("dirs", "a", "b", "--workers", workers, "--json", "out.json", *trunk)
    told = call(*dirs)
    assert told.count("high byte") == 1
    assert "a/0.png and 7 more: only the high byte" in told
    assert "range was None, is [27000.0, 29000.0]" in call(*dirs, "--resume", "--range", "27000:29000", status=2)
    for command in (
        ("matrix", "a", "b"),
        ("duplicates", "a", "b"),
        ("video", "a", "b"),
        ("index", "a", "-o", "a.index", "--rebuild"),
        ("map", "a/0.png", "b/0.png", "-o", "m.png"),
    ):
        assert call(*command, *trunk).count("high byte") == 1, command
        assert "high byte" not in call(*command, "--range", "27000:29000", *trunk), command
    query = ("search", "b/2.png", "a.index", "-k", 1, *trunk)
    call(*query, "--range", "27000:29000")
    told = call(*query, status=2)
    assert "a.index was made with --range 27000:29000, and is used with no --range: use it likewise" in told
    told = call(*query, "--range", "0.5:1e9", status=2)
    assert "a.index was made with --range 27000:29000, and is used with --range 0.5:1000000000: use" in told
    told = call("index", "a", "-o", "a.index", "--rebuild", *trunk)
    told = call(*query, "--range", "0:9", status=2)
    assert "a.index was made with no --range, and is used with --range 0:9" in told


def test_floats_have_the_range_that_they_are_given(call, tmp_path, trunk):
    values = np.random.default_rng(0).uniform(-1, 1, (40, 48)).astype(np.float32)
    save(tmp_path / "a.tif", values)
    save(tmp_path / "b.pfm", values)
    save_noise(tmp_path / "c.png", 0, 48, 40)
    assert "have no set range" in call("pair", "a.tif", "b.pfm", *trunk, status=1)
    call("pair", "a.tif", "b.pfm", "--range", "-1:1", "--json", "out.json", *trunk)
    assert result(tmp_path / "out.json")["lpips"] == 0
    call("search", "a.tif", ".", "--range", "-1:1", "--json", "out.json", "--workers", 0, *trunk, status=1)
    found = result(tmp_path / "out.json")["results"]
    assert sorted(row["name"] for row in found) == ["a.tif", "b.pfm"], "c.png has a range"
    assert max(row["lpips"] for row in found) < EQUAL_IMAGES_TOLERANCE


def test_files_that_a_range_is_not_for(call, thermal, trunk):
    save_noise(thermal / "b" / "1.png", 1, 48, 40)
    told = call("dirs", "a", "b", "--range", "27000:29000", "--json", "out.json", *trunk, status=1)
    assert "1.png: b/1.png cannot be read as an image: a range of values is for gray of 16 bits" in told
    assert result(thermal / "out.json")["summary"]["count"] == 3


@pytest.mark.parametrize("command", ["pair", "dirs", "matrix", "index", "search", "duplicates", "video", "map"])
def test_mistakes(mistake, command):
    """Errors come before anything is read."""
    out = {"index": ("-o", "x.index"), "map": ("-o", "x.png")}.get(command, ())
    arguments = (command, "nowhere", *(() if command in ("matrix", "index") else ("nowhere",)), *out)
    told = mistake(*arguments, "--background", "blue")
    assert "--background must be white, black, #rrggbb or drop, got 'blue'" in told
    for text in ("4095", "9:3", "0:inf", "0:x", "0:1:2", ":", "nan:1"):
        told = mistake(*arguments, "--range", text)
        assert f"--range must be LOW:HIGH, two finite numbers, LOW below HIGH, e.g. 0:4095, got '{text}'" in told


def test_every_format_in_folders(call, tmp_path, trunk):
    """A folder has every file that `pair` reads."""
    rgb = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    suffixes = "apng avif bmp dds j2k jfif jp2 mpo pcx pnm ppm qoi sgi tga webp".split()
    for suffix in suffixes:
        save(tmp_path / "a" / f"{suffix}.{suffix}", rgb)
        save(tmp_path / "b" / f"{suffix}.png", rgb)
    call("dirs", "a", "b", "--json", "out.json", *trunk)
    assert result(tmp_path / "out.json")["summary"]["count"] == len(suffixes)
    call("matrix", "a", "--json", "out.json", *trunk)
    assert len(result(tmp_path / "out.json")["rows"]) == len(suffixes)

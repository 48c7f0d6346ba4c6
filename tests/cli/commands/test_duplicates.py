"""`duplicates`, in folders and indexes: against the library, by two processes, as a page."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_fast.search import Index, duplicates
from tests.support.image_files import save_noise
from tests.support.tolerances import EQUAL_IMAGES_TOLERANCE, INDEX_TOLERANCE


def nearly(path, of, by):
    """Writes an image whose pixels differ a little from another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(Image.open(of)).astype(int)
    noise = np.random.default_rng(0).integers(-by, by + 1, pixels.shape)
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def copies(photos):
    """`photos`, with 30.png equal to 03.png, 31.png like 05.png and 32.png like 31.png."""
    folder = photos / "photos"
    shutil.copy(folder / "03.png", folder / "30.png")
    nearly(folder / "31.png", folder / "05.png", 20)
    nearly(folder / "32.png", folder / "31.png", 20)
    return photos


def limit(distance, folder):
    """A limit that joins what is alike."""
    steps = distance(folder / "05.png", folder / "31.png"), distance(folder / "31.png", folder / "32.png")
    return 1.2 * max(steps)


def test_duplicates(run, call, copies, trunk, distance):
    folder = copies / "photos"
    below = limit(distance, folder)
    options = ("--below", below, *trunk)
    done = run("duplicates", "photos", "--json", "one.json", "--csv", "one.csv", *options, status=1)
    assert "11.png cannot be read" in done.stderr
    assert "photos/30.png\t1\t" in done.stdout
    assert "surplus\t3" in done.stdout
    found = json.loads((copies / "one.json").read_text())
    assert found["compared"] == ["photos"]
    assert found["settings"]["below"] == below
    assert found["settings"]["size"] == [40, 32]
    assert found["summary"] == {"images": 22, "groups": 2, "in_groups": 5, "surplus": 3}
    names = [[member["name"] for member in group["members"]] for group in found["groups"]]
    assert names == [["photos/03.png", "photos/30.png"], ["photos/05.png", "photos/31.png", "photos/32.png"]]
    equal, chain = ([member["lpips"] for member in group["members"]] for group in found["groups"])
    assert equal[0] == chain[0] == 0
    assert equal[1] < EQUAL_IMAGES_TOLERANCE
    for name, value in zip(("31.png", "32.png"), chain[1:], strict=True):
        tolerance = INDEX_TOLERANCE[torch.float16]
        expected = distance(folder / "05.png", folder / name)
        assert value == pytest.approx(expected, rel=tolerance["rtol"], abs=tolerance["atol"])

    rows = list(csv.DictReader((copies / "one.csv").open()))
    assert [*rows[0]] == ["group", "name", "lpips"]
    assert [(int(row["group"]), row["name"], float(row["lpips"])) for row in rows] == [
        (group["group"], member["name"], member["lpips"]) for group in found["groups"] for member in group["members"]
    ]
    assert call("duplicates", "photos", "--csv", "-", *options, status=1).startswith("group,name,lpips 1,photos/03.png")


def test_two_folders(call, copies, trunk, distance):
    """Images that are alike within one folder do not count."""
    below = limit(distance, copies / "photos")
    nearly(copies / "test" / "a.png", copies / "photos" / "05.png", 10)
    for i in (50, 51):
        save_noise(copies / "test" / f"{i}.png", 50)
    options = ("photos", "test", "--below", below, "--json", "two.json", *trunk)
    call("duplicates", *options, "--csv", "two.csv", status=1)
    found = json.loads((copies / "two.json").read_text())
    assert found["summary"] == {"images_a": 22, "images_b": 3, "groups": 1, "in_groups_a": 2, "in_groups_b": 1}
    (group,) = found["groups"]
    members = [(member["name"], member["folder"]) for member in group["members"]]
    assert members == [("photos/05.png", "a"), ("photos/31.png", "a"), ("test/a.png", "b")]
    assert (copies / "two.csv").read_text().startswith("group,name,folder,lpips\n1,photos/05.png,a,0.0\n")

    save_noise(copies / "test" / "60.png", 0, width=48)
    told = call("duplicates", *options, status=2)
    assert "must be of one: use --size" in told
    call("duplicates", *options, "--size", "32x32", status=1)


def test_indexes(call, copies, trunk, distance):
    """An index of a folder gives what the folder gives, and it can stand for one of two."""
    below = limit(distance, copies / "photos")
    options = ("--below", below, *trunk, "--json")
    call("index", "photos", "-o", "photos.index", *trunk, status=1)
    call("duplicates", "photos", *options, "folder.json", status=1)
    call("duplicates", "photos.index", *options, "index.json")
    folder, index = (json.loads((copies / f"{name}.json").read_text()) for name in ("folder", "index"))
    for group in folder["groups"]:
        for member in group["members"]:
            member["name"] = member["name"].removeprefix("photos/")
    assert index["groups"] == folder["groups"]

    call("duplicates", "photos.index", "photos", *options, "both.json", status=1)
    assert json.loads((copies / "both.json").read_text())["summary"]["groups"] == 22 - 3
    assert "--size is for folders" in call("duplicates", "photos.index", "--size", "64x64", *trunk, status=2)
    told = call("duplicates", "photos.index", "photos", "--size", "64x64", *trunk, status=2)
    assert "photos.index has images of 40 x 32, photos of 64 x 64, and they must be of one size" in told
    call("index", "photos", "-o", "small.index", "--size", "32x32", *trunk, status=1)
    call("duplicates", "photos", "small.index", *trunk, status=1)  # which has the size


def test_an_index_of_sketches(run, call, copies, trunk, distance):
    """Images are read again. One that is gone joins nothing, and is named once by several processes."""
    folder = copies / "photos"
    below = limit(distance, folder)
    assert distance(folder / "05.png", folder / "32.png") > below, "31.png joins them"
    options = ("--below", below, *trunk, "--workers", 0, "--json")
    call("index", "photos", "-o", "sketches.index", "--sketch", 1024, *trunk, status=1)
    call("duplicates", "sketches.index", *options, "all.json")
    groups = json.loads((copies / "all.json").read_text())["groups"]
    names = [[member["name"] for member in group["members"]] for group in groups]
    assert names == [["03.png", "30.png"], ["05.png", "31.png", "32.png"]]
    expected = distance(folder / "05.png", folder / "31.png")
    tolerance = INDEX_TOLERANCE[torch.float32]
    assert groups[1]["members"][1]["lpips"] == pytest.approx(expected, rel=tolerance["rtol"], abs=tolerance["atol"])

    (folder / "31.png").unlink()
    done = run("duplicates", "sketches.index", *options, "left.json", processes=2, threads=1, status=1)
    assert done.stderr.count("31.png") == 1
    left = json.loads((copies / "left.json").read_text())["groups"]
    assert [[member["name"] for member in group["members"]] for group in left] == names[:1]


def test_images_that_are_gone_at_the_end(call, copies, trunk, monkeypatch):
    """Their distances are null in JSON and empty in CSV."""
    group = duplicates.Group([(0, 0), (0, 1)], [0.0, math.nan])
    monkeypatch.setattr(duplicates, "groups", lambda *arguments: [group])
    call("duplicates", "photos", "--json", "found.json", "--csv", "found.csv", *trunk, status=1)
    assert json.loads((copies / "found.json").read_text())["groups"][0]["members"][1]["lpips"] is None
    assert (copies / "found.csv").read_text().splitlines()[2] == "1,photos/01.png,"
    assert "photos/01.png 1 statistic" in call("duplicates", "photos", *trunk, status=1)


def test_processes_share_indexes_alone(call, copies, trunk, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = call("duplicates", "photos", *trunk, status=2)
    assert "torchrun shares the pairs of index files: make one, lpips-fast index photos -o FILE" in told


def test_an_index_without_names(call, copies, trunk, fn):
    images = torch.rand(3, 3, 32, 40)
    images[2] = images[0]
    Index.build(fn, images).save(copies / "python.index")
    call("duplicates", "python.index", "--below", 1e-4, "--json", "found.json", "--report", "page.html", *trunk)
    (group,) = json.loads((copies / "found.json").read_text())["groups"]
    assert [member["name"] for member in group["members"]] == ["0", "2"]
    assert "no picture" in (copies / "page.html").read_text()

    broken = Index.build(fn, images)
    broken.vectors[1, 0] = math.nan
    broken.save(copies / "broken.index")
    told = call("duplicates", "python.index", "broken.index", *trunk, status=2)
    assert "other must be finite, got NaN or infinite values in the sketch of image 1" in told
    assert "(index is python.index, other is broken.index; lpips-fast index FOLDER -o FILE --rebuild" in told


def test_the_page_of_groups(call, copies, trunk, distance):
    below = limit(distance, copies / "photos")
    (copies / "out").mkdir()
    call("duplicates", "photos", "--below", below, "--report", "out/page.html", *trunk, status=1)
    page = (copies / "out" / "page.html").read_text()
    assert "<title>Near-duplicates in photos</title>" in page
    assert re.findall("<h2>Group (.*?)</h2>", page) == ["2: 3 images", "1: 2 images"]
    links = re.findall('<a href="(.*?)"><img alt="(.*?)" src="data:image/jpeg', page)
    assert links == [(f"../photos/{name}.png", f"{name}.png") for name in ("05", "31", "32", "03", "30")]
    properties = re.findall('<th scope="row">(.*?)</th><td>(.*?)</td>', page)
    assert {("images in groups", "5"), ("size", "40x32"), ("normalize", "yes")} <= {*properties}


def test_a_page_without_its_images(call, copies, trunk, distance):
    """One line says which are missing, however many they are, and the status is 1."""
    below = limit(distance, copies / "photos")
    options = ("duplicates", "photos.index", "--below", below, "--report", "page.html", *trunk)
    call("index", "photos", "-o", "photos.index", *trunk, status=1)
    call(*options)
    moved = (copies / "photos").rename(copies / "moved")
    told = call(*options, status=1)
    assert f"the images of photos.index are not at {copies / 'photos'}, and page.html has no pictures of them" in told
    assert told.count(".png") == 5, "the table"
    page = (copies / "page.html").read_text()
    assert page.count("<figure><i>no picture</i>") == 5
    call(*options, "--folder", "moved")
    assert (copies / "page.html").read_text().count('<a href="moved/') == 5
    for name in ("30", "31", "32"):
        (moved / f"{name}.png").unlink()
    told = call(*options, "--folder", "moved", status=1)
    assert "not shown in page.html: no image file moved/31.png and 2 more" in told
    assert told.count("no image file") == 1
    (copies / "more").mkdir()
    save_noise(copies / "more" / "a.png", 0)
    assert "--folder is for an index, and more is a folder" in call(
        "duplicates", "photos.index", "more", "--folder", "moved", *trunk, status=2
    )
    shutil.copy(copies / "photos.index", copies / "other.index")
    told = call("duplicates", "photos.index", "other.index", "--folder", "moved", *trunk, status=2)
    assert "--folder is for one index alone" in told


def test_many_groups_on_the_screen(call, tmp_path, trunk):
    for i in range(23):
        for j in range(10 if i == 7 else 2):
            save_noise(tmp_path / "x" / f"{i:02d}.{j}.png", i)
    told = call("duplicates", "x", "--below", 1e-6, "--workers", 0, *trunk)
    assert told.startswith("image group LPIPS to the first x/07.0.png 8 0 x/07.1.png 8 ")
    assert "and 2 more 8" in told
    assert told.count(" x/") == 8 + 19 * 2
    assert "groups 23" in told


def test_wrong_usage(call, copies, trunk):
    for below in ("0", "-0.1", "nan", "inf"):
        assert "--below must be a finite number above 0" in call("duplicates", "photos", f"--below={below}", status=2)
    assert "no folder or index nowhere" in call("duplicates", "nowhere", *trunk, status=2)
    (copies / "link").symlink_to("photos")
    for same in ("photos", "./photos", "link"):
        told = call("duplicates", "photos", same, *trunk, status=2)
        assert f"photos and {same.removeprefix('./')} are the same: give one" in told
    (copies / "empty").mkdir()
    assert "empty has no images" in call("duplicates", "photos", "empty", *trunk, status=2)
    assert "11.png cannot be read" in call("duplicates", "photos", "--strict", *trunk, status=1)

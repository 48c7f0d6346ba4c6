"""`index` and `search`."""

from __future__ import annotations

import json
import shutil

import pytest

from .conftest import save_noise


@pytest.fixture
def photos(tmp_path):
    """20 images of one size, of which one is broken; the query is one of them, almost."""
    for i in range(20):
        save_noise(tmp_path / "photos" / f"{i:02d}.png", i)
    (tmp_path / "photos" / "11.png").write_bytes((tmp_path / "photos" / "11.png").read_bytes()[:500])
    shutil.copy(tmp_path / "photos" / "07.png", tmp_path / "query.png")
    return tmp_path


def test_index_and_search(run, call, photos, trunk, distance):
    done = run("search", "query.png", "photos", "-k", 3, "--json", "folder.json", *trunk, status=1)
    assert "11.png cannot be read" in done.stderr
    assert done.stdout.startswith("image\tLPIPS\n07.png\t")
    found = json.loads((photos / "folder.json").read_text())["results"]
    values = {
        f"{i:02d}.png": distance(photos / "query.png", photos / "photos" / f"{i:02d}.png") for i in range(20) if i != 11
    }
    assert [row["name"] for row in found] == sorted(values, key=values.get)[:3]
    assert [row["lpips"] for row in found] == pytest.approx([values[row["name"]] for row in found], rel=1e-3, abs=1e-6)

    assert "19 images: photos.index" in call("index", "photos", "-o", "photos.index", *trunk, status=1)
    call("search", "query.png", "photos.index", "-k", 3, "--json", "index.json", *trunk)
    assert json.loads((photos / "index.json").read_text())["results"] == found

    save_noise(photos / "wide.png", 0, width=50)
    told = call("search", "wide.png", "photos.index", *trunk, status=2)
    assert "images of 32 x 40 pixels, the queries are of 32 x 50" in told
    assert "build it again" in call("search", "query.png", "photos.index", *trunk, "--version", "0.0", status=2)
    assert "an index has its size" in call("search", "query.png", "photos.index", "--size", "64x64", *trunk, status=2)
    assert "no index nowhere" in call("search", "query.png", "nowhere", *trunk, status=2)
    assert "cannot be read as an index" in call("search", "query.png", "query.png", *trunk, status=2)
    assert "no image file nowhere.png" in call("search", "nowhere.png", "photos", *trunk, status=1)
    assert "11.png cannot be read" in call("index", "photos", "-o", "strict.index", "--strict", *trunk, status=1)
    assert not (photos / "strict.index").exists()


def test_sizes(call, photos, trunk):
    save_noise(photos / "photos" / "wide.png", 0, width=50)
    save_noise(photos / "wide.png", 0, width=50)
    assert "of 2 sizes" in call("index", "photos", "-o", "photos.index", *trunk, status=2)
    call("index", "photos", "-o", "photos.index", "--size", "48x40", *trunk, status=1)
    name, value = call("search", "wide.png", "photos.index", "-k", 1, *trunk).split()[-2:]
    assert name == "wide.png"
    assert float(value) < 1e-6

"""`search`, in folders and in what `index` writes."""

from __future__ import annotations

import json

import pytest
import torch

from lpips_fast import im2tensor, load_image
from lpips_fast.search import Index
from tests.support.image_files import save_noise
from tests.support.tolerances import EQUAL_IMAGES_TOLERANCE, INDEX_TOLERANCE


def test_index_and_search(run, call, photos, trunk, distance):
    done = run("search", "query.png", "photos", "-k", 3, "--json", "folder.json", *trunk, status=1)
    assert "11.png cannot be read" in done.stderr
    assert done.stdout.startswith("image\tLPIPS\n07.png\t")
    found = json.loads((photos / "folder.json").read_text())["results"]
    values = {
        f"{i:02d}.png": distance(photos / "query.png", photos / "photos" / f"{i:02d}.png") for i in range(20) if i != 11
    }
    assert [row["name"] for row in found] == sorted(values, key=values.get)[:3]
    tolerance = INDEX_TOLERANCE[torch.float32]
    assert [row["lpips"] for row in found] == pytest.approx(
        [values[row["name"]] for row in found], rel=tolerance["rtol"], abs=tolerance["atol"]
    )

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


def test_the_range_of_pixels_is_that_of_the_index(call, photos, trunk, distance):
    nearest = ("search", "query.png", "raw.index", "-k", 2, "--json", "found.json", *trunk)
    call("index", "photos", "-o", "raw.index", "--no-normalize", "--workers", 0, *trunk, status=1)
    call(*nearest, "--no-normalize")
    found = json.loads((photos / "found.json").read_text())["results"]
    name = found[1]["name"]
    told = call("pair", "query.png", f"photos/{name}", "--no-normalize", "--json", "pair.json", *trunk)
    expected = json.loads((photos / "pair.json").read_text())["lpips"]
    assert found[1]["lpips"] == pytest.approx(expected, rel=INDEX_TOLERANCE[torch.float32]["rtol"]), told
    assert "raw.index was made with --no-normalize" in call(*nearest, status=2)
    call("index", "photos", "-o", "photos.index", "--workers", 0, *trunk, status=1)
    told = call("search", "query.png", "photos.index", "--no-normalize", *trunk, status=2)
    assert "photos.index was made without --no-normalize" in told


def test_an_index_from_python(call, photos, trunk, fn):
    """In either range of pixels."""
    image = im2tensor(load_image(photos / "photos" / "05.png"))
    query = ("search", "photos/05.png", "python.index", "-k", 1, *trunk)
    for normalize in (False, True):
        Index.build(fn, (image + 1) / 2 if normalize else image, normalize=normalize).save(photos / "python.index")
        name, value = call(*query).split()[-2:]
        assert name == "0"  # it has no names
        assert float(value) < EQUAL_IMAGES_TOLERANCE
        assert "made without --no-normalize" in call(*query, "--no-normalize", status=2)


def test_other_files_and_options(call, photos, trunk, fn):
    Index.build(fn, torch.rand(3, 3, 32, 40)).save(photos / "small.index")
    content = (photos / "small.index").read_bytes()
    assert b"[32, 40]" in content
    (photos / "huge.index").write_bytes(content.replace(b"[32, 40]", b"[3e9, 9]"))
    told = call("search", "query.png", "huge.index", *trunk, status=2)
    assert "huge.index cannot be read as an index: size must be height and width" in told
    pytest.importorskip("faiss")
    for factory in ("nonsense", "IDMap,Flat", "NSG32", "HNSW1"):
        command = ("search", "query.png", "photos", "--faiss", factory, "--json", "found.json", *trunk)
        assert "faiss must be a factory string" in call(*command, status=2)
        assert not (photos / "found.json").exists()

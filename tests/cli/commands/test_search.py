"""`search`, in folders and in what `index` writes."""

from __future__ import annotations

import json
import math
import os
import re

import pytest
import torch
from safetensors import safe_open

from lpips_fast import im2tensor, load_image
from lpips_fast.search import Index
from lpips_fast.sketch import Sketch
from tests.support.image_files import save_noise
from tests.support.indexes import rewrite
from tests.support.threads import threads
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
    assert "an index has its size" in call("search", "query.png", "photos.index", "--size", "64x64", *trunk, status=2)
    assert "no folder or index nowhere" in call("search", "query.png", "nowhere", *trunk, status=2)
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
    assert "photos.index was made with --normalize, and is used with --no-normalize: use it likewise" in told


def test_options_of_the_index_are_those_of_the_search(call, photos, trunk, trunk_states, cached_trunk):
    call("index", "photos", "-o", "photos.index", "--workers", 0, *trunk, status=1)
    likewise = ("search", "query.png", "photos.index", *trunk)
    assert "07.png" in call(*likewise, "--precision", "float32")
    torch.save({k: v + 0.01 for k, v in trunk_states["squeeze"].items()}, photos / "other.pth")
    for words, made, used in (
        (("--precision", "bfloat16"), "--precision float32", "--precision bfloat16"),
        (("--version", "0.0"), "--version 0.1", "--version 0.0"),
        (("--net", "alex", "--trunk-weights", cached_trunk("alex")), "--net squeeze", "--net alex"),
        (("--background", "black"), "--background 'white'", "--background 'black'"),
    ):
        told = call(*likewise, *words, status=2)
        assert f"made with {made}, and is used with {used}: use it likewise, or lpips-fast index FOLDER -o" in told
    told = call(*likewise, "--trunk-weights", "other.pth", status=2)
    weights = r"with trunk weights (\w{8}) \(--trunk-weights\), and is used with trunk weights (?!\1)\w{8} "
    assert re.search(weights, told)


def test_an_index_from_python(call, photos, trunk, fn):
    """In either range of pixels."""
    image = im2tensor(load_image(photos / "photos" / "05.png"))
    query = ("search", "photos/05.png", "python.index", "-k", 1, *trunk)
    for normalize in (False, True):
        Index.build(fn, (image + 1) / 2 if normalize else image, normalize=normalize).save(photos / "python.index")
        name, value = call(*query).split()[-2:]
        assert name == "0"  # it has no names
        assert float(value) < EQUAL_IMAGES_TOLERANCE
        assert "made with --normalize" in call(*query, "--no-normalize", status=2)


def test_other_files_and_options(call, photos, trunk, fn):
    Index.build(fn, torch.rand(3, 3, 32, 40)).save(photos / "small.index")
    content = (photos / "small.index").read_bytes()
    assert b"[32, 40]" in content
    (photos / "huge.index").write_bytes(content.replace(b"[32, 40]", b"[3e9, 9]"))
    told = call("search", "query.png", "huge.index", *trunk, status=2)
    assert "huge.index cannot be read as an index: size must be height and width" in told
    assert "(lpips-fast index makes an index of a folder, with --rebuild in the place of a damaged one)" in told
    pytest.importorskip("faiss")
    for factory in ("nonsense", "IDMap,Flat", "NSG32", "HNSW1"):
        command = ("search", "query.png", "photos", "--faiss", factory, "--json", "found.json", *trunk)
        assert "faiss must be a factory string" in call(*command, status=2)
        assert not (photos / "found.json").exists()


@pytest.fixture
def sketched(call, photos, trunk):
    """The index of the photos, of sketches."""
    (photos / "photos" / "11.png").unlink()
    call("index", "photos", "-o", "photos.index", "--sketch", 256, "--workers", 0, *trunk)
    return photos


def results(folder):
    return json.loads((folder / "found.json").read_text())


def test_an_index_of_sketches(call, sketched, trunk):
    """Its distances are LPIPS, from the images, or by --estimate those of the sketches."""
    nearest = ("search", "query.png", "photos.index", "-k", 19, "--json", "found.json", *trunk)
    call("index", "photos", "-o", "whole.index", "--workers", 0, *trunk)
    call(*(word if word != "photos.index" else "whole.index" for word in nearest))
    expected = results(sketched)["results"]
    assert call(*nearest).startswith("image LPIPS 07.png")
    found = results(sketched)
    assert found["estimated"] is False
    assert [row["name"] for row in found["results"]] == [row["name"] for row in expected]
    tolerance = INDEX_TOLERANCE[torch.float16]
    assert [row["lpips"] for row in found["results"]] == pytest.approx(
        [row["lpips"] for row in expected], rel=tolerance["rtol"], abs=tolerance["atol"]
    )

    (sketched / "photos").rename(sketched / "moved")
    told = call(*nearest, status=2)
    assert "is not there" in told
    assert "notes the new place, or --folder says it; --estimate needs no images" in told
    call(*nearest, "--folder", "moved")
    assert results(sketched) == found
    assert call(*nearest, "--csv", "found.csv", "--estimate").startswith("image LPIPS (estimate) 07.png")
    estimated = results(sketched)
    assert estimated["estimated"] is True
    estimates = {row["name"]: row["lpips_estimate"] for row in estimated["results"]}
    assert (sketched / "found.csv").read_text().startswith("rank,name,lpips_estimate\n1,07.png,")
    values = {row["name"]: row["lpips"] for row in expected}
    spread = Sketch(256).spread
    assert all(0 < abs(estimates[name] / values[name] - 1) < 5 * spread for name in values if name != "07.png")


def test_a_damaged_index(call, sketched, trunk):
    """What is wrong, in which file, and what to do."""
    with safe_open(sketched / "photos.index", "pt") as file:
        sketches = file.get_tensor("sketches")
    sketches[3, 0] = math.nan
    rewrite(sketched / "photos.index", {"sketches": sketches})
    told = call("search", "query.png", "photos.index", *trunk, status=2)
    assert "photos.index: images must be finite" in told
    assert "(it is damaged; lpips-fast index FOLDER -o photos.index makes" in told
    call("index", "photos", "-o", "photos.index", "--workers", 0, *trunk)
    assert "07.png" in call("search", "query.png", "photos.index", *trunk)


def test_options_that_do_not_fit(call, sketched, trunk):
    call("index", "photos", "-o", "whole.index", "--workers", 0, *trunk)
    for words, why in (
        (("photos", "--estimate"), "--estimate is for an index, and photos is a folder"),
        (("photos", "--folder", "photos"), "--folder is for an index, and photos is a folder"),
        (("whole.index", "--estimate"), "--estimate is for an index of sketches, and whole.index keeps whole vectors"),
        (("whole.index", "--folder", "photos"), "--folder is for an index of sketches, and whole.index keeps whole"),
    ):
        assert why in call("search", "query.png", *words, *trunk, status=2)


def test_images_that_are_gone_or_changed(call, sketched, trunk):
    """The next ones take the place of one that is gone."""
    nearest = ("search", "query.png", "photos.index", "-k", 2, "--json", "found.json", *trunk)
    call(*nearest)
    second = results(sketched)["results"][1]["name"]
    (sketched / "photos" / "07.png").unlink()
    os.utime(sketched / "photos" / second, ns=(0, 0))
    told = call(*nearest, status=1)
    assert "no image file" in told
    assert "changed since photos.index was made" in told
    found = [row["name"] for row in results(sketched)["results"]]
    assert found[0] == second
    assert len(found) == 2


def test_several_processes_find_the_same(run, call, sketched, trunk):
    nearest = ("search", "query.png", "photos.index", "-k", 5, "--json", "found.json", *trunk)
    with threads(1):  # as torchrun's processes have
        call(*nearest)
    expected = (sketched / "found.json").read_bytes()
    done = run(*nearest, processes=2)
    assert (sketched / "found.json").read_bytes() == expected
    assert done.stdout.count("07.png") == 1


def test_what_one_process_does(call, sketched, trunk, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = call("search", "query.png", "photos", *trunk, status=2)
    assert "make one, lpips-fast index photos -o FILE" in told
    told = call("search", "query.png", "photos.index", "--faiss", "Flat", *trunk, status=2)
    assert "--faiss is one process's work" in told

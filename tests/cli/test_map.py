"""`map` and plots: odd names of files, and the scale."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from lpips_fast import load_image
from lpips_fast.cli.drawing import one_line
from tests.support.image_files import save_noise
from tests.support.tolerances import MAP_MEAN_TOLERANCE, REORDERED_TOLERANCE

ODD = ("new\nline.png", os.fsdecode(b"b\xe9.png"), "tab\t $x^$ name.png", "\N{SNOWMAN}.png")


def test_one_line():
    assert [one_line(name) for name in ODD[:2]] == ["new\\nline.png", "b\\udce9.png"]
    assert one_line("a \N{SNOWMAN} é $.png") == "a \N{SNOWMAN} é $.png"


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_map_of_oddly_named_images(call, trunk, tmp_path, name):
    save_noise(tmp_path / name, 0)
    call("map", name, name, "-o", "map.png", *trunk)
    assert Image.open(tmp_path / "map.png").size[0] > 3 * 224


def test_heatmap_of_oddly_named_images(run, trunk, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    for i, name in enumerate(ODD):
        save_noise(tmp_path / "x" / name, i)
    run("matrix", "x", "--heatmap", "heat.png", *trunk)
    assert min(Image.open(tmp_path / "heat.png").size) > 400


@pytest.mark.parametrize("top", ["0", "-1", "nan", "inf"])
def test_max_must_be_a_distance(mistake, trunk, tmp_path, top):
    save_noise(tmp_path / "a.png", 0)
    told = mistake("map", "a.png", "a.png", "-o", "map.png", "--max", top, *trunk)
    assert f"--max must be a distance above 0, got {top}" in told
    assert not (tmp_path / "map.png").exists()


def test_max_is_the_scale(call, trunk, tmp_path):
    for i, name in enumerate(("a.png", "b.png")):
        save_noise(tmp_path / name, i, width=240, height=64)
    shown = []
    for options in ((), ("--max", "1e-6"), ("--max", "100")):
        call("map", "a.png", "b.png", "-o", "map.png", *options, *trunk)
        shown.append(np.array(Image.open(tmp_path / "map.png"))[-64:, 2 * 248 + 8 : 3 * 248].mean())
    assert shown[2] < shown[0] < shown[1]


def test_a_mask_weights_the_map_and_its_mean(call, measure, trunk, tmp_path):
    for i, name in enumerate(("a.png", "b.png")):
        save_noise(tmp_path / name, i, width=300, height=64)
    mask = np.zeros((64, 300), np.uint8)
    mask[:, 160:], mask[:, 220:] = 255, 102
    Image.fromarray(mask).save(tmp_path / "mask.png")
    call("map", "a.png", "b.png", "-o", "map.png", "--mask", "mask.png", "--layers", "--json", "map.json", *trunk)
    found = json.loads((tmp_path / "map.json").read_text())
    assert found["settings"]["mask"] == "mask.png"
    expected = measure(load_image(tmp_path / "a.png"), load_image(tmp_path / "b.png"), mask)
    assert found["mean"] == pytest.approx(expected, rel=MAP_MEAN_TOLERANCE)
    assert sum(layer["mean"] for layer in found["layers"]) == pytest.approx(found["mean"], rel=REORDERED_TOLERANCE)
    rows = np.array(Image.open(tmp_path / "map.png"))[:, 2 * 308 + 8 : 3 * 308]
    top = np.flatnonzero((rows[:, 160:].std(axis=(1, 2)) > 5) & (rows[:, :160] == rows[:, :1]).all(axis=(1, 2)))
    shown = rows[top[0] : top[0] + 64].astype(float)
    assert shown[:, :160].max() <= shown[:, 220:].mean() / 4, "the map is black where nothing counts"

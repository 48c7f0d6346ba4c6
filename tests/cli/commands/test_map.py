"""`map`: the picture, its scale, masks, and odd names of files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lpips_fast import load_image
from tests.support.image_files import ODD_NAMES, save_noise
from tests.support.tolerances import MAP_MEAN_TOLERANCE, REORDERED_TOLERANCE


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_map_of_oddly_named_images(call, trunk, tmp_path, name):
    save_noise(tmp_path / name, 0)
    call("map", name, name, "-o", "map.png", *trunk)
    assert Image.open(tmp_path / "map.png").size[0] > 3 * 224


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


def test_map(run, trunk, distance, tmp_path):
    save_noise(tmp_path / "a.png", 0, width=300, height=64)
    pixels = np.array(Image.open(tmp_path / "a.png"))
    pixels[:, 200:] = 255 - pixels[:, 200:]
    Image.fromarray(pixels).save(tmp_path / "b.png")
    run("map", "a.png", "b.png", "-o", "map.png", "--layers", "--json", "map.json", *trunk)
    found = json.loads((tmp_path / "map.json").read_text())
    assert found["mean"] == pytest.approx(distance(tmp_path / "a.png", tmp_path / "b.png"), rel=MAP_MEAN_TOLERANCE)
    assert len(found["layers"]) == 7
    assert sum(layer["mean"] for layer in found["layers"]) == pytest.approx(found["mean"], rel=REORDERED_TOLERANCE)
    picture = np.array(Image.open(tmp_path / "map.png")).astype(int)
    assert picture.shape[1] > 7 * 300
    top = int(
        np.flatnonzero((picture[:, 8:308] != 255).any(axis=(1, 2)) & (picture[:, 8:308].std(axis=(1, 2)) > 60))[0]
    )
    shown = picture[top : top + 64, 2 * 308 + 8 : 3 * 308]
    assert shown[:, :100].sum() < 0.5 * shown[:, 200:].sum(), "the map is dark where the images are alike"

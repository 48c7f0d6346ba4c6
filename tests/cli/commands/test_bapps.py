"""`bapps`: the folder that it makes, and its judge."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lpips_fast.bapps import JNDDataset, TwoAFCDataset, give_taste
from lpips_fast.weights.files import read_state_dict, save_state_dict
from lpips_fast.weights.published import linear_state_dict


@pytest.fixture
def make(call, tmp_path, trunk):
    """Makes a small data set with options; returns its folder and the weights of its judge."""

    def make(name, *options):
        told = call("bapps", "--synthesize", name, "--triplets", 4, *options, *trunk)
        assert told.endswith(f"4 triplets to train with: {name}")
        return tmp_path / name, read_state_dict(tmp_path / name / "judge.safetensors")

    return make


def test_numbers_of_samples(judged):
    folder = judged / "judged"
    assert len(TwoAFCDataset(folder, ["train/synthetic"])) == 40
    assert len(TwoAFCDataset(folder, ["val/synthetic"])) == 10
    assert len(JNDDataset(folder, ["val/synthetic"])) == 10


def test_the_judge_has_the_given_weights_or_random_ones(make, make_ours, tmp_path):
    def assert_equal(found, expected):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    for seed in (0, 1):
        fn = make_ours("squeeze")
        give_taste(fn, seed)
        assert_equal(make(f"random{seed}", "--seed", seed)[1], linear_state_dict(fn.linear_weights()))
    twice = linear_state_dict(2 * w for w in make_ours("squeeze").linear_weights())
    save_state_dict(tmp_path / "twice.safetensors", twice)
    assert_equal(make("given", "--weights", "twice.safetensors")[1], twice)


def test_patches_of_given_images(make, tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.new("RGB", (80, 70), (200, 30, 90)).save(tmp_path / "photos" / name)
    folder, _ = make("flat", "--images", "photos")
    references = [Image.open(path).getcolors() for path in folder.rglob("ref/*.png")]
    assert references == [[(64 * 64, (200, 30, 90))]] * 5


def test_mistakes(judged, call, trunk):
    assert "is there already" in call("bapps", "--synthesize", "judged", *trunk, status=2)
    (judged / "file").write_text("no folder")
    assert "file/a" in call("bapps", "--synthesize", "file/a/b", *trunk, status=3)
    (judged / "photos").mkdir()
    (judged / "photos" / "a.png").write_bytes(b"\x89PNG")
    assert "a.png cannot be read" in call("bapps", "--synthesize", "b", "--images", "photos", *trunk, status=1)
    assert "--triplets" in call("bapps", "--synthesize", "b", "--triplets", 3, *trunk, status=2)
    Image.new("RGB", (63, 80)).save(judged / "photos" / "a.png")
    told = call("bapps", "--synthesize", "b", "--images", "photos", *trunk, status=2)
    assert "a.png must be at least 64 x 64 pixels, it is 63 x 80" in told
    for option in ("--batch-size=4", "--strict", "--no-normalize"):
        assert "No such option" in call("bapps", "--synthesize", "b", option, *trunk, status=2)
    assert not (judged / "b").exists()

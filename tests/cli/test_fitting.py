"""How images come to one size: `--resize`, `--crop`, `--crop-border`."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lpips_fast
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.fitting import Fit, same_shape
from lpips_fast.images import resize_image
from tests.support.image_files import save_noise
from tests.support.tolerances import MAP_MEAN_TOLERANCE, REORDERED_TOLERANCE


@pytest.fixture
def images(tmp_path):
    """A and B of two sizes, as files and as arrays."""
    save_noise(tmp_path / "a" / "x.png", 0, 60, 50)
    save_noise(tmp_path / "b" / "x.png", 1, 56, 53)
    return [lpips_fast.load_image(tmp_path / side / "x.png") for side in "ab"]


@pytest.mark.parametrize(
    "options, fitted",
    [
        (("--resize",), lambda a, b: (a, resize_image(b, 60, 50))),
        (("--crop",), lambda a, b: (a[:50, :56], b[:50, :56])),
        (("--crop", "--crop-border", 3), lambda a, b: (a[3:47, 3:53], b[3:47, 3:53])),
        (("--resize", "--crop-border", 3), lambda a, b: (a[3:47, 3:57], resize_image(b, 60, 50)[3:47, 3:57])),
    ],
    ids=lambda case: " ".join(map(str, case)) if isinstance(case, tuple) else "",
)
def test_every_command_fits_alike(call, measure, images, trunk, tmp_path, options, fitted):
    value = measure(*fitted(*images))
    said = {"resize": "--resize" in options, "crop": "--crop" in options, "crop_border": 3 if 3 in options else 0}

    def document(*arguments):
        call(*arguments, *options, "--json", "out.json", *trunk)
        found = json.loads((tmp_path / "out.json").read_text())
        assert {key: found["settings"][key] for key in said} == said
        return found

    assert document("pair", "a/x.png", "b/x.png")["lpips"] == pytest.approx(value, rel=REORDERED_TOLERANCE)
    for command in ("dirs", "video"):
        [row] = document(command, "a", "b")["results"]
        assert row["lpips"] == pytest.approx(value, rel=REORDERED_TOLERANCE)
    found = document("map", "a/x.png", "b/x.png", "-o", "map.png")
    assert found["mean"] == pytest.approx(value, rel=MAP_MEAN_TOLERANCE)


def test_sizes_of_images_and_a_mask():
    a, b, mask = np.zeros((50, 60, 3), np.uint8), np.zeros((53, 56, 3), np.uint8), np.zeros((52, 58), np.uint8)
    named = (("a", a), ("b", b), ("mask", mask))
    assert [image.shape[:2] for image in Fit(crop=True)(*named)] == [(50, 56)] * 3
    assert [image.shape[:2] for image in Fit(resize=True, crop_border=2)(*named)] == [(46, 56)] * 3
    with pytest.raises(ReadError, match=r"sizes differ: a is 60 x 50, b 56 x 53 \(--resize or --crop makes them equal"):
        Fit()(*named)
    with pytest.raises(ReadError, match=r"sizes differ: a is 60 x 50, mask 58 x 52 \(--resize makes them equal"):
        Fit()(("a", a), ("b", a), ("mask", mask))


@pytest.mark.parametrize("height, width", [(49, 60), (53, 55), (40, 40)])
def test_a_mask_smaller_than_the_images_crops_nothing(height, width):
    a, b, mask = np.zeros((50, 60, 3), np.uint8), np.zeros((53, 56, 3), np.uint8), np.zeros((height, width), np.uint8)
    told = f"the mask m.png is {width} x {height}, smaller than the 56 x 50 pixels that A and B are cropped to"
    with pytest.raises(ReadError, match=told):
        Fit(crop=True, crop_border=2)(("a", a), ("b", b), ("m.png", mask))
    assert Fit(resize=True)(("a", a), ("b", b), ("m.png", mask))[2].shape == (50, 60)


@pytest.mark.parametrize("border, left", [(24, 2), (25, 0), (10**30, 0)])
def test_a_border_that_is_all_there_is(border, left):
    image = np.zeros((50, 60, 3), np.uint8)
    fit = Fit(crop_border=border)
    if left:
        assert fit(("a", image))[0].shape == (left, left + 10, 3)
    else:
        with pytest.raises(ReadError, match=f"--crop-border {border} leaves nothing of a, 60 x 50 pixels"):
            fit(("a", image))


@pytest.mark.parametrize(
    "size0, size1, same",
    [
        ((1920, 1080), (480, 270), True),
        ((101, 76), (26, 19), True),  # a quarter, rounded up and down
        ((1000, 1000), (1000, 1001), True),
        ((854, 480), (1280, 720), True),
        ((1024, 768), (1920, 1080), False),
        ((1080, 1920), (1920, 1080), False),
        ((60, 50), (56, 53), False),
        ((60, 50), (60, 52), False),
    ],
)
def test_which_sizes_have_one_aspect_ratio(size0, size1, same):
    assert same_shape(size0, size1) is same_shape(size1, size0) is same


@pytest.mark.parametrize("workers", [0, 2])
def test_a_changed_aspect_ratio_is_told_once(call, images, trunk, tmp_path, workers):
    for i in range(9):
        save_noise(tmp_path / "a" / f"x{i}.png", i, 60, 50)
        save_noise(tmp_path / "b" / f"x{i}.png", i, *((56, 53) if i < 3 else (30, 25)))
    told = call("dirs", "a", "b", "--resize", "--workers", workers, *trunk)
    expected = "b/x.png and 3 more: --resize changes the aspect ratio, from 56 x 53 to 60 x 50 (--crop keeps it)"
    assert expected in told
    assert told.count("aspect") == 1
    assert "aspect" not in call("dirs", "a", "b", "--crop", *trunk)


def test_commands_tell_of_a_changed_aspect_ratio(call, images, trunk, tmp_path):
    expected = ": --resize changes the aspect ratio, from 56 x 53 to 60 x 50"
    for arguments, name in (
        (("pair", "a/x.png", "b/x.png"), "b/x.png"),
        (("map", "a/x.png", "b/x.png", "-o", "map.png"), "b/x.png"),
        (("video", "a", "b"), "b frame 0"),
    ):
        assert name + expected in call(*arguments, "--resize", *trunk)
    assert "b/x.png" + expected in call("pair", "a/x.png", "a/x.png", "--mask", "b/x.png", "--resize", *trunk)
    save_noise(tmp_path / "half.png", 0, 30, 25)
    assert "aspect" not in call("pair", "a/x.png", "half.png", "--resize", *trunk)


def test_mistakes(mistake, images, trunk, tmp_path):
    with pytest.raises(UsageError, match="--resize and --crop"):
        Fit(resize=True, crop=True)
    for arguments in (
        ("pair", "a/x.png", "b/x.png"),
        ("map", "a/x.png", "b/x.png", "-o", "o.png"),
        ("dirs", "a", "b"),
        ("video", "a", "b"),
    ):
        told = mistake(*arguments, "--resize", "--crop", "--trunk-weights", "nowhere.pth")
        assert "--resize and --crop are two ways to one size" in told
        assert "--crop-border" in mistake(*arguments, "--crop-border", -1)
    told = mistake("pair", "a/x.png", "a/x.png", "--crop-border", 25, *trunk, status=1)
    assert "--crop-border 25 leaves nothing of a/x.png, 60 x 50 pixels" in told
    told = mistake("dirs", "a", "a", "--crop-border", 25, *trunk, status=1)
    assert "x.png: --crop-border 25 leaves nothing of a/x.png" in told
    told = mistake("video", "a", "a", "--crop-border", 25, *trunk, status=1)
    assert "frame 0: --crop-border 25 leaves nothing of a, 60 x 50 pixels" in told

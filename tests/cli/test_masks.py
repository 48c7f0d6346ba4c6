"""`--mask`: which mask belongs to an image, and the weights that it gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

import lpips_fast
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.masks import ALPHA, find_masks, parse_mask
from lpips_fast.images import resize_image
from tests.support.image_files import save_noise, soft_disc
from tests.support.tolerances import REORDERED_TOLERANCE


def test_masks(tmp_path):
    for name in ("1.png", "sub/2.bmp", "more.png"):
        save_noise(tmp_path / "masks" / name, 0)
    masks = tmp_path / "masks"
    names = [Path("1.png"), Path("sub/2.png"), Path("3.png")]
    assert find_masks(None, names) == [None] * 3
    assert find_masks(ALPHA, names) == [ALPHA] * 3
    assert find_masks(f"{masks}/1.png", names) == [masks / "1.png"] * 3
    assert find_masks(str(masks), names) == [masks / "1.png", masks / "sub" / "2.bmp", masks / "3.*"]
    with pytest.raises(UsageError, match=r"masks has no mask, or more than one, named as an image in A, e\.g\. 3\.png"):
        find_masks(str(masks), names[2:])
    with pytest.raises(ReadError, match=r"--mask: no image file .*nowhere"):
        find_masks(f"{tmp_path}/nowhere", names)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ReadError, match=r"--mask: .*text\.png cannot be read"):
        find_masks(f"{tmp_path}/text.png", names)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("alpha", "alpha"),
        ("./alpha", "./alpha"),
        ("alpha/", "./alpha"),
        ("masks/", "masks"),
        ("./masks//x.png", "masks/x.png"),
        ("alpha/x.png", "alpha/x.png"),
    ],
)
def test_text_of_a_mask(text, expected):
    """A folder has one text, however it is written, so that `--resume` works; and never the text of the channel."""
    assert parse_mask(text) == expected


@pytest.fixture
def masked(call, trunk, tmp_path):
    """Saves two images of 40 x 32, and gives their distance with a mask by `pair`."""
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "b.png", 1)

    def masked(mask, *options) -> float:
        call("pair", "a.png", "b.png", "--mask", mask, *options, "--json", "out.json", *trunk)
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["settings"]["mask"] == str(mask)
        assert sum(found["layers"]) == pytest.approx(found["lpips"], rel=REORDERED_TOLERANCE)
        return found["lpips"]

    return masked


def load(path) -> np.ndarray:
    return lpips_fast.load_image(path)


def test_mask_weights_the_mean(masked, measure, tmp_path):
    mask = soft_disc(32, 40)
    Image.fromarray(mask).save(tmp_path / "masks.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).convert("RGB").save(tmp_path / "masks" / "a.bmp")
    a, b = load(tmp_path / "a.png"), load(tmp_path / "b.png")
    expected = measure(a, b, mask)
    assert expected != pytest.approx(measure(a, b), rel=1e-3)
    assert masked("masks.png") == pytest.approx(expected, rel=REORDERED_TOLERANCE)
    assert masked("masks") == pytest.approx(expected, rel=REORDERED_TOLERANCE)
    Image.fromarray(np.full((32, 40), 255, np.uint8)).save(tmp_path / "white.png")
    assert masked("white.png") == pytest.approx(measure(a, b), rel=REORDERED_TOLERANCE)


@pytest.mark.parametrize("options", [("--crop", "--crop-border", 2), ("--resize", "--crop-border", 2)])
def test_mask_is_fitted_as_the_images_are(masked, measure, tmp_path, options):
    save_noise(tmp_path / "b.png", 1, 36, 37)
    large = soft_disc(48, 44)
    Image.fromarray(large).save(tmp_path / "mask.png")
    a, b = load(tmp_path / "a.png"), load(tmp_path / "b.png")
    if "--crop" in options:
        images = [image[2:30, 2:34] for image in (a, b, large)]
    else:
        images = [image[2:30, 2:38] for image in (a, *(resize_image(image, 40, 32) for image in (b, large)))]
    assert masked("mask.png", *options) == pytest.approx(measure(*images), rel=REORDERED_TOLERANCE)


def test_a_folder_called_alpha(call, masked, measure, mistake, trunk, tmp_path):
    """`alpha` alone is the channel, and the images have none."""
    mask = soft_disc(32, 40)
    (tmp_path / "alpha").mkdir()
    Image.fromarray(mask).save(tmp_path / "alpha" / "a.png")
    expected = pytest.approx(measure(load(tmp_path / "a.png"), load(tmp_path / "b.png"), mask), rel=REORDERED_TOLERANCE)
    for folder in ("./alpha", "alpha/"):
        for command in (("pair", "a.png", "b.png"), ("map", "a.png", "b.png", "-o", "map.png")):
            call(*command, "--mask", folder, "--json", "out.json", *trunk)
            assert json.loads((tmp_path / "out.json").read_text())["settings"]["mask"] == "./alpha"
        assert masked("./alpha") == expected
    assert "a.png has no alpha channel" in mistake("pair", "a.png", "b.png", "--mask", "alpha", *trunk, status=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_alpha_is_that_of_the_reference(masked, measure, tmp_path, mode):
    alpha = soft_disc(32, 40)
    opaque = Image.open(tmp_path / "a.png")
    opaque.putalpha(Image.fromarray(alpha))
    if mode in ("P", "I;16"):
        alpha = np.where(np.arange(40) < 20, 0, 255).astype(np.uint8) * np.ones((32, 1), np.uint8)
        values = alpha if mode == "P" else alpha.astype(np.uint16) + 0x1234
        Image.fromarray(values).convert(mode).save(tmp_path / "a.png", transparency=int(values.min()))
    else:
        opaque.convert(mode).save(tmp_path / "a.png")
    expected = measure(load(tmp_path / "a.png"), load(tmp_path / "b.png"), alpha)
    assert masked("alpha") == pytest.approx(expected, rel=REORDERED_TOLERANCE)


def test_a_mask_is_turned_as_it_is_viewed_and_is_0_where_transparent(masked, measure, tmp_path):
    mask = soft_disc(32, 40)
    mask[:8] = 0
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(mask))).save(tmp_path / "turned.png", exif=turned)
    white = Image.new("L", (40, 32), "white")
    white.putalpha(Image.fromarray(mask))
    white.save(tmp_path / "clear.png")
    expected = measure(load(tmp_path / "a.png"), load(tmp_path / "b.png"), mask)
    assert masked("turned.png") == pytest.approx(expected, rel=REORDERED_TOLERANCE)
    assert masked("clear.png") == pytest.approx(expected, rel=REORDERED_TOLERANCE)
    both = np.rot90(np.dstack([load(tmp_path / "a.png"), mask]))
    Image.fromarray(np.ascontiguousarray(both)).save(tmp_path / "a.png", exif=turned)
    expected = measure(load(tmp_path / "a.png"), load(tmp_path / "b.png"), mask)
    assert masked("alpha") == pytest.approx(expected, rel=REORDERED_TOLERANCE)


def test_masks_that_are_none(mistake, trunk, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    pair = ("pair", "a.png", "a.png", *trunk, "--mask")
    told = mistake(*pair, "alpha", status=1)
    assert "a.png has no alpha channel, and --mask alpha takes that of A, the reference" in told
    assert "--mask: no image file nowhere.png" in mistake(*pair, "nowhere.png", status=1)
    save_noise(tmp_path / "wide.png", 1, width=50)
    assert "a.png is 40 x 32, wide.png 50 x 32" in mistake(*pair, "wide.png", status=1)
    border = np.full((32, 40), 255, np.uint8)
    border[2:-2, 2:-2] = 0
    Image.fromarray(border).save(tmp_path / "border.png")
    told = mistake(*pair, "border.png", "--crop-border", 2, status=1)
    assert "border.png: the mask is 0 in every pixel compared, so there is no mean" in told
    (tmp_path / "empty").mkdir()
    assert "empty has no images" in mistake(*pair, "empty")
    Image.fromarray(np.zeros((32, 40), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.zeros((32, 40), np.int32)).save(tmp_path / "int.tif")
    for name, mode in (("float.tif", "F"), ("int.tif", "I")):
        told = mistake(*pair, name, status=1)
        assert f"{name} cannot be read as an image: a mask of 32 bits (mode '{mode}') has no set white: save" in told
    save_noise(tmp_path / "small.png", 1, width=36)
    told = mistake(*pair, "small.png", "--crop", status=1)
    assert "the mask small.png is 36 x 32, smaller than the 40 x 32 pixels that A and B are cropped to" in told


@pytest.mark.parametrize("depth", ["png", "ppm"])
def test_masks_of_sixteen_bits(masked, measure, tmp_path, depth):
    mask = soft_disc(32, 40)
    Image.fromarray(mask.astype(np.uint16) * 257).save(tmp_path / f"deep.{depth}")
    expected = measure(load(tmp_path / "a.png"), load(tmp_path / "b.png"), mask)
    assert masked(f"deep.{depth}") == pytest.approx(expected, rel=REORDERED_TOLERANCE)


def test_a_full_mask_is_told(call, trunk, tmp_path):
    save_noise(tmp_path / "b.png", 1)
    opaque = Image.open(tmp_path / "b.png").convert("RGBA")
    opaque.save(tmp_path / "opaque.png")
    opaque.putpixel((39, 0), (0, 0, 0, 254))
    opaque.save(tmp_path / "clear.png")
    full = "the mask is full, 255 in every pixel of all images read"
    for command, rest in (("pair", ()), ("map", ("-o", "map.png"))):
        assert full in call(command, "opaque.png", "b.png", *rest, "--mask", "alpha", *trunk)
        assert "full" not in call(command, "clear.png", "b.png", *rest, "--mask", "alpha", *trunk)
        assert "full" not in call(command, "opaque.png", "b.png", *rest, *trunk)

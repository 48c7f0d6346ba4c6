"""`pair` and `map`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import lpips_fast
from lpips_fast.cli import loading
from lpips_fast.images import resize_image
from lpips_fast.weights.files import linear_state_dict
from tests.support.image_files import save_noise, soft_disc
from tests.support.tolerances import MAP_MEAN_TOLERANCE, PRINTED_TOLERANCE, REORDERED_TOLERANCE


@pytest.mark.parametrize("net, name, printed", [("alex", "ex_p0", "0.722"), ("squeeze", "ex_p1", "0.148")])
def test_published_values(run, shared, monkeypatch, net, name, printed):
    monkeypatch.setenv("TORCH_HOME", str(shared / "torch_home"))
    golden = json.loads((shared / "golden" / "lpips_0_1_4.json").read_text())
    [case] = [
        case
        for case in golden["cases"]
        if (case["net"], case["version"], case["in1"]) == (net, "0.1", f"{name}.png")
        and case["in0"] == "ex_ref.png"
        and case["lpips"]
        and not case["spatial"]
    ]
    images = shared / "images"
    out = run("pair", images / "ex_ref.png", images / f"{name}.png", "--net", net, "--csv", "out.csv").stdout
    short, long = out.split()
    assert short == printed
    assert float(long.strip("()")) == pytest.approx(case["value"][0], abs=2e-6)


def test_json_csv_and_layers(run, trunk, fn, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "b.png", 1)
    found = json.loads(run("pair", "a.png", "b.png", "--json", "-", "--csv", "out.csv", *trunk).stdout)
    in0, in1 = (lpips_fast.im2tensor(lpips_fast.load_image(tmp_path / name)) for name in ("a.png", "b.png"))
    with torch.no_grad():
        value, layers = fn(in0, in1, retPerLayer=True)
    assert found["lpips"] == pytest.approx(value.item(), rel=REORDERED_TOLERANCE)
    assert found["layers"] == pytest.approx([layer.item() for layer in layers], rel=REORDERED_TOLERANCE)
    assert found["settings"]["net"] == "squeeze"
    [row] = csv.DictReader((tmp_path / "out.csv").open())
    assert (row["a"], row["b"], float(row["lpips"])) == ("a.png", "b.png", found["lpips"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(call, trunk, distance, tmp_path):
    for seed, name in enumerate(("a.png", "b.png")):
        save_noise(tmp_path / name, seed)
    call("pair", "a.png", "b.png", *trunk, "--device", "cuda", "--precision", "float32", "--csv", "out.csv")
    [row] = csv.DictReader((tmp_path / "out.csv").open())
    assert float(row["lpips"]) == pytest.approx(distance(tmp_path / "a.png", tmp_path / "b.png"), rel=PRINTED_TOLERANCE)


def test_weights_of_a_file(call, trunk, fn, distance, tmp_path):
    """Linear weights alone, or a whole model, whose trunk is used as well."""
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "b.png", 1)
    expected = distance(tmp_path / "a.png", tmp_path / "b.png")
    torch.save(fn.state_dict(), tmp_path / "whole.pth")
    torch.save(linear_state_dict(2 * w for w in fn._linear_weights()), tmp_path / "twice.pth")
    for options, factor in (
        (("--net", "squeeze", "--weights", "whole.pth"), 1),
        ((*trunk, "--weights", "twice.pth"), 2),
    ):
        call("pair", "a.png", "b.png", *options, "--json", "out.json")
        found = json.loads((tmp_path / "out.json").read_text())["lpips"]
        assert found == pytest.approx(factor * expected, rel=REORDERED_TOLERANCE)


def test_without_normalization_pixels_stay_in_0_to_1(call, trunk, fn, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "b.png", 1)
    found = float(call("pair", "a.png", "b.png", "--no-normalize", *trunk).split()[1].strip("()"))
    in0, in1 = (lpips_fast.im2tensor(lpips_fast.load_image(tmp_path / name)) for name in ("a.png", "b.png"))
    with torch.no_grad():
        assert found == pytest.approx(fn(in0 / 2 + 0.5, in1 / 2 + 0.5).item(), rel=REORDERED_TOLERANCE)


def test_mistakes(mistake, trunk, fn, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "wide.png", 1, width=50)
    save_noise(tmp_path / "tiny.png", 1, width=8)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    assert "no image file nowhere.png" in mistake("pair", "a.png", "nowhere.png", *trunk, status=1)
    assert "broken.png cannot be read" in mistake("pair", "a.png", "broken.png", *trunk, status=1)
    told = mistake("pair", "a.png", "wide.png", *trunk, status=1)
    assert "a.png is 40 x 32, wide.png 50 x 32 (--resize" in told
    assert "8 x 32 pixels; net 'squeeze' needs" in mistake("pair", "tiny.png", "a.png", "--resize", *trunk, status=1)
    assert "no weights file" in mistake("pair", "a.png", "a.png", *trunk[:3], "nowhere.pth")
    assert "no weights file" in mistake("pair", "a.png", "a.png", *trunk, "--weights", "nowhere.pth")
    linear = {f"{loss}.{name}": w for loss in "xy" for name, w in linear_state_dict(fn._linear_weights()).items()}
    torch.save(linear, tmp_path / "two.ckpt")
    told = mistake("pair", "a.png", "a.png", *trunk, "--weights", "two.ckpt")
    assert "--weights two.ckpt has several LPIPS: convert one first, lpips-fast convert two.ckpt one.pth --to" in told
    assert "--prefix PREFIX, where PREFIX is one of 'x.', 'y.'" in told
    torch.save(fn.state_dict(), tmp_path / "whole.pth")
    told = mistake("pair", "a.png", "a.png", *trunk, "--weights", "whole.pth")
    assert "--weights whole.pth has a trunk, too: leave out --trunk-weights" in told
    torch.save({name: w for name, w in fn.state_dict().items() if not name.startswith("lin")}, tmp_path / "trunk.pth")
    told = mistake("pair", "a.png", "a.png", "--net", "squeeze", "--weights", "trunk.pth")
    assert "--weights trunk.pth has no linear weights" in told
    assert "--device nonsense" in mistake("pair", "a.png", "a.png", *trunk, "--device", "nonsense")
    assert "no format for pictures" in mistake("map", "a.png", "a.png", "-o", "map.xyz", *trunk)
    assert "suffix '.xyz'" in mistake("matrix", ".", "--heatmap", "map.xyz", *trunk)


def test_images_of_other_sizes_are_not_decoded(mistake, monkeypatch, trunk, tmp_path):
    save_noise(tmp_path / "a.png", 0)
    save_noise(tmp_path / "wide.png", 1, width=50)
    monkeypatch.setattr(loading, "read_image", lambda *_: pytest.fail("decoded"))
    assert "sizes differ" in mistake("pair", "a.png", "wide.png", *trunk, status=1)


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


@pytest.fixture
def masked(call, trunk, tmp_path):
    """Two images of 40 x 32, and what `pair` says of them with a mask."""
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
    """`alpha` alone is the channel, which the images do not have."""
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

"""`pair`: numbers, weights and mistakes."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import lpips_fast
from lpips_fast.cli import reading
from lpips_fast.weights.published import linear_state_dict
from tests.support.image_files import save_noise
from tests.support.tolerances import PRINTED_EXAMPLE_TOLERANCE, PRINTED_TOLERANCE, REORDERED_TOLERANCE


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
    assert float(long.strip("()")) == pytest.approx(case["value"][0], abs=PRINTED_EXAMPLE_TOLERANCE)


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
    linear = {f"{loss}.{name}": w for loss in "xy" for name, w in linear_state_dict(fn.linear_weights()).items()}
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
    monkeypatch.setattr(reading, "read_image", lambda *_: pytest.fail("decoded"))
    assert "sizes differ" in mistake("pair", "a.png", "wide.png", *trunk, status=1)

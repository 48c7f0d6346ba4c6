"""The demo as a program, and the picture in README."""

from __future__ import annotations

import pytest
from PIL import Image

from lpips_fast.demo import run
from lpips_fast.demo.speed import Comparison

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("calibrated", (True, False))
def test_small(monkeypatch, make_ours, tmp_path, capsys, calibrated):
    """Without optimisation and speed, of the size of README's picture."""
    monkeypatch.setattr(run, "load", lambda net: (make_ours(net), calibrated))
    monkeypatch.setattr(run, "optimise", None)
    monkeypatch.setattr(run, "compare", None)
    run.main(net="alex", output=tmp_path / "small.png", small=True)
    with Image.open(tmp_path / "small.png") as picture:
        assert picture.size == (900, 410)
    assert (tmp_path / "small.png").stat().st_size < 150_000
    printed = capsys.readouterr().out
    assert f"Wrote {tmp_path / 'small.png'}" in printed
    assert ("UNCALIBRATED" in printed) == (not calibrated)


def test_whole(monkeypatch, make_ours, tmp_path, capsys):
    """The speed is VGG16's; its weights come from a package index or not at all: torchvision's are 553 MB."""
    loaded, timed = [], []

    def load(net, source="auto"):
        loaded.append((net, source))
        return make_ours(net), net != "vgg"

    def compare(module, in0, in1, rounds):
        timed.append((module.pnet_type, in0.shape, in1.shape))
        return "cpu", [Comparison("LPIPS, forward", 0.1, 0.2, 1e-6, None)]

    monkeypatch.setattr(run, "load", load)
    monkeypatch.setattr(run, "compare", compare)
    run.main(net="alex", steps=2, output=tmp_path / "demo.png")
    assert loaded == [("alex", "auto"), ("vgg", "package-index")]
    assert timed == [("vgg", (1, 3, 256, 256), (1, 3, 256, 256))]
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size[0] > 1600
    printed = capsys.readouterr().out
    assert "in 2 steps." in printed
    assert "VGG16 with RANDOM weights" in printed
    loaded.clear()
    monkeypatch.setattr(run, "load", lambda net: (loaded.append(net), (make_ours(net), False))[1])
    run.main(net="squeeze", steps=1, output=tmp_path / "demo.png")
    assert loaded == ["squeeze"]  # what has just failed is not tried again
    assert "LPIPS, forward                 100.0 ms     200.0 ms   2.0 x" in printed

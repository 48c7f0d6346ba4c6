"""What stands in the demo's pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from lpips_fast.demo import picture, steps

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_readmes_picture_is_small():
    """README's first screen shows it."""
    path = DOCS / "demo.png"
    assert path.stat().st_size < 150_000
    with Image.open(path) as image:
        assert image.size == (900, 410)


@pytest.mark.parametrize("calibrated", (True, False))
def test_what_it_says(monkeypatch, make_ours, tmp_path, calibrated):
    """Each image's distance, and whether the distances are calibrated; no text is cut."""
    figures = []
    monkeypatch.setattr(picture.plt, "close", figures.append)
    sample = steps.load_sample("marble")[:64, :64]
    distorted = steps.distance_maps(make_ours("alex"), sample)
    picture.draw_distances(tmp_path / "small.png", "alex", calibrated, sample, distorted)
    (figure,) = figures
    texts = [text for axes in figure.axes for text in (axes.title, *axes.texts)] + [figure._suptitle]
    said = "\n".join(text.get_text() for text in texts)
    for d in distorted:
        assert f"{d.name}\nLPIPS {d.distance:.3f}" in said
    assert ("uncalibrated" in said) == (not calibrated)
    for text in texts:
        box = text.get_window_extent()
        assert min(box.x0, box.y0) >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text

"""Pictures of distances: odd names of files."""

from __future__ import annotations

import pytest
from PIL import Image

from lpips_fast.cli.drawing import one_line
from tests.support.image_files import ODD_NAMES, save_noise


def test_one_line():
    assert [one_line(name) for name in ODD_NAMES[:2]] == ["new\\nline.png", "b\\udce9.png"]
    assert one_line("a \N{SNOWMAN} é $.png") == "a \N{SNOWMAN} é $.png"


def test_heatmap_of_oddly_named_images(run, trunk, tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    for i, name in enumerate(ODD_NAMES):
        save_noise(tmp_path / "x" / name, i)
    run("matrix", "x", "--heatmap", "heat.png", *trunk)
    assert min(Image.open(tmp_path / "heat.png").size) > 400

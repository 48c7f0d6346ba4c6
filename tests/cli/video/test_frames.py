"""The frames of folders and animations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.settings import VideoReading
from lpips_fast.cli.video.frames import open_frames
from tests.support.image_files import clear_picture, frames, over, save_frames
from tests.support.tolerances import LOSSY_TOLERANCE, PRINTED_TOLERANCE

ANIMATIONS = {
    "gif": {"duration": 40},
    "webp": {"duration": 40, "lossless": True},
    "png": {"duration": 40},
    "apng": {"duration": 40, "format": "PNG", "default_image": True},
    "avif": {"duration": 40, "quality": 100, "subsampling": "4:4:4"},
    "tif": {},
}


@pytest.mark.parametrize("suffix", ANIMATIONS)
def test_every_animation_gives_all_its_frames(call, measure, trunk, tmp_path, suffix):
    """`pair` gets the first frame."""
    first, *rest = (image.quantize(255).convert("RGB") for image in frames(6, 0))
    still = [first] if suffix == "apng" else []
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[*still, *rest], **ANIMATIONS[suffix])
    save_frames(tmp_path / "b", [image.copy() for image in frames(6, 8)])
    call("video", f"a.{suffix}", "b", "--json", "out.json", *trunk)
    rows = json.loads((tmp_path / "out.json").read_text())["results"]
    expected = [measure(np.array(a), np.array(b)) for a, b in zip([first, *rest], frames(6, 8), strict=True)]
    assert [row["lpips"] for row in rows] == pytest.approx(
        expected, rel=LOSSY_TOLERANCE if suffix == "avif" else PRINTED_TOLERANCE
    )
    times = [None] * 6 if suffix == "tif" else [pytest.approx(0.04 * i) for i in range(6)]
    assert [row["seconds"] for row in rows] == times
    call("pair", f"a.{suffix}", "b/f0.png", "--json", "out.json", *trunk)
    assert json.loads((tmp_path / "out.json").read_text())["lpips"] == pytest.approx(
        rows[0]["lpips"], rel=PRINTED_TOLERANCE
    )


def test_avif_without_a_pillow_that_reads_it(call, trunk, tmp_path, monkeypatch):
    """FFmpeg decodes only the first picture."""
    first, *rest = frames(3, 0)
    first.save(tmp_path / "a.avif", save_all=True, append_images=rest)
    monkeypatch.setattr("lpips_fast.cli.video.frames.suffixes", lambda: frozenset({".png"}))
    told = call("video", "a.avif", "a.avif", *trunk, status=1)
    assert "a.avif: the Pillow installed here does not read .avif" in told


@pytest.mark.parametrize("suffix", ["avif", "jp2", "jfif", "qoi", "tga"])
def test_folders_of_frames_of_any_format(call, trunk, tmp_path, suffix):
    (tmp_path / "a").mkdir()
    for i, image in enumerate(frames(3, 0)):
        image.save(tmp_path / "a" / f"{i}.{suffix}")
    call("video", "a", "a", "--json", "out.json", *trunk)
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["count"] == 3


def test_apng(tmp_path):
    """Its alpha is composited. The still for programs without animation is no frame."""
    first, *rest = (Image.fromarray(np.roll(clear_picture(), n, axis=1)) for n in range(4))
    other = Image.new("RGBA", (64, 48), "red")
    other.save(tmp_path / "other.png", save_all=True, append_images=[first, *rest], default_image=True, duration=40)
    first.save(tmp_path / "plain.png", save_all=True, append_images=rest, duration=40)
    for name in ("other.png", "plain.png"):
        frames = [*open_frames(tmp_path / name, VideoReading(background="black")).frames]
        assert [frame.seconds for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.12])
        for n, frame in enumerate(frames):
            assert np.array_equal(frame.image.pixels, over(np.roll(clear_picture(), n, axis=1), "black"))

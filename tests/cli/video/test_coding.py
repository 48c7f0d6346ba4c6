"""How the frames of a video file are coded, and what the results and stderr say about it."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.video import coding
from tests.support.image_files import picture
from tests.support.videos import av, display_matrix, frame_of, read, rgb_frames, save


@pytest.mark.parametrize("form", ["monob", "monow", "pal8", "rgb24", "gbrp10le"])
def test_what_is_always_of_full_range(form):
    """The tag of such a format is ignored."""
    assert coding._range(av.VideoFormat(form, 64, 48), 1) == ("full", None)


def test_a_turn_is_told_where_sizes_differ(call, trunk, tmp_path):
    save(tmp_path / "a.mov", rgb_frames(picture(), 5), "png")
    save(tmp_path / "rot.mov", rgb_frames(picture(), 5), "png", display=display_matrix(90, False))
    told = call("video", "a.mov", "rot.mov", *trunk, status=1)
    assert told.count("turned") == 1
    assert "rot.mov was turned by 90 degrees, as its display matrix says" in told
    assert told.count("sizes differ") == 1
    assert "frames 0 to 4: sizes differ: a.mov is 64 x 48, rot.mov 48 x 64 (--resize or --crop makes" in told
    assert "turned" not in call("video", "rot.mov", "rot.mov", *trunk)


def test_other_angles_are_not_turned(call, trunk, tmp_path):
    save(tmp_path / "a.mov", rgb_frames(picture()), "png")
    save(tmp_path / "b.mov", rgb_frames(picture()), "png", display=display_matrix(30, False))
    told = call("video", "a.mov", "b.mov", "--json", "out.json", *trunk)
    assert "b.mov is not turned: its display matrix has an angle that is no multiple of 90 degrees" in told
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["max"] == 0
    assert document["inputs"]["b"]["rotation"] is None


def test_one_is_tagged_and_the_other_is_not(call, trunk, tagged, tmp_path):
    tagged("a.mkv", colorspace=1, color_range=1)
    tagged("b.mkv")
    videos = ("video", "a.mkv", "b.mkv", "--json", "out.json", *trunk)
    told = call(*videos)
    assert (
        "of a.mkv and b.mkv one is tagged with a matrix and the other is not: they are read by bt709 (tagged) and "
        "bt601 (assumed); --color-matrix reads both by one"
    ) in told
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["min"] > 0
    assert document["settings"]["color_matrix"] == "auto"
    a, b = (document["inputs"][name] for name in "ab")
    assert (a["matrix"], a["matrix_source"], a["range"], a["range_source"]) == ("bt709", "tagged", "limited", "tagged")
    assert (b["matrix"], b["matrix_source"], b["range"], b["range_source"]) == (
        "bt601",
        "assumed",
        "limited",
        "assumed",
    )
    assert a["pixel_format"] == "yuv444p"
    assert (a["primaries"], a["transfer"], a["sample_aspect_ratio"]) == ("unspecified", "unspecified", "1:1")
    assert (a["rotation"], a["mirrored"], a["alpha"], a["interlaced"]) == (0, False, None, False)
    assert "color_matrix was 'auto', is 'bt709'" in call(*videos, "--resume", "--color-matrix", "bt709", status=2)
    assert "one is tagged" not in call(*videos, "--color-matrix", "bt709")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["max"] == 0
    assert [document["inputs"][name]["matrix_source"] for name in "ab"] == ["given", "given"]


def test_no_file_of_a_video_no_inputs(call, trunk, tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(picture()).save(tmp_path / "a" / "0.png")
    call("video", "a", "a", "--json", "out.json", *trunk)
    assert json.loads((tmp_path / "out.json").read_text())["inputs"] == {}


@pytest.mark.parametrize("code", [5, 6], ids=["bt470bg", "smpte170m"])
def test_the_matrix_that_is_assumed_is_the_one_that_is_tagged(call, trunk, tagged, tmp_path, code):
    tagged("a.mkv", colorspace=code)
    tagged("b.mkv")
    assert "matrix" not in call("video", "a.mkv", "b.mkv", "--json", "out.json", *trunk)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["max"] == 0
    assert [document["inputs"][name]["matrix_source"] for name in "ab"] == ["tagged", "assumed"]


def test_ranges_of_which_one_is_assumed(call, trunk, tagged, tmp_path):
    """RGB has no range, so there is no line about a master and its encoding."""
    gray = frame_of("gray", 64, 48, [picture()[..., 0]])
    tagged("tagged.mkv", color_range=2)
    tagged("untagged.mkv")
    tagged("limited.mkv", color_range=1)
    save(tmp_path / "jpeg.mkv", [frame_of("yuvj420p", 64, 48, [np.int64(128)] * 3)], "mjpeg")
    save(tmp_path / "gray.mkv", [gray])
    save(tmp_path / "rgb.mkv", [frame.reformat(format="bgr0") for frame in rgb_frames(picture())])

    def said(a: str, b: str) -> str:
        told = call("video", a, b, "--json", "out.json", *trunk)
        assert "None" not in told
        return told

    assert (
        "of tagged.mkv and untagged.mkv one does not say its range: they are read as full (tagged) and limited "
        "(assumed)"
    ) in said("tagged.mkv", "untagged.mkv")
    told = said("jpeg.mkv", "untagged.mkv")
    assert "range" not in told, "the pixel format says it"
    assert "matrix" not in told, "JPEG's is the one that is assumed"
    assert json.loads((tmp_path / "out.json").read_text())["inputs"]["a"]["range_source"] == "pixel format"
    assert "they are read as limited (tagged) and full (assumed)" in said("limited.mkv", "gray.mkv")
    for other in ("rgb.mkv", "limited.mkv", "gray.mkv"):
        assert "range" not in said("untagged.mkv", other), other
    assert "range" not in said("rgb.mkv", "untagged.mkv")


def test_primaries_and_transfer_functions_are_not_converted(call, trunk, tagged, tmp_path):
    """One line says so, and covers the matrix, too."""
    tagged("hdr.mkv", colorspace=9, color_primaries=9, color_trc=16)
    tagged("sdr.mkv", colorspace=1, color_primaries=1, color_trc=1)
    tagged("untagged.mkv")
    told = call("video", "hdr.mkv", "untagged.mkv", "--json", "out.json", *trunk)
    assert told.count("converted") == 1
    assert "tagged with a matrix" not in told
    assert (
        "lpips-fast: hdr.mkv is BT.2020 with PQ and untagged.mkv is untagged: primaries and transfer functions are not "
        "converted, so the distance compares other colours (if one merely lacks its tags, --color-matrix reads both by "
        "one matrix)"
    ) in told
    document = json.loads((tmp_path / "out.json").read_text())
    assert (document["inputs"]["a"]["primaries"], document["inputs"]["a"]["transfer"]) == ("bt2020", "smpte2084")
    told = call("video", "sdr.mkv", "hdr.mkv", *trunk)
    assert "sdr.mkv is bt709 and hdr.mkv is BT.2020 with PQ: primaries" in told
    assert "--color-matrix" not in told


SDR_PRIMARIES = ["unspecified", "bt709", "bt470m", "bt470bg", "smpte170m", "smpte240m", "ebu3213"]
SDR_TRANSFERS = [
    *["unspecified", "bt709", "gamma22", "gamma28", "smpte170m", "smpte240m", "iec61966-2-4", "bt1361e"],
    *["iec61966-2-1", "bt2020-10", "bt2020-12"],
]


@pytest.mark.parametrize(
    "what, near, far",
    [
        ("primaries", SDR_PRIMARIES, ["film", "bt2020", "smpte428", "smpte431", "smpte432"]),
        ("transfer", SDR_TRANSFERS, ["linear", "log100", "log316", "smpte2084", "smpte428", "arib-std-b67"]),
    ],
    ids=["primaries", "transfer"],
)
def test_what_is_told_of_colors(tmp_path, tagged, what, near, far):
    """Encoders tag one picture as sRGB, BT.709, BT.601 or nothing; wide gamuts and HDR are other colours."""
    tagged("a.mkv", colorspace=1)
    _, found = read(tmp_path / "a.mkv")

    def told(a: str, b: str) -> list[str]:
        return coding.remarks(["a", "b"], [found._replace(**{what: a}), found._replace(**{what: b})])

    names = coding._PRIMARIES if what == "primaries" else coding._TRANSFERS
    assert {*near, *far} == set(names.values())
    for a in names.values():
        for b in names.values():
            alike = a == b or (a in near and b in near)
            assert len(told(a, b)) == (not alike), (a, b)


def test_pixels_that_are_not_square(call, trunk, tagged, tmp_path):
    lossless = "libx264", {"qp": "0"}  # H.264 stores the aspect ratio in the stream
    tagged("a.mkv", *lossless, colorspace=1, sample_aspect_ratio=Fraction(4, 3))
    tagged("b.mkv", *lossless, colorspace=1)
    told = call("video", "a.mkv", "b.mkv", "--json", "out.json", *trunk)
    assert "a.mkv and b.mkv differ in the aspect ratio of a pixel, 4:3 and 1:1; pixels are compared as they are" in told
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["max"] == 0
    assert document["inputs"]["a"]["sample_aspect_ratio"] == "4:3"


def test_a_matrix_that_cannot_be_converted(call, trunk, tagged):
    tagged("a.mkv", colorspace=8)
    told = call("video", "a.mkv", "a.mkv", *trunk, status=1)
    assert (
        "a.mkv is tagged with matrix 8 of ITU-T H.273, which cannot be converted: bt601, bt709 and bt2020 can" in told
    )
    call("video", "a.mkv", "a.mkv", "--color-matrix", "bt709", *trunk)

"""The pixels of a video file's frames: colour, orientation and alpha."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.settings import VideoReading
from lpips_fast.cli.video import decoding
from lpips_fast.cli.video.frames import open_frames
from tests.support.image_files import clear_picture, over, picture
from tests.support.videos import (
    CODES,
    KR_KB,
    av,
    display_matrix,
    frame_of,
    from_rgb,
    read,
    rgb_frames,
    save,
    to_rgb,
    turned,
)


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("form, bits", [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12), ("yuv444p16le", 16)])
def test_yuv_to_rgb_is_exact(tmp_path, form, bits, matrix, full):
    """For all values that planes can hold, also for blue of more than twice white."""
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 2**bits, (48, 64)) for _ in range(3)]
    save(tmp_path / "a.mkv", [frame_of(form, 64, 48, planes)], colorspace=CODES[matrix], color_range=1 + full)
    pixels, coding = read(tmp_path / "a.mkv")
    assert (coding.matrix, coding.matrix_source) == (matrix, "tagged")
    assert (coding.range, coding.range_source) == ("full" if full else "limited", "tagged")
    assert np.abs(pixels - to_rgb(planes, bits, matrix, full)).max() <= 0.53, "a level, rounded"


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("width, height", [(64, 48), (64, 47), (63, 48), (63, 47)])
@pytest.mark.parametrize(
    "form, bits", [("yuv420p", 8), ("yuv422p", 8), ("yuv420p10le", 10), ("yuv422p10le", 10), ("yuv420p12le", 12)]
)
def test_subsampled_yuv_to_rgb_is_exact(tmp_path, form, bits, width, height, full):
    """For chroma that is the same everywhere, so that its interpolation does not matter."""
    rng = np.random.default_rng(0)
    for n, (u, v) in enumerate([(0.5, 0.5), (0.3, 0.6), (0.62, 0.4)]):
        values = [rng.integers(0, 2**bits, (height, width)), *(np.int64(2**bits * chroma) for chroma in (u, v))]
        frame = frame_of(form, width, height, values)
        save(tmp_path / f"{n}.mkv", [frame], colorspace=1, color_range=1 + full)
        pixels, _ = read(tmp_path / f"{n}.mkv")
        assert np.abs(pixels - to_rgb(values, bits, "bt709", full)).max() <= 0.53


def test_chroma_is_interpolated(tmp_path):
    """Bicubically; sited at the centre without a siting, and at the left in H.264 without a tag."""
    ramp = np.broadcast_to(np.arange(64, 192, 4), (24, 32))
    x = np.arange(64)
    for name, codec, options, siting in (("a.mkv", "ffv1", {}, 0.5), ("a.mp4", "libx264", {"qp": "0"}, 0)):
        save(tmp_path / name, [frame_of("yuv420p", 64, 48, [np.int64(128), np.int64(128), ramp])], codec, options)
        red = read(tmp_path / name)[0][..., 0]
        chroma = np.interp((x - siting) / 2, np.arange(32), ramp[0])
        expected = to_rgb([np.full(64, 128), np.full(64, 128), chroma], 8, "bt601", False)[:, 0]
        assert np.abs(red - expected)[:, 4:-4].max() <= 0.75, "other siting is 1.6 off"
    impulse = np.full((24, 32), 128)
    impulse[:, 16] = 228
    save(tmp_path / "b.mkv", [frame_of("yuv420p", 64, 48, [np.int64(128), np.int64(128), impulse])])
    red = read(tmp_path / "b.mkv")[0][24, :, 0].astype(int)
    assert red.min() < red[0] - 5, "as no bilinear interpolation goes below"


@pytest.mark.parametrize("form", ["yuv420p", "yuv420p10le", "yuv444p10le"])
def test_black_and_white(tmp_path, form):
    s = 4 if "10" in form else 1
    for level, luma in ((0, 16), (255, 235)):
        save(tmp_path / "a.mkv", [frame_of(form, 64, 48, [np.int64(v * s) for v in (luma, 128, 128)])])
        assert (read(tmp_path / "a.mkv")[0] == level).all()


@pytest.mark.parametrize("form", ["bgr0", "bgra", "gray", "gbrp10le", "gbrp16le", "gray10le", "gray16le"])
def test_rgb_and_gray(tmp_path, form):
    image = picture()
    if form in ("bgr0", "bgra"):
        frame = av.VideoFrame.from_ndarray(np.dstack([image[..., ::-1], np.full((48, 64), 255, np.uint8)]), "bgra")
        frame, expected = frame.reformat(format=form), image
    else:
        bits = int("".join(filter(str.isdigit, form)) or 8)
        scale = (2**bits - 1) / 255
        values = [np.rint(image[..., channel] * scale) for channel in ((1, 2, 0) if "gbr" in form else (0,))]
        frame = frame_of(form, 64, 48, values)
        expected = image if "gbr" in form else image[..., [0, 0, 0]]
    save(tmp_path / "a.mkv", [frame])
    pixels, coding = read(tmp_path / "a.mkv")
    assert np.abs(pixels.astype(int) - expected).max() == 0
    assert (coding.matrix, coding.matrix_source, coding.range) == (None, None, "full")
    assert coding.range_source == ("assumed" if "gray" in form else None)


GRAY = [("gray", 8), ("gray9le", 9), ("gray10le", 10), ("gray12le", 12), ("gray14le", 14), ("gray16le", 16), ("ya8", 8)]


@pytest.mark.parametrize("color_range", [0, 1, 2], ids=["untagged", "limited", "full"])
@pytest.mark.parametrize("form, bits", [*GRAY, ("ya16le", 16), ("ya16be", 16)])
def test_gray_is_exact(tmp_path, monkeypatch, form, bits, color_range):
    """For all luma, also below black and above white. The range of alpha is full."""
    luma = np.linspace(0, 2**bits - 1, 48 * 64).round().reshape(48, 64)
    alpha = luma.T.reshape(48, 64)
    if form.startswith("ya"):
        kind = np.dtype(np.uint8) if bits == 8 else np.dtype("<u2" if form.endswith("le") else ">u2")
        frame = av.VideoFrame(64, 48, form)
        stored = np.zeros((48, frame.planes[0].line_size // kind.itemsize), kind)
        stored[:, :128] = np.stack([luma, alpha], axis=-1).reshape(48, 128)
        frame.planes[0].update(stored)
    else:
        frame = frame_of(form, 64, 48, [luma])
    found = []
    if form.startswith("ya16"):  # only PNG takes it here, and tags it as full
        frame.color_range = color_range
        monkeypatch.setattr(decoding, "_raw_frames", lambda *_: iter([decoding.RawFrame(frame, frame, False)]))
        save(tmp_path / "a.mkv", [rgb_frames(picture())[0].reformat(format="bgr0")])
    else:
        save(tmp_path / "a.mkv", [frame], color_range=color_range)
    [(_, _, coding, _)] = decoding.decode_video(tmp_path / "a.mkv", lambda image: found.append(np.array(image)), False)
    s = 2 ** (bits - 8)
    y = (luma - 16 * s) / (219 * s) if color_range == 1 else luma / (2**bits - 1)
    expected = 255 * np.clip(y, 0, 1)
    assert np.abs(found[0][..., :3] - expected[..., None]).max() <= 0.5 + 1e-6, "a level, rounded"
    if form.startswith("ya"):
        assert np.abs(found[0][..., 3] - alpha * 255 / (2**bits - 1)).max() <= 0.5 + 1e-6
    assert coding.range == ("limited" if color_range == 1 else "full")
    assert (coding.range_source, coding.matrix) == ("tagged" if color_range else "assumed", None)


@pytest.mark.parametrize("codec, options", [("ffv1", {}), ("libx265", {"x265-params": "lossless=1:log-level=none"})])
def test_gray_and_yuv_of_one_luma(call, trunk, tmp_path, codec, options):
    """Black and white of limited range."""
    luma = np.where(np.indices((48, 64)).sum(axis=0) % 16 < 8, 16, 235)
    save(tmp_path / "a.mkv", [frame_of("gray", 64, 48, [luma])], codec, options, color_range=1)
    save(tmp_path / "b.mkv", [frame_of("yuv420p", 64, 48, [luma, np.int64(128), np.int64(128)])], color_range=1)
    told = call("video", "a.mkv", "b.mkv", "--json", "out.json", *trunk)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["max"] == 0
    assert [document["inputs"][name]["range"] for name in "ab"] == ["limited", "limited"]
    assert [document["inputs"][name]["range_source"] for name in "ab"] == ["tagged", "tagged"]
    assert "range" not in told


@pytest.mark.parametrize("form, bits", [("rgb555le", (5, 5, 5)), ("rgb565le", (5, 6, 5))])
def test_rgb_of_few_bits(tmp_path, form, bits):
    """White stays white."""
    r, g, b = (np.rint(picture()[..., n] / 255 * (2 ** bits[n] - 1)).astype(int) for n in range(3))
    for channel in (r, g, b):
        channel[0] = 255
    r, g, b = (np.minimum(channel, 2**n - 1) for channel, n in zip((r, g, b), bits, strict=True))
    frame = av.VideoFrame(64, 48, form)
    frame.planes[0].update(((r << (bits[1] + bits[2])) + (g << bits[2]) + b).astype("<u2"))
    save(tmp_path / "a.nut", [frame], "rawvideo")
    pixels, coding = read(tmp_path / "a.nut")
    assert coding.pixel_format == form
    expected = np.stack([channel * 255 / (2**n - 1) for channel, n in zip((r, g, b), bits, strict=True)], axis=-1)
    assert np.abs(pixels - expected).max() <= 1
    assert (pixels[0] == 255).all()


@pytest.mark.parametrize("opaque", [True, False])
def test_palettes(tmp_path, opaque):
    """The colours of a palette may be transparent."""
    image = Image.fromarray(picture()).quantize(16)
    colors = np.array(image.getpalette("RGB")[:48], np.uint8).reshape(16, 3)
    palette = np.zeros((256, 4), np.uint8)  # in the order of ARGB
    palette[:16] = np.dstack([np.full(16, 255), *colors.T])[0]
    if not opaque:
        palette[3, 0] = 0
    frame = av.VideoFrame.from_ndarray((np.array(image), palette), format="pal8")
    save(tmp_path / "a.mov", [frame], "png")
    expected = np.array(image.convert("RGB"))
    if not opaque:
        expected[np.array(image) == 3] = 0
    assert np.array_equal(read(tmp_path / "a.mov", background="black")[0], expected)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264rgb"), ("a.mkv", "ffv1"), ("a.mov", "png")])
def test_display_matrix(tmp_path, name, codec, degrees, mirrored):
    frames = rgb_frames(picture())
    if codec == "ffv1":
        frames = [frame.reformat(format="bgr0") for frame in frames]
    options = {"qp": "0"} if codec == "libx264rgb" else {}
    save(tmp_path / name, frames, codec, options, display=display_matrix(degrees, mirrored))
    pixels, coding = read(tmp_path / name)
    assert np.array_equal(pixels, turned(picture(), degrees, mirrored))
    assert (coding.rotation, coding.mirrored) == (degrees, mirrored)
    assert (coding.height, coding.width) == pixels.shape[:2]


def test_videos_and_masks_are_turned(call, trunk, tmp_path):
    """A phone's video beside an upright one, with a mask that is turned, too."""
    save(tmp_path / "a.mov", rgb_frames(picture()), "png")
    save(tmp_path / "b.mov", rgb_frames(turned(picture(), 270, False)), "png", display=display_matrix(90, False))
    mask = np.zeros((48, 64, 3), np.uint8)
    mask[:, :20] = 255
    save(tmp_path / "m.mov", rgb_frames(turned(mask, 270, True)), "png", display=display_matrix(90, True))
    call("video", "a.mov", "b.mov", "--mask", "m.mov", "--json", "out.json", *trunk)
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["summary"]["max"] == 0
    assert document["inputs"]["a"]["rotation"] == 0
    assert document["inputs"]["b"]["rotation"] == 90
    assert (document["inputs"]["b"]["width"], document["inputs"]["b"]["height"]) == (64, 48)


@pytest.mark.parametrize("color_matrix", KR_KB)
def test_the_matrix_that_is_given(tmp_path, tagged, color_matrix):
    """It overrides the tag."""
    tagged("a.mkv", colorspace=1)
    pixels, _ = read(tmp_path / "a.mkv", color_matrix=color_matrix)
    expected = to_rgb(from_rgb(picture(), 8, "bt709"), 8, color_matrix, False)
    assert np.abs(pixels - expected).max() <= 0.53


CLEAR = [
    ("a.mov", "png", "rgba", 0),
    ("a.mov", "qtrle", "argb", 0),
    ("a.mov", "prores_ks", "yuva444p10le", 0.1),
    ("a.mkv", "ffv1", "yuva444p10le", 0.1),
    ("a.mkv", "ffv1", "yuva420p", 1),
    ("a.mkv", "ffv1", "gbrap10le", 0.2),
    ("a.webm", "libvpx-vp9", "yuva420p", 1),
    ("a.webm", "libvpx", "yuva420p", 1),
]


@pytest.mark.parametrize("name, codec, form, error", CLEAR, ids=[f"{codec}-{form}" for _, codec, form, _ in CLEAR])
def test_alpha_is_composited(tmp_path, name, codec, form, error):
    """As for still images. The error allowed is the codec's; dropped alpha gives a mean error of 20 and more."""
    frames = [av.VideoFrame.from_ndarray(clear_picture(), format="rgba").reformat(format=form) for _ in range(3)]
    options = {"crf": "4", "b": "8M", "auto-alt-ref": "0"} if "vpx" in codec else {}
    save(tmp_path / name, frames, codec, options)
    for color in ("white", "black", "#ff0000"):
        pixels, coding = read(tmp_path / name, background=color)
        assert np.abs(pixels.astype(int) - over(clear_picture(), color)).mean() <= error
        assert coding.alpha == "decoded"
    assert len([*open_frames(tmp_path / name, VideoReading()).frames]) == 3
    shown = read(tmp_path / name, background="drop")[0][:, :20].astype(int)
    assert np.abs(shown - picture()[:, :20]).mean() <= error


@pytest.mark.parametrize("form, bits", [("yuva444p", 8), ("yuva444p10le", 10), ("yuva444p16le", 16)])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_alpha_is_exact(tmp_path, form, bits, full):
    """The range of alpha is full, whatever the range of luma is."""
    alpha = np.linspace(0, 2**bits - 1, 48 * 64).reshape(48, 64).round()
    frame = frame_of(form, 64, 48, [np.int64(100), np.int64(2 ** (bits - 1)), np.int64(2 ** (bits - 1)), alpha])
    save(tmp_path / "a.mkv", [frame], color_range=1 + full)
    found = []
    [*decoding.decode_video(tmp_path / "a.mkv", lambda image: found.append(np.array(image)), True)]
    assert np.abs(found[0][..., 3] - alpha * 255 / (2**bits - 1)).max() <= 0.5


@pytest.mark.parametrize("codec, matrix", [("libvpx-vp9", "bt709"), ("libvpx", "bt601")])
def test_alpha_of_vp8_and_vp9_keeps_the_tags(tmp_path, codec, matrix):
    """The container has the tags, except for the matrix of VP8, which is always BT.601."""
    frames = [av.VideoFrame.from_ndarray(clear_picture(), format="rgba").reformat(format="yuva420p")] * 2
    options = {"auto-alt-ref": "0"}
    tags = {"colorspace": 1, "color_range": 1, "color_primaries": 9, "color_trc": 16}
    save(tmp_path / "a.webm", frames, codec, options, display=display_matrix(90, True), **tags)
    pixels, coding = read(tmp_path / "a.webm")
    assert pixels.shape == (64, 48, 3)
    assert (coding.rotation, coding.mirrored, coding.alpha) == (90, True, "decoded")
    assert (coding.matrix, coding.matrix_source) == (matrix, "tagged")
    assert (coding.primaries, coding.transfer) == ("bt2020", "smpte2084")


def test_alpha_that_cannot_be_decoded(call, trunk, tmp_path, monkeypatch):
    frames = [av.VideoFrame.from_ndarray(clear_picture(), format="rgba").reformat(format="yuva420p")] * 2
    save(tmp_path / "a.webm", frames, "libvpx-vp9", {"auto-alt-ref": "0"})
    monkeypatch.setattr(decoding, "_ALPHA_DECODERS", {"vp9": "no such decoder"})
    told = call("video", "a.webm", "a.webm", "--json", "out.json", *trunk)
    assert "a.webm: its alpha channel is ignored, for this FFmpeg has no decoder that keeps it" in told
    assert json.loads((tmp_path / "out.json").read_text())["inputs"]["a"]["alpha"] == "dropped"


def test_transparent_webm_beside_an_opaque_one(call, trunk, tmp_path):
    frames = [av.VideoFrame.from_ndarray(clear_picture(), format="rgba").reformat(format="yuva420p")] * 2
    save(tmp_path / "a.webm", frames, "libvpx-vp9", {"auto-alt-ref": "0"})
    save(tmp_path / "b.mov", rgb_frames(over(clear_picture(), "black")), "png")
    videos = ("video", "a.webm", "b.mov", "--json", "out.json", *trunk)
    assert "a.webm frame 0 and 1 more: transparent" in call(*videos)
    far = json.loads((tmp_path / "out.json").read_text())["summary"]["mean"]
    call(*videos, "--background", "black")
    assert json.loads((tmp_path / "out.json").read_text())["summary"]["mean"] < far / 3


def test_what_a_codec_leaves_of_opaque_alpha(call, trunk, tmp_path):
    """No line tells of it, though it is composited."""
    opaque = np.dstack([picture(), np.full((48, 64), 255, np.uint8)])
    frames = [av.VideoFrame.from_ndarray(opaque, format="rgba").reformat(format="yuva420p")] * 2
    save(tmp_path / "a.webm", frames, "libvpx-vp9", {"auto-alt-ref": "0", "qmin": "63", "crf": "63", "b": "0"})
    save(tmp_path / "b.mov", rgb_frames(picture()), "png")
    white, black = (read(tmp_path / "a.webm", background=color)[0] for color in ("white", "black"))
    assert (white > black).any(), "alpha is no longer 255"
    assert "transparent" not in call("video", "a.webm", "b.mov", *trunk)


def test_frames_before_a_break_are_read():
    """Each frame is read while the next is decoded, and an error comes after all frames before it."""
    seen = []

    def read(decoded):
        if isinstance(decoded, Exception):
            raise decoded
        return decoded

    frames = decoding._one_ahead(read, iter([0, 1, 2, OSError("broken")]))
    with pytest.raises(OSError, match="broken"):
        seen.extend(frames)
    assert seen == [0, 1, 2]


def test_a_file_that_breaks_off(tmp_path):
    rng = np.random.default_rng(0)
    frames = [av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), np.uint8), format="rgb24") for _ in range(9)]
    save(tmp_path / "a.mov", frames, "png")
    data = bytearray((tmp_path / "a.mov").read_bytes())
    at = [n for n in range(len(data)) if data[n : n + 8] == b"\x89PNG\r\n\x1a\n"]
    data[at[5] : at[5] + 8] = bytes(8)
    (tmp_path / "a.mov").write_bytes(data)
    found = [frame.image for frame in open_frames(tmp_path / "a.mov", VideoReading()).frames]
    assert len(found) == 6
    assert all(
        np.array_equal(image.pixels, frame.to_ndarray()) for image, frame in zip(found[:5], frames, strict=False)
    )
    assert "a.mov breaks off at frame 5: Invalid data found" in found[5]


def test_old_versions_of_pyav_are_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.mov", rgb_frames(picture()), "png")
    monkeypatch.setattr(av, "__version__", "16.1.0")
    with pytest.raises(UsageError, match=r"video files need PyAV 17 or later: .* \(here is PyAV 16.1.0\)"):
        read(tmp_path / "a.mov")


@pytest.mark.parametrize("command", [("pair", "a.mov", "a.mov"), ("map", "a.mov", "a.mov", "-o", "m.png")])
def test_other_commands_read_no_video_files(call, trunk, tmp_path, command):
    save(tmp_path / "a.mov", rgb_frames(picture()), "png")
    assert "a.mov cannot be read as an image" in call(*command, *trunk, status=1)
    with pytest.raises(ReadError):
        read(tmp_path / "nothere.mov")

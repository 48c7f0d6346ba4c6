"""What the pixels of a video file's frames are: colour, orientation, alpha, and what the results say of them."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.settings import VideoReading
from lpips_fast.cli.video import coding, decoding
from lpips_fast.cli.video.frames import open_frames

av = pytest.importorskip("av", reason="video files need PyAV")

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
CODES = {"bt601": 6, "bt709": 1, "bt2020": 9}  # of ITU-T H.273


def to_rgb(planes: list[np.ndarray], bits: int, matrix: str, full: bool) -> np.ndarray:
    """Planes of one size as RGB [H, W, 3] in [0, 255], in float64, by the definition of BT.601, BT.709 and BT.2020."""
    y, u, v = (plane.astype(np.float64) for plane in planes)
    s = 2 ** (bits - 8)
    if full:
        y, cb, cr = y / (2**bits - 1), (u - 128 * s) / (2**bits - 1), (v - 128 * s) / (2**bits - 1)
    else:
        y, cb, cr = (y - 16 * s) / (219 * s), (u - 128 * s) / (224 * s), (v - 128 * s) / (224 * s)
    kr, kb = KR_KB[matrix]
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return 255 * np.clip(np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=-1), 0, 1)


def from_rgb(image: np.ndarray, bits: int, matrix: str) -> list[np.ndarray]:
    """RGB uint8 [H, W, 3] as planes of limited range, 4:4:4, rounded."""
    r, g, b = np.moveaxis(image / 255, -1, 0)
    kr, kb = KR_KB[matrix]
    y = kr * r + kb * b + (1 - kr - kb) * g
    s = 2 ** (bits - 8)
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    return [np.rint(v) for v in (219 * s * y + 16 * s, 224 * s * cb + 128 * s, 224 * s * cr + 128 * s)]


def frame_of(form: str, width: int, height: int, planes: list[np.ndarray]):
    """A frame with these values in its planes; values of shape () fill theirs."""
    frame = av.VideoFrame(width, height, form)
    deep = max(component.bits for component in frame.format.components) > 8
    for plane, values in zip(frame.planes, planes, strict=True):
        stored = np.zeros((plane.height, plane.line_size // (1 + deep)), "<u2" if deep else np.uint8)
        stored[:, : plane.width] = values
        plane.update(stored)
    return frame


def save(path, frames, codec="ffv1", options=None, display=None, **tags):
    """Writes frames; tags are attributes of the encoder, for colours H.273's codes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        for name, code in tags.items():
            setattr(stream.codec_context, name, code)
        if display is not None:
            stream.set_display_matrix(display)
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read(path, **options):
    """The pixels of the first frame, and how it is coded."""
    coding, frames = open_frames(path, VideoReading(**options))
    return next(frames).image.pixels, coding


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Smooth, and different in each corner."""
    y, x = np.mgrid[:height, :width]
    channels = 40 + 2 * x + y, 200 - 3 * y, 30 + x * y / 20
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def rgb_frames(image: np.ndarray, count: int = 2) -> list:
    return [av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24") for _ in range(count)]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("form, bits", [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12), ("yuv444p16le", 16)])
def test_yuv_to_rgb_is_exact(tmp_path, form, bits, matrix, full):
    """All values that planes can hold, blue of twice white and more among them."""
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
    """Chroma that is the same everywhere, which does not depend on how it is interpolated."""
    rng = np.random.default_rng(0)
    for n, (u, v) in enumerate([(0.5, 0.5), (0.3, 0.6), (0.62, 0.4)]):
        values = [rng.integers(0, 2**bits, (height, width)), *(np.int64(2**bits * chroma) for chroma in (u, v))]
        frame = frame_of(form, width, height, values)
        save(tmp_path / f"{n}.mkv", [frame], colorspace=1, color_range=1 + full)
        pixels, _ = read(tmp_path / f"{n}.mkv")
        assert np.abs(pixels - to_rgb(values, bits, "bt709", full)).max() <= 0.53


def test_chroma_is_interpolated(tmp_path):
    """Bicubically, at the centre where nothing says where chroma is, at the left in H.264 that is not tagged."""
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
    """All luma that there is, below black and above white, too; the range of alpha is full."""
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
    if form.startswith("ya16"):  # which no codec takes here but PNG, which tags it as full
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


@pytest.mark.parametrize("form", ["monob", "monow", "pal8", "rgb24", "gbrp10le"])
def test_what_is_always_of_full_range(form):
    """Whatever its tag says."""
    assert coding._range(av.VideoFormat(form, 64, 48), 1) == ("full", None)


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
    """Their colours may be transparent."""
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


def turned(image: np.ndarray, degrees: int, mirrored: bool) -> np.ndarray:
    image = np.rot90(image, -degrees // 90)
    return image[:, ::-1] if mirrored else image


def display_matrix(degrees: float, mirrored: bool) -> list[int]:
    """That of ISO base media files: a, b, u, c, d, v, x, y, w in fixed point."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x = -1 if mirrored else 1
    a, b, c, d = (round(v * 65536) for v in (x * cos, sin, -x * sin, cos))
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


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


@pytest.fixture
def tagged(tmp_path):
    """Saves one picture, of BT.709, under a name with tags."""

    def tagged(name: str, *options, **tags):
        frame = frame_of("yuv444p", 64, 48, from_rgb(picture(), 8, "bt709"))
        save(tmp_path / name, [frame, frame], *options, **tags)

    return tagged


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


@pytest.mark.parametrize("color_matrix", KR_KB)
def test_the_matrix_that_is_given(tmp_path, tagged, color_matrix):
    """It overrides the tag."""
    tagged("a.mkv", colorspace=1)
    pixels, _ = read(tmp_path / "a.mkv", color_matrix=color_matrix)
    expected = to_rgb(from_rgb(picture(), 8, "bt709"), 8, color_matrix, False)
    assert np.abs(pixels - expected).max() <= 0.53


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
    """RGB has none: there is nothing to say of a master and its encoding."""
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
    """One line says so, of the matrix, too."""
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


def clear_picture() -> np.ndarray:
    """RGBA, the left third opaque, the right one transparent."""
    alpha = np.repeat([255, 128, 0], [24, 16, 24]).astype(np.uint8)
    return np.dstack([picture(), np.broadcast_to(alpha, (48, 64))])


def over(image: np.ndarray, color: str) -> np.ndarray:
    return np.array(Image.alpha_composite(Image.new("RGBA", (64, 48), color), Image.fromarray(image)).convert("RGB"))


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
    """As that of still images is; the mean error is the codec's, that of dropped alpha 20 and more."""
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
    """Its range is full, whatever that of luma is."""
    alpha = np.linspace(0, 2**bits - 1, 48 * 64).reshape(48, 64).round()
    frame = frame_of(form, 64, 48, [np.int64(100), np.int64(2 ** (bits - 1)), np.int64(2 ** (bits - 1)), alpha])
    save(tmp_path / "a.mkv", [frame], color_range=1 + full)
    found = []
    [*decoding.decode_video(tmp_path / "a.mkv", lambda image: found.append(np.array(image)), True)]
    assert np.abs(found[0][..., 3] - alpha * 255 / (2**bits - 1)).max() <= 0.5


@pytest.mark.parametrize("codec, matrix", [("libvpx-vp9", "bt709"), ("libvpx", "bt601")])
def test_alpha_of_vp8_and_vp9_keeps_the_tags(tmp_path, codec, matrix):
    """Which are the container's, but for the matrix of VP8, which is BT.601 always."""
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
    """Nothing is said of it, though it is composited."""
    opaque = np.dstack([picture(), np.full((48, 64), 255, np.uint8)])
    frames = [av.VideoFrame.from_ndarray(opaque, format="rgba").reformat(format="yuva420p")] * 2
    save(tmp_path / "a.webm", frames, "libvpx-vp9", {"auto-alt-ref": "0", "qmin": "63", "crf": "63", "b": "0"})
    save(tmp_path / "b.mov", rgb_frames(picture()), "png")
    white, black = (read(tmp_path / "a.webm", background=color)[0] for color in ("white", "black"))
    assert (white > black).any(), "alpha is no longer 255"
    assert "transparent" not in call("video", "a.webm", "b.mov", *trunk)


def test_apng(tmp_path):
    """Its alpha is composited; an image that is shown where no animation can be is no frame."""
    first, *rest = (Image.fromarray(np.roll(clear_picture(), n, axis=1)) for n in range(4))
    other = Image.new("RGBA", (64, 48), "red")
    other.save(tmp_path / "other.png", save_all=True, append_images=[first, *rest], default_image=True, duration=40)
    first.save(tmp_path / "plain.png", save_all=True, append_images=rest, duration=40)
    for name in ("other.png", "plain.png"):
        frames = [*open_frames(tmp_path / name, VideoReading(background="black")).frames]
        assert [frame.seconds for frame in frames] == pytest.approx([0, 0.04, 0.08, 0.12])
        for n, frame in enumerate(frames):
            assert np.array_equal(frame.image.pixels, over(np.roll(clear_picture(), n, axis=1), "black"))


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

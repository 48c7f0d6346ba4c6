"""The frames of a video file, decoded by PyAV (FFmpeg), as RGB of 8 bits.

Luma Y and chroma C of b bits, with s = 2^(b - 8), become RGB in [0, 1] as BT.601, BT.709 and BT.2020 define it:

    limited range: y = (Y - 16 s) / 219 s       cb, cr = (C - 128 s) / 224 s
    full range:    y = Y / (2^b - 1)            cb, cr = (C - 128 s) / (2^b - 1)

    R = y + 2 (1 - kr) cr       B = y + 2 (1 - kb) cb       G = (y - kr R - kb B) / (1 - kr - kb)

Gray is luma alone: R = G = B = y.

libswscale computes this, but for gray of limited range, which it takes for full whatever the tag says. Its conversion
to RGB of 8 bits is not exact (swscale 9.1 to 9.5):

- By default it is up to 4 levels off, by format and by size.
- With its flags ACCURATE_RND and FULL_CHR_H_INT it is up to 1.4 levels off for deep video of full range, takes ten
  times as long, and turns blue of more than twice white into black.

Its conversion to planar RGB of 16 bits is within 0.02 of a level in all of these cases, without any flag, and as fast
as the default to 8 bits. So YUV, deep RGB, deep gray and gray of limited range are converted to that, and become 8 bits
here, where gray's limited range is expanded.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from lpips_fast.cli.options import ReadError, UsageError
from lpips_fast.images import Picture

_LEAST_PYAV = 17  # older ones convert without regard to the frame's matrix and range

# Decoders that keep the alpha channel of a format whose decoder in FFmpeg itself drops it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Frames carry codes of ITU-T H.273 as tags; these are their names. The matrices are those that swscale converts.
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_MATRIX_CODES = {name: code for code, name in _MATRICES.items()}
_NO_MATRIX = (0, 2, 3)  # RGB, which YUV is not; unspecified; reserved
_LIMITED, _FULL = 1, 2
_PRIMARIES = {
    1: "bt709",
    2: "unspecified",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    9: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}
_TRANSFERS = {
    1: "bt709",
    2: "unspecified",
    4: "gamma22",
    5: "gamma28",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    16: "smpte2084",
    17: "smpte428",
    18: "arib-std-b67",
}

# Wide gamuts and HDR, by the names that users know: a line says so where A and B differ in these. All other tags, and
# none, count as alike, because encoders tag one picture as sRGB, BT.709, BT.601 or not at all.
_WIDE_PRIMARIES = {
    "film": "film",
    "bt2020": "BT.2020",
    "smpte428": "CIE XYZ",
    "smpte431": "DCI-P3",
    "smpte432": "Display P3",
}
_HDR_TRANSFERS = {
    "linear": "linear light",
    "log100": "log 100:1",
    "log316": "log 316:1",
    "smpte2084": "PQ",
    "smpte428": "SMPTE 428",
    "arib-std-b67": "HLG",
}

Range = Literal["limited", "full"]
Source = Literal["tagged", "assumed", "given", "pixel format"]


class Coding(NamedTuple):
    """How the frames of a video file are coded, and how they are read. Results hold it under these names."""

    width: int  # of a frame as it is compared, turned
    height: int
    pixel_format: str  # FFmpeg's name
    matrix: str | None  # None for RGB and gray, which have none
    matrix_source: Source | None
    range: Range
    range_source: Source | None  # None for RGB, a palette and black and white, which are always full
    primaries: str  # not converted, as is the transfer function
    transfer: str
    rotation: int | None  # degrees clockwise that frames are turned by; None for an angle that they are not turned by
    mirrored: bool  # left to right, once turned
    sample_aspect_ratio: str  # width:height of a pixel; pixels are compared as stored
    alpha: Literal["decoded", "dropped"] | None  # None without an alpha channel
    interlaced: bool  # the two fields of a frame are compared together


class Frame(NamedTuple):
    seconds: float | None  # the presentation time, as the file gives it; the first may have another than 0
    image: Any  # a Picture, or what `weights_of` makes; a string says why it cannot be read
    coding: Coding | None = None  # of a video file's
    duration: float | None = None  # seconds that it is shown for, as the file says


class _RawFrame(NamedTuple):
    """A frame as PyAV gives it, before its conversion to RGB."""

    frame: Any
    tags: Any  # the frame that has its tags
    alpha_dropped: bool  # whether it has an alpha channel that was not decoded


def decode_video(
    path: Path, convert: Callable[[Image.Image], Any], rgb: bool, color_matrix: str = "auto"
) -> Iterator[Frame]:
    """The frames of a video file.

    With `rgb`, images are `Picture`s; `convert` is called only for frames with alpha.

    Args:
        path: the file; its first video stream is read.
        convert: makes the image of a frame, which it gets as RGB or RGBA of 8 bits.
        rgb: whether `convert` makes a `Picture`.
        color_matrix: bt601, bt709 or bt2020 converts YUV whatever the stream's tag says; auto goes by the tag, and
            takes bt601 without one, as FFmpeg and OpenCV do.

    Raises:
        ReadError: the file cannot be read, or is tagged with a matrix that cannot be converted.
        UsageError: PyAV is not installed, or is too old.
    """
    av = _import_av(path)
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ReadError(f"{path} cannot be read as a video: {_without_number(error)}") from error
    with container:
        if not container.streams.video:
            raise ReadError(f"{path} has no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        # AVI gives frames that are stored out of order the times of others.
        timed = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
        read = _Reader(path, stream, timed, av.video.reformatter.VideoReformatter(), convert, rgb, color_matrix)
        n = 0
        try:
            for frame in _one_ahead(read, _raw_frames(av, path, container, stream)):
                yield frame
                n += 1
        except (av.FFmpegError, OSError) as error:
            yield Frame(None, f"{path} breaks off at frame {n}: {_without_number(error)}")


def _without_number(error: Any) -> str:
    """What an error of FFmpeg or of the system says, without its number and the file's name."""
    return error.strerror or str(error)


def _import_av(path: Path) -> Any:
    needed = f'{path}: video files need PyAV {_LEAST_PYAV} or later: pip install -U "lpips-fast[video]"'
    try:
        import av
    except ImportError as error:
        raise UsageError(needed) from error
    if int(av.__version__.split(".")[0]) < _LEAST_PYAV:
        raise UsageError(f"{needed} (here is PyAV {av.__version__})")
    return av


def _raw_frames(av: Any, path: Path, container: Any, stream: Any) -> Iterator[_RawFrame | Exception]:
    """The frames of a stream. Where decoding breaks off, the error comes last."""
    decoder_name = _ALPHA_DECODERS.get(stream.codec_context.name)
    metadata = {key.lower(): value for key, value in stream.metadata.items()}
    has_alpha = decoder_name is not None and metadata.get("alpha_mode") == "1"
    decoder = None
    if has_alpha:
        with contextlib.suppress(ValueError):  # this FFmpeg was built without it
            decoder = av.CodecContext.create(decoder_name, "r")
    try:
        if decoder is None:
            for frame in container.decode(stream):
                yield _RawFrame(frame, frame, has_alpha)
            return
        # A decoder of its own does not know the container's tags; the stream's decoder puts them on its frames.
        with av.open(str(path)) as again:
            tags = next(again.decode(video=0), None)
        decoder.extradata = stream.codec_context.extradata
        for packet in container.demux(stream):
            for frame in decoder.decode(packet):
                yield _RawFrame(frame, tags or frame, False)
    except (av.FFmpegError, OSError) as error:
        yield error


def _one_ahead(
    read: Callable[[_RawFrame | Exception], Frame], raw_frames: Iterator[_RawFrame | Exception]
) -> Iterator[Frame]:
    """The results of `read`, which a thread calls for each raw frame while the next one is decoded."""
    with ThreadPoolExecutor(1) as thread:
        found: Future[Frame] | None = None
        for raw in raw_frames:
            following = thread.submit(read, raw)
            if found is not None:
                yield found.result()
            found = following
        if found is not None:
            yield found.result()


@dataclass
class _Reader:
    """Makes the frames that `decode_video` gives of a stream's raw frames."""

    path: Path
    stream: Any
    timed: bool  # whether the file gives each frame its own time
    reformatter: Any
    convert: Callable[[Image.Image], Any]
    rgb: bool
    color_matrix: str

    def __call__(self, raw: _RawFrame | Exception) -> Frame:
        """A frame in RGB, turned; raises the error that decoding broke off with."""
        if isinstance(raw, Exception):
            raise raw
        frame = raw.frame
        coding = _coding(self.path, self.stream, raw, self.color_matrix)
        pixels = _turned(_pixels(self.reformatter, frame, coding), coding)
        whole = self.rgb and pixels.shape[-1] == 3
        image = Picture(pixels, False, None) if whole else self.convert(Image.fromarray(pixels))
        duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
        return Frame(frame.time if self.timed else None, image, coding, duration)


def _coding(path: Path, stream: Any, raw: _RawFrame, color_matrix: str) -> Coding:
    frame, tags, alpha_dropped = raw
    matrix: str | None = None
    matrix_source: Source | None = None
    if _is_yuv(frame.format):
        matrix, matrix_source = _matrix(path, tags.colorspace, color_matrix)
    range_, range_source = _range(frame.format, tags.color_range)
    rotation, mirrored = _orientation(tags)
    width, height = frame.width, frame.height
    aspect = stream.sample_aspect_ratio or 1
    alpha: Literal["decoded", "dropped"] | None = "dropped" if alpha_dropped else None
    return Coding(
        width=height if rotation in (90, 270) else width,
        height=width if rotation in (90, 270) else height,
        pixel_format=frame.format.name,
        matrix=matrix,
        matrix_source=matrix_source,
        range=range_,
        range_source=range_source,
        primaries=_PRIMARIES.get(tags.color_primaries, str(tags.color_primaries)),
        transfer=_TRANSFERS.get(tags.color_trc, str(tags.color_trc)),
        rotation=rotation,
        mirrored=mirrored,
        sample_aspect_ratio=f"{aspect.numerator}:{aspect.denominator}",
        alpha="decoded" if _has_alpha(frame.format) else alpha,
        interlaced=frame.interlaced_frame,
    )


def _is_yuv(form: Any) -> bool:
    return len(form.components) > 2 and not form.is_rgb


def _is_gray(form: Any) -> bool:
    """Whether it is gray, which may be of limited range; of 1 bit it is black and white."""
    return len(form.components) <= 2 and not form.has_palette and form.components[0].bits >= 8


def _has_alpha(form: Any) -> bool:
    return form.has_palette or any(component.is_alpha for component in form.components)


def _matrix(path: Path, code: int, color_matrix: str) -> tuple[str, Source]:
    """The matrix that converts a frame from YUV, and where it comes from."""
    if color_matrix != "auto":
        return color_matrix, "given"
    if code in _NO_MATRIX:
        return "bt601", "assumed"
    if code not in _MATRICES:
        raise ReadError(
            f"{path} is tagged with matrix {code} of ITU-T H.273, which cannot be converted: bt601, bt709 and "
            "bt2020 can (--color-matrix reads it as one of them)"
        )
    return _MATRICES[code], "tagged"


def _range(form: Any, code: int) -> tuple[Range, Source | None]:
    """The range of a frame's values, and where it comes from."""
    if form.name.startswith("yuvj"):
        return "full", "pixel format"
    if not (_is_yuv(form) or _is_gray(form)):
        return "full", None
    if code in (_LIMITED, _FULL):
        return ("full" if code == _FULL else "limited"), "tagged"
    return ("full" if _is_gray(form) else "limited"), "assumed"


def _orientation(frame: Any) -> tuple[int | None, bool]:
    """The rotation and the mirroring that a frame's display matrix asks for.

    The matrix begins with a, b, _, c, d: the point (x, y) of the frame, y downwards, is shown at (ax + cy, bx + dy).
    A negative determinant ad - bc mirrors.
    """
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 0, False
    a, b, _, c, d = np.frombuffer(found, np.int32)[:5].tolist()
    mirrored = a * d < b * c
    degrees = math.degrees(math.atan2(b, -a if mirrored else a))
    turns = round(degrees / 90)
    return (turns % 4 * 90 if abs(degrees - 90 * turns) < 1 else None), mirrored


def _turned(pixels: np.ndarray, coding: Coding) -> np.ndarray:
    """A frame [H, W, C] as it is to be shown; by an angle that is not a multiple of 90 degrees it is not turned."""
    if coding.rotation is None:
        return pixels
    pixels = np.rot90(pixels, -coding.rotation // 90)
    return pixels[:, ::-1] if coding.mirrored else pixels


def _pixels(reformatter: Any, frame: Any, coding: Coding) -> np.ndarray:
    """RGB, or RGBA where there is an alpha channel, uint8 [H, W, C].

    This sets colorspace and color_range of a YUV frame to those of `coding`: the conversion goes by them.
    """
    form = frame.format
    alpha = _has_alpha(form)
    bits = min(max(component.bits for component in form.components), 16)  # floats become 16 bits
    if coding.matrix is None and coding.range == "full" and bits <= 8:
        return reformatter.reformat(frame, format="rgba" if alpha else "rgb24", interpolation="BICUBIC").to_ndarray()
    if coding.matrix is not None:
        frame.colorspace = _MATRIX_CODES[coding.matrix]
        frame.color_range = _FULL if coding.range == "full" else _LIMITED
    converted = reformatter.reformat(frame, format="gbrap16le" if alpha else "gbrp16le", interpolation="BICUBIC")
    green, blue, red, *rest = converted.planes
    # b-bit values stand in the top bits: white is (2^b - 1) << (16 - b). YUV of limited range comes out with white at
    # 255 << 8. Gray of limited range is not expanded: black is at 16 << 8, white at 235 << 8.
    full = 0, (2**bits - 1) << (16 - bits)
    ends = full
    if coding.range == "limited":
        ends = (16 << 8, 235 << 8) if coding.matrix is None else (0, 255 << 8)
    pixels = np.empty((3 + len(rest), frame.height, frame.width), np.uint8)
    for channel, plane, (black, white) in zip(
        pixels, (red, green, blue, *rest), (ends, ends, ends, full), strict=False
    ):
        values = np.frombuffer(plane, "<u2").reshape(plane.height, -1)[:, : plane.width]
        channel[:] = _levels(values, black, white)
    return pixels.transpose(1, 2, 0)  # planes lie as the network takes them


def _levels(values: np.ndarray, black: int, white: int) -> np.ndarray:
    """The levels of 8 bits nearest to values of 16 bits, where `black` is 0 and `white` is 255."""
    if (black, white) == (0, 255 << 8):  # as nearly always; three times as fast as the table
        levels = np.minimum(values, white)
        levels += 128
        levels >>= 8
        return levels
    return _level_table(black, white)[values]


@functools.cache
def _level_table(black: int, white: int) -> np.ndarray:
    """The levels uint8 [65536] of all values of 16 bits."""
    return np.rint(np.clip((np.arange(1 << 16) - black) / (white - black), 0, 1) * 255).astype(np.uint8)


def remarks(paths: Sequence[Path], codings: Sequence[Coding | None]) -> list[str]:
    """What a user should know of the codings of A and B; None stands for a folder or an animation."""
    told = []
    for path, coding in zip(paths, codings, strict=True):
        if coding is not None and coding.rotation is None:
            told.append(f"{path} is not turned: its display matrix has an angle that is no multiple of 90 degrees")
        if coding is not None and coding.alpha == "dropped":
            told.append(f"{path}: its alpha channel is ignored, for this FFmpeg has no decoder that keeps it")
    (path_a, a), (path_b, b) = zip(paths, codings, strict=True)
    if a is None or b is None:
        return told
    other_matrices = a.matrix != b.matrix and {a.matrix_source, b.matrix_source} == {"tagged", "assumed"}
    if _wide_or_hdr(a) != _wide_or_hdr(b):
        hint = " (if one merely lacks its tags, --color-matrix reads both by one matrix)" if other_matrices else ""
        told.append(
            f"{path_a} is {_colors(a)} and {path_b} is {_colors(b)}: primaries and transfer functions are not "
            f"converted, so the distance compares other colours{hint}"
        )
    elif other_matrices:
        told.append(
            f"of {path_a} and {path_b} one is tagged with a matrix and the other is not: they are read by {a.matrix} "
            f"({a.matrix_source}) and {b.matrix} ({b.matrix_source}); --color-matrix reads both by one"
        )
    if (a.width, a.height) != (b.width, b.height):
        for path, coding in ((path_a, a), (path_b, b)):
            if coding.rotation in (90, 270):
                told.append(f"{path} was turned by {coding.rotation} degrees, as its display matrix says")
    if a.range != b.range and {a.range_source, b.range_source} == {"tagged", "assumed"}:
        told.append(
            f"of {path_a} and {path_b} one does not say its range: they are read as {a.range} ({a.range_source}) and "
            f"{b.range} ({b.range_source})"
        )
    if a.sample_aspect_ratio != b.sample_aspect_ratio:
        told.append(
            f"{path_a} and {path_b} differ in the aspect ratio of a pixel, {a.sample_aspect_ratio} and "
            f"{b.sample_aspect_ratio}; pixels are compared as they are stored"
        )
    return told


def _wide_or_hdr(coding: Coding) -> tuple[str | None, str | None]:
    """Its wide primaries and its transfer function of HDR; None for others."""
    return _WIDE_PRIMARIES.get(coding.primaries), _HDR_TRANSFERS.get(coding.transfer)


def _colors(coding: Coding) -> str:
    """The primaries and the transfer function that a stream is tagged with."""
    primaries = _WIDE_PRIMARIES.get(coding.primaries, coding.primaries)
    transfer = _HDR_TRANSFERS.get(coding.transfer, coding.transfer)
    tagged = dict.fromkeys(name for name in (primaries, transfer) if name != "unspecified")
    return " with ".join(tagged) or "untagged"

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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.video.coding import FULL, LIMITED, MATRIX_CODES, Coding, RawFrame, coding_of, has_alpha
from lpips_fast.images import Picture

_LEAST_PYAV = 17  # older ones convert without regard to the frame's matrix and range

# Decoders that keep the alpha channel of a format whose decoder in FFmpeg itself drops it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class Frame(NamedTuple):
    seconds: float | None  # the presentation time, as the file gives it; the first may have another than 0
    image: Any  # a Picture, or what `weights_of` makes; a string says why it cannot be read
    coding: Coding | None = None  # of a video file's
    duration: float | None = None  # seconds that it is shown for, as the file says


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


def _raw_frames(av: Any, path: Path, container: Any, stream: Any) -> Iterator[RawFrame | Exception]:
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
                yield RawFrame(frame, frame, has_alpha)
            return
        # A decoder of its own does not know the container's tags; the stream's decoder puts them on its frames.
        with av.open(str(path)) as again:
            tags = next(again.decode(video=0), None)
        decoder.extradata = stream.codec_context.extradata
        for packet in container.demux(stream):
            for frame in decoder.decode(packet):
                yield RawFrame(frame, tags or frame, False)
    except (av.FFmpegError, OSError) as error:
        yield error


def _one_ahead(
    read: Callable[[RawFrame | Exception], Frame], raw_frames: Iterator[RawFrame | Exception]
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

    def __call__(self, raw: RawFrame | Exception) -> Frame:
        """A frame in RGB, turned; raises the error that decoding broke off with."""
        if isinstance(raw, Exception):
            raise raw
        frame = raw.frame
        coding = coding_of(self.path, self.stream, raw, self.color_matrix)
        pixels = _turned(_pixels(self.reformatter, frame, coding), coding)
        whole = self.rgb and pixels.shape[-1] == 3
        image = Picture(pixels, False, None) if whole else self.convert(Image.fromarray(pixels))
        duration = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else None
        return Frame(frame.time if self.timed else None, image, coding, duration)


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
    alpha = has_alpha(form)
    bits = min(max(component.bits for component in form.components), 16)  # floats become 16 bits
    if coding.matrix is None and coding.range == "full" and bits <= 8:
        return reformatter.reformat(frame, format="rgba" if alpha else "rgb24", interpolation="BICUBIC").to_ndarray()
    if coding.matrix is not None:
        frame.colorspace = MATRIX_CODES[coding.matrix]
        frame.color_range = FULL if coding.range == "full" else LIMITED
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

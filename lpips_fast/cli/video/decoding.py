"""Decodes the frames of a video file with PyAV (FFmpeg), and makes RGB of 8 bits of them.

BT.601, BT.709 and BT.2020 define how luma Y and chroma C of b bits become RGB in [0, 1]. With s = 2^(b - 8):

    limited range: y = (Y - 16 s) / 219 s       cb, cr = (C - 128 s) / 224 s
    full range:    y = Y / (2^b - 1)            cb, cr = (C - 128 s) / (2^b - 1)

    R = y + 2 (1 - kr) cr       B = y + 2 (1 - kb) cb       G = (y - kr R - kb B) / (1 - kr - kb)

Gray is luma alone: R = G = B = y.

libswscale computes this, except for gray of limited range, which it reads as full whatever the tag says. Its conversion
to RGB of 8 bits is not exact (swscale 9.1 to 9.5):

- By default it is up to 4 levels off, depending on format and size.
- With its flags ACCURATE_RND and FULL_CHR_H_INT it is up to 1.4 levels off for deep video of full range, takes ten
  times as long, and turns blue of more than twice white into black.

Its conversion to planar RGB of 16 bits is within 0.02 of a level in all of these cases, without any flag, and as fast
as the default conversion to 8 bits. So libswscale converts YUV, deep RGB, deep gray and gray of limited range to 16
bits. This module converts the 16 bits to 8, and expands the limited range of gray.
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

_LEAST_PYAV = 17  # older versions ignore the frame's matrix and range

# Decoders that keep the alpha channel. FFmpeg's own decoders of these formats drop it.
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class Frame(NamedTuple):
    """A frame of a video file, of an animation, or of a folder."""

    seconds: float | None  # the presentation time as the file gives it; the first frame may have another time than 0
    image: Any  # a Picture, or the weights of pixels in a mask; a string says why it cannot be read
    coding: Coding | None = None  # None if this is no frame of a video file
    duration: float | None = None  # how long it is shown, in seconds, as the file says


def decode_video(
    path: Path, convert: Callable[[Image.Image], Any], rgb: bool, color_matrix: str = "auto"
) -> Iterator[Frame]:
    """The frames of a video file. If decoding breaks off, the last frame says so.

    Args:
        path: the file, whose first video stream is read.
        convert: makes the image of a frame from RGB or RGBA of 8 bits.
        rgb: whether `convert` makes a `Picture`. It is then called only for frames with alpha.
        color_matrix: bt601, bt709 or bt2020 converts YUV whatever the stream's tag says. auto takes the tag, and bt601
            without a tag, as FFmpeg and OpenCV do.

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
        # In AVI, frames that are stored out of order have the times of other frames.
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
    """The message of an error of FFmpeg or of the system, without its number and the file's name."""
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
    """The frames of a stream. If decoding breaks off, the error comes last."""
    decoder_name = _ALPHA_DECODERS.get(stream.codec_context.name)
    metadata = {key.lower(): value for key, value in stream.metadata.items()}
    has_alpha = decoder_name is not None and metadata.get("alpha_mode") == "1"
    decoder = None
    if has_alpha:
        with contextlib.suppress(ValueError):  # this FFmpeg was built without the decoder
            decoder = av.CodecContext.create(decoder_name, "r")
    try:
        if decoder is None:
            for frame in container.decode(stream):
                yield RawFrame(frame, frame, has_alpha)
            return
        # This decoder does not know the container's tags. The stream's own decoder puts them on its frames.
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
    """Makes a `Frame` of a raw frame."""

    path: Path
    stream: Any
    timed: bool  # whether the file has the right time for each frame
    reformatter: Any
    convert: Callable[[Image.Image], Any]
    rgb: bool
    color_matrix: str

    def __call__(self, raw: RawFrame | Exception) -> Frame:
        """A frame in RGB, turned as it is to be shown. Raises an error that takes the place of a frame."""
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
    """Turns a frame [H, W, C] as it is to be shown, unless the angle is no multiple of 90 degrees."""
    if coding.rotation is None:
        return pixels
    pixels = np.rot90(pixels, -coding.rotation // 90)
    return pixels[:, ::-1] if coding.mirrored else pixels


def _pixels(reformatter: Any, frame: Any, coding: Coding) -> np.ndarray:
    """The pixels of a frame, uint8 [H, W, C]: RGB, or RGBA if it has an alpha channel.

    Sets colorspace and color_range of a YUV frame as `coding` says, because the conversion reads them there.
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
    # Values of b bits are in the top bits: white is (2^b - 1) << (16 - b). YUV of limited range comes out expanded, its
    # white is 255 << 8. Gray of limited range is not expanded: black is 16 << 8, white is 235 << 8.
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
    return pixels.transpose(1, 2, 0)  # a view: in memory the channels are planes, as the network takes them


def _levels(values: np.ndarray, black: int, white: int) -> np.ndarray:
    """The levels of 8 bits nearest to values of 16 bits. `black` becomes 0 and `white` 255."""
    if (black, white) == (0, 255 << 8):  # nearly always; three times as fast as the table
        levels = np.minimum(values, white)
        levels += 128
        levels >>= 8
        return levels
    return _level_table(black, white)[values]


@functools.cache
def _level_table(black: int, white: int) -> np.ndarray:
    """The level of each value of 16 bits, uint8 [65536]."""
    return np.rint(np.clip((np.arange(1 << 16) - black) / (white - black), 0, 1) * 255).astype(np.uint8)

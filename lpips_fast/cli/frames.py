"""Frames of a video file, of an animated image, or of a folder of images, one at a time."""

from __future__ import annotations

import itertools
import queue
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from ..images import Picture, open_image, suffixes, to_picture
from .folders import list_folder
from .loading import load, same_size
from .notices import Notices
from .options import ReadError, Reading, UsageError

# The time of a frame, and the images of two, or why there are none.
TimedPair = tuple[float | None, tuple[np.ndarray, np.ndarray] | str]

# Decoded frames wait for the network until they hold this many pixels, as many as it takes at once.
_PIXELS_AHEAD = 1 << 22


class Frame(NamedTuple):
    seconds: float | None  # from the start, where the file says
    image: Picture | str  # or why it cannot be read


def open_frames(path: Path, reading: Reading) -> Iterator[Frame]:
    """The frames of a folder (in order of name, numbers by value), an animation (Pillow) or a video (PyAV).

    The file is opened, and its first frame read, before this returns.

    Raises:
        ReadError: the file is not there or cannot be read; one that breaks off ends with a frame that says so.
        UsageError: it is a video, and PyAV is not installed, or a range of values is asked for.
    """
    if path.is_dir():
        paths = sorted((path / p for p in list_folder(path)), key=_natural)
        return (_load(p, reading) for p in paths)
    if not path.is_file():
        raise ReadError(f"no video, animation or folder of frames {path}")
    frames = (_animation if path.suffix.lower() in suffixes() else _video)(path, reading)
    return itertools.chain(iter([*itertools.islice(frames, 1)]), frames)  # a list would keep the frame


def frame_pairs(
    a: Path, b: Path, resize: bool, uneven: Callable[[str], None], reading: Reading, notices: Notices
) -> Iterator[TimedPair]:
    """The frames of both, which `open_frames` opens; ends with the shorter, and tells `uneven`."""
    return _pairs(a, open_frames(a, reading), b, open_frames(b, reading), resize, uneven, notices)


def _pairs(
    a: Path,
    frames0: Iterator[Frame],
    b: Path,
    frames1: Iterator[Frame],
    resize: bool,
    uneven: Callable[[str], None],
    notices: Notices,
) -> Iterator[TimedPair]:
    n = 0
    while True:
        frame0, frame1 = next(frames0, None), next(frames1, None)
        if frame0 is None or frame1 is None:
            if frame0 is not frame1:
                short, long = (a, b) if frame0 is None else (b, a)
                uneven(f"{short} ends after {n} frames, {long} goes on")
            return
        pair = _pair(f"{a} frame {n}", frame0.image, f"{b} frame {n}", frame1.image, resize, notices)
        yield frame0.seconds, pair
        n += 1


def ahead(pairs: Iterator[TimedPair], depth: int) -> Iterator[TimedPair]:
    """The pairs, by a thread that stays ahead, `depth` of them or fewer large ones; decoders release Python's lock."""
    buffer = _Buffer(depth)
    nothing = (None, "")

    def produce() -> None:
        try:
            for pair in pairs:
                buffer.put((pair, None))
            buffer.put((nothing, StopIteration()))
        except BaseException as error:
            buffer.put((nothing, error))

    threading.Thread(target=produce, daemon=True).start()
    while True:
        pair, error = buffer.get()
        if isinstance(error, StopIteration):
            return
        if error is not None:
            raise error
        yield pair


class _Buffer(queue.Queue[tuple[TimedPair, BaseException | None]]):
    """A queue of pairs and errors that is full at `depth`, or at _PIXELS_AHEAD; one goes in, however large."""

    def __init__(self, depth: int) -> None:
        super().__init__(_PIXELS_AHEAD)
        self._least = -(-_PIXELS_AHEAD // depth)  # what a small one counts as
        self._pixels = 0

    def _qsize(self) -> int:
        return self._pixels

    def _put(self, item: tuple[TimedPair, BaseException | None]) -> None:
        super()._put(item)
        self._pixels += self._weight(item)

    def _get(self) -> tuple[TimedPair, BaseException | None]:
        item = super()._get()
        self._pixels -= self._weight(item)
        return item

    def _weight(self, item: tuple[TimedPair, BaseException | None]) -> int:
        (_, images), _ = item
        return self._least if isinstance(images, str) else max(self._least, images[0].shape[0] * images[0].shape[1])


def _pair(
    name0: str, image0: Picture | str, name1: str, image1: Picture | str, resize: bool, notices: Notices
) -> tuple[np.ndarray, np.ndarray] | str:
    if isinstance(image0, str):
        return image0
    if isinstance(image1, str):
        return image1
    try:
        return notices.pair((name0, name1), (image0, same_size(name0, image0, name1, image1, resize)))
    except ReadError as error:
        return str(error)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that orders frame_2 before frame_10."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", path.as_posix())]


def _load(path: Path, reading: Reading) -> Frame:
    try:
        return Frame(None, load(path, reading))
    except OSError as error:
        return Frame(None, str(error))


def _animation(path: Path, reading: Reading) -> Iterator[Frame]:
    seconds = 0.0
    n = 0
    try:
        with open_image(path) as image:
            try:
                for frame in ImageSequence.Iterator(image):
                    yield Frame(seconds, to_picture(frame, reading.background, reading.value_range))
                    seconds += frame.info.get("duration", 0) / 1000
                    n += 1
            except Exception as error:
                yield Frame(seconds, f"{path} breaks off at frame {n}: {error}")
    except OSError as error:
        raise ReadError(str(error)) from error


def _video(path: Path, reading: Reading) -> Iterator[Frame]:
    if reading.range is not None:
        raise UsageError(
            f"{path}: --range is for images of 16 or 32 bits, the frames of video files are read as 8 bits"
        )
    try:
        import av
    except ImportError as error:
        raise UsageError(f'{path}: video files need PyAV: pip install "lpips-fast[video]"') from error
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ReadError(f"{path} cannot be read as a video: {error}") from error
    with container:
        if not container.streams.video:
            raise ReadError(f"{path} has no video in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        n = 0
        try:
            for frame in container.decode(stream):
                if any(component.is_alpha for component in frame.format.components):
                    image = Image.fromarray(frame.to_ndarray(format="rgba"))
                    yield Frame(frame.time, to_picture(image, reading.background, None))
                else:
                    yield Frame(frame.time, Picture(frame.to_ndarray(format="rgb24"), False, None))
                n += 1
        except (av.FFmpegError, OSError) as error:
            yield Frame(None, f"{path} breaks off at frame {n}: {error}")

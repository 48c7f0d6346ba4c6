"""The frames of a video file, of an animated image, or of a folder of images; and the pairs of them, read ahead."""

from __future__ import annotations

import functools
import itertools
import queue
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageSequence

from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.fitting import Fit
from lpips_fast.cli.folders import list_folder
from lpips_fast.cli.masks import ALPHA, WeightsOf, mask_source, no_alpha
from lpips_fast.cli.notices import FrameName, Notices
from lpips_fast.cli.reading import Pair, make_pair
from lpips_fast.cli.settings import VideoReading
from lpips_fast.cli.video.coding import Coding
from lpips_fast.cli.video.decoding import Frame, decode_video
from lpips_fast.cli.video.pairing import PairBy, Pairing, Stream
from lpips_fast.images import open_image, suffixes, to_picture

# Decoded frames wait for the network until they hold this many pixels, as many as the network takes at once.
_PIXELS_AHEAD = 1 << 22

# Animations of which FFmpeg decodes the first picture alone.
_NO_VIDEO = (".avif", ".avifs")


class Frames(NamedTuple):
    """An opened input."""

    coding: Coding | None  # of the first frame, in a video file
    frames: Iterator[Frame]


class FramePair(NamedTuple):
    """A frame of A, and the frame of B that belongs to it."""

    seconds: float | None  # the time of A's frame, as its file says
    number_b: int  # the number of B's frame
    images: Pair | str  # a string says why there are no images


def open_frames(path: Path, reading: VideoReading, weights_of: WeightsOf | None = None) -> Frames:
    """Opens a folder, an animation (Pillow) or a video (PyAV), and reads the first frame.

    The frames of a folder come in order of name, with numbers in order of value. A file that breaks off ends with a
    frame that says so.

    Args:
        path: the folder or file.
        reading: how frames become pixels.
        weights_of: makes weights of pixels from the frames instead, and ignores `reading`.

    Raises:
        ReadError: the file does not exist, or cannot be read.
        UsageError: it is a video, and PyAV is not installed; or it is a video, and `reading` has a range.
    """
    convert = weights_of or functools.partial(
        to_picture, background=reading.background_color, value_range=reading.value_range
    )
    if path.is_dir():
        paths = sorted((path / p for p in list_folder(path)), key=_natural)
        return Frames(None, (_load(p, convert) for p in paths))
    if not path.is_file():
        raise ReadError(f"{path}: {'neither a file nor a folder' if path.exists() else 'no such file or folder'}")
    suffix = path.suffix.lower()
    if suffix in _NO_VIDEO and suffix not in suffixes():
        raise ReadError(f"{path}: the Pillow installed here does not read {suffix}, whose frames PyAV would not find")
    if suffix in suffixes():
        frames = _animation(path, convert)
    elif weights_of is None and reading.range is not None:
        raise UsageError(
            f"{path}: --range is for images of 16 or 32 bits, the frames of video files are read as 8 bits"
        )
    else:
        frames = decode_video(path, convert, weights_of is None, reading.color_matrix)
    first = [*itertools.islice(frames, 1)]
    return Frames(first[0].coding if first else None, itertools.chain(iter(first), frames))


def open_pairing(
    a: Path, b: Path, mask: str | None, reading: VideoReading, pair_by: PairBy | None, strict: bool
) -> tuple[Pairing, list[Coding | None]]:
    """Opens A, B and the masks. Returns the pairing of their frames, and how A and B are coded."""
    opened = [open_frames(path, reading) for path in (a, b)]
    stream_a, stream_b = (Stream(path, frames) for path, (_, frames) in zip((a, b), opened, strict=True))
    masks = None
    if mask is not None:
        path, weights_of = mask_source(a, ALPHA if mask == ALPHA else Path(mask))
        masks = Stream(path, _open_masks(path, reading, weights_of))
    return Pairing(stream_a, stream_b, masks, pair_by, strict), [coding for coding, _ in opened]


def frame_pairs(pairing: Pairing, fit: Fit, uneven: Callable[[str], None], notices: Notices) -> Iterator[FramePair]:
    """The pairs of images. Ends with the shortest stream, and tells `uneven`."""
    for (path_a, a), (path_b, b), *mask in pairing.frames(uneven):
        named = [(FrameName(path, m.number), m.frame.image) for path, m in ((path_a, a), (path_b, b), *mask)]
        yield FramePair(a.frame.seconds, b.number, _pair(fit, named, notices))


def _open_masks(path: Path, reading: VideoReading, weights_of: WeightsOf) -> Iterator[Frame]:
    """The masks of the frames. A single mask is for all frames.

    Raises:
        ReadError: the masks cannot be read; or they are the alpha channel of a file whose first frame has none.
    """
    try:
        masks = open_frames(path, reading, weights_of).frames
    except (ReadError, UsageError) as error:
        raise type(error)(f"--mask: {error}") from error
    first = [*itertools.islice(masks, 2)]
    if path.is_file() and first:  # in a folder other files may be right
        if first[0].image is None:
            raise ReadError(no_alpha(str(path)))
        if isinstance(first[0].image, str):
            raise ReadError(f"--mask: {first[0].image}")
    return itertools.repeat(first[0]._replace(seconds=None)) if len(first) == 1 else itertools.chain(iter(first), masks)


def ahead(pairs: Iterator[FramePair], depth: int) -> Iterator[FramePair]:
    """The pairs, which a thread reads up to `depth` ahead, or fewer if they are large.

    A thread is enough, because decoders release Python's lock.
    """
    buffer = _Buffer(depth)
    nothing = FramePair(None, 0, "")

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


class _Buffer(queue.Queue[tuple[FramePair, BaseException | None]]):
    """A queue of pairs and errors that is full with `depth` pairs, or with _PIXELS_AHEAD pixels.

    An empty queue takes a pair of any size.
    """

    def __init__(self, depth: int) -> None:
        super().__init__(_PIXELS_AHEAD)
        self._least = -(-_PIXELS_AHEAD // depth)  # the pixels that a small pair counts as
        self._pixels = 0

    def _qsize(self) -> int:
        return self._pixels

    def _put(self, item: tuple[FramePair, BaseException | None]) -> None:
        super()._put(item)
        self._pixels += self._weight(item)

    def _get(self) -> tuple[FramePair, BaseException | None]:
        item = super()._get()
        self._pixels -= self._weight(item)
        return item

    def _weight(self, item: tuple[FramePair, BaseException | None]) -> int:
        images = item[0].images
        return self._least if isinstance(images, str) else max(self._least, images[0].shape[0] * images[0].shape[1])


def _pair(fit: Fit, images: Sequence[tuple[FrameName, Any]], notices: Notices) -> Pair | str:
    for _, image in images:
        if isinstance(image, str):
            return image
    (name0, _), (name1, _), *_ = images
    try:
        return notices.pair((name0, name1), make_pair(fit, *images))
    except ReadError as error:
        return str(error)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key for sorting that puts frame_2 before frame_10."""
    return [(int(part or 0), "") if part.isdigit() else (0, part) for part in re.split(r"([0-9]+)", path.as_posix())]


def _load(path: Path, convert: Callable[[Image.Image], Any]) -> Frame:
    try:
        with open_image(path) as image:
            return Frame(None, convert(image))
    except OSError as error:
        return Frame(None, str(error))


def _animation(path: Path, convert: Callable[[Image.Image], Any]) -> Iterator[Frame]:
    """The frames of an image file, with times until a frame has no duration. Stills and pages have no times."""
    seconds: float | None = 0.0
    n = 0
    try:
        with open_image(path) as image:
            try:
                still_first = getattr(image, "default_image", False)  # of an APNG, for programs that do not animate
                for frame in itertools.islice(ImageSequence.Iterator(image), int(still_first), None):
                    made = convert(frame)
                    duration = frame.info.get("duration")  # known once the frame is decoded; 0 is GIF for no duration
                    if n == 0 and not duration:
                        seconds = None
                    yield Frame(seconds, made, duration=duration / 1000 if duration else None)
                    seconds = seconds + duration / 1000 if seconds is not None and duration else None
                    n += 1
            except Exception as error:
                yield Frame(seconds, f"{path} breaks off at frame {n}: {error}")
    except OSError as error:
        raise ReadError(str(error)) from error

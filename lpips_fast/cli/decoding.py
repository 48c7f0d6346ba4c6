"""The frames of a video file, decoded by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..images import Picture
from .options import ReadError, UsageError


class Frame(NamedTuple):
    seconds: float | None  # from the start, where the file says
    image: Any  # a Picture, or what `weights_of` makes; a string says why it cannot be read


def decode_video(path: Path, convert: Callable[[Image.Image], Any], rgb: bool) -> Iterator[Frame]:
    """The frames of a video file; with `rgb` these are pictures, and without alpha need no conversion."""
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
                alpha = any(component.is_alpha for component in frame.format.components)
                pixels = frame.to_ndarray(format="rgba" if alpha else "rgb24")
                image = Picture(pixels, False, None) if rgb and not alpha else convert(Image.fromarray(pixels))
                yield Frame(frame.time, image)
                n += 1
        except (av.FFmpegError, OSError) as error:
            yield Frame(None, f"{path} breaks off at frame {n}: {error}")

"""What a run notes about images until it tells of them at its end."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from lpips_fast.cli import output
from lpips_fast.cli.errors import ReadError
from lpips_fast.cli.notices import FrameName, Notices
from lpips_fast.cli.reading import ReadPair, Stretched
from lpips_fast.cli.settings import VideoReading
from lpips_fast.images import Picture

PIXELS = np.zeros((2, 3, 3), np.uint8)


@pytest.fixture
def told(monkeypatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(output, "warn", messages.append)
    return messages


def noted(frames: list[tuple[int, int]]) -> Notices:
    """The notices after these pairs of frames, which give a reason for every line there is."""
    notices = Notices(VideoReading())
    for number_a, number_b in frames:
        a, b = FrameName(Path("a.mov"), number_a), FrameName(Path("b.mov"), number_b)
        images = Picture(PIXELS, True, None), Picture(PIXELS, False, (9 + number_b, 99 + number_b))
        notices.pair((a, b), ReadPair(*images, stretched=[Stretched(b, (number_b, 1), (3, 2))]))
    return notices


def test_what_is_kept_does_not_grow_with_the_video():
    few, many = (len(pickle.dumps(noted([(n, n) for n in range(9, count)]))) for count in (30, 3000))
    assert many < few + 50


def test_each_frame_counts_once(told):
    """A frame of B is compared again if A has more frames."""
    noted([(9, 9), (10, 10), (11, 10), (12, 11)]).tell()
    transparent, narrow, stretched = told
    assert transparent.startswith("a.mov frame 9 and 3 more: transparent")
    assert narrow.startswith("b.mov frame 9 and 2 more: only the high byte")
    assert "values run from 18 to 110 (" in narrow
    assert stretched.startswith("b.mov frame 9 and 2 more: --resize changes the aspect ratio, from 9 x 1 to 3 x 2")


def test_readable_images(told):
    notices, read = (
        Notices(VideoReading()),
        [Picture(PIXELS, True, None), "b.png  is\nbroken", Picture(PIXELS, False, None)],
    )
    paths = [Path(name) for name in ("a.png", "b.png", "c.png")]
    images, numbers, errors = notices.readable(paths, read, strict=False)
    assert numbers == [0, 2]
    assert all(image is PIXELS for image in images)
    assert errors == {"b.png": "b.png is broken"}
    notices.tell()
    assert told[0].startswith("a.png: transparent")
    with pytest.raises(ReadError, match="broken"):
        notices.readable(paths, read, strict=True)


def test_each_file_counts_once(told):
    """`matrix` may read a file again, long after."""
    notices = Notices(VideoReading())
    for name, transparent in [("b.png", True), ("a.png", True), ("c.png", False), ("b.png", True)]:
        notices.image(Path(name), Picture(PIXELS, transparent, None))
    notices.tell()
    [message] = told
    assert message.startswith("a.png and 1 more: transparent")

"""Videos with tags."""

from __future__ import annotations

import pytest


@pytest.fixture
def tagged(tmp_path):
    """Saves a picture coded by BT.709 as a video with tags."""
    from tests.support.image_files import picture
    from tests.support.videos import frame_of, from_rgb, save

    def tagged(name: str, *options, **tags):
        frame = frame_of("yuv444p", 64, 48, from_rgb(picture(), 8, "bt709"))
        save(tmp_path / name, [frame, frame], *options, **tags)

    return tagged

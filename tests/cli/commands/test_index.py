"""`index`: where it writes, and what is in its file."""

from __future__ import annotations

import pytest

from lpips_fast.search import Index


def test_where_an_index_goes(call, photos, trunk, monkeypatch):
    """Errors come before any work."""
    monkeypatch.setattr("lpips_fast.cli.indexing.build_index", lambda *_: pytest.fail("images were read"))
    assert "does not go to stdout" in call("index", "photos", "-o", "-", *trunk, status=2)
    assert "no folder" in call("index", "photos", "-o", "nowhere/photos.index", *trunk, status=2)
    assert "photos" in call("index", "photos", "-o", "photos", *trunk, status=2)


def test_what_is_in_the_file(call, photos, trunk, fn):
    """Names in order, without the broken image's; how the images were read; and whether they are transparent."""
    told = call("index", "photos", "-o", "photos.index", "--background", "black", "--workers", 0, *trunk, status=1)
    assert "19 images: photos.index" in told
    assert "11.png cannot be read" in told
    index = Index.load(photos / "photos.index", fn)
    assert index.names == [f"{i:02d}.png" for i in range(20) if i != 11]
    assert index.header.size == (32, 40)
    assert not index.header.resized
    assert index.header.raw is False
    assert index.header.reading == {"background": "black", "range": None}
    assert (index.header.transparent, index.header.opaque) == (False, True)

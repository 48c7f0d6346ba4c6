"""Indexes of folders of images: sizes, broken files, and what is read how often."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lpips_fast import im2tensor, load_image
from lpips_fast.cli import indexing
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.indexing import build_index
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.search import Index
from tests.support.image_files import save_noise
from tests.support.tolerances import EQUAL_IMAGES_TOLERANCE, INDEX_EMBEDDING_TOLERANCE


def test_sizes(call, photos, trunk):
    save_noise(photos / "photos" / "wide.png", 0, width=50)
    save_noise(photos / "wide.png", 0, width=50)
    assert "of 2 sizes" in call("index", "photos", "-o", "photos.index", *trunk, status=2)
    call("index", "photos", "-o", "photos.index", "--size", "48x40", "--workers", 0, *trunk, status=1)
    name, value = call("search", "wide.png", "photos.index", "-k", 1, *trunk).split()[-2:]
    assert name == "wide.png"
    assert float(value) < EQUAL_IMAGES_TOLERANCE


def built(folder, settings, size=None):
    reading = Reading()
    return build_index(folder, Model(settings), size, reading, Notices(reading))


def test_vectors_are_those_of_the_library(photos, settings, fn):
    """Of the readable images alone, in batches that do not divide their number."""
    index, errors = built(photos / "photos", dataclasses.replace(settings, batch_size=8))
    readable = [i for i in range(20) if i != 11]
    images = torch.cat([im2tensor(load_image(photos / "photos" / f"{i:02d}.png")) for i in readable])
    expected = Index.build(fn, images)
    torch.testing.assert_close(index.vectors, expected.vectors, **INDEX_EMBEDDING_TOLERANCE)
    assert index.names == [f"{i:02d}.png" for i in readable]
    assert index.header == expected.header._replace(raw=False, reading=Reading().described())
    (why,) = errors
    assert "11.png cannot be read" in why


def test_each_image_is_read_once(photos, settings, monkeypatch):
    """`Index.build` looks at the first image before it takes the first batch."""
    read, advanced = [], []
    monkeypatch.setattr(Notices, "image", lambda self, name, image: (read.append(name.name), image.pixels)[1])
    reading = Reading()
    paths = sorted((photos / "photos").iterdir())[:7]
    model = Model(settings)
    images = indexing._Files(paths, (40, 32), model, reading, Notices(reading), lambda: advanced.append(None))
    assert len(images) == 7
    parts = [images[rows] for rows in (slice(0, 1), slice(0, 3), slice(3, 6), slice(6, 9))]
    assert [len(part) for part in parts] == [1, 3, 3, 1]
    assert torch.equal(parts[0], parts[1][:1])
    assert torch.equal(torch.cat(parts[1:]), model.tensor([load_image(path) for path in paths]))
    assert read == [path.name for path in paths]
    assert len(advanced) == 7
    assert len(images._held) == 1, "images of earlier batches are let go"


def test_folders_without_an_index(photos, settings, tmp_path):
    with pytest.raises(ReadError, match=r"11\.png cannot be read"):
        built(photos / "photos", dataclasses.replace(settings, strict=True))
    with pytest.raises(UsageError, match="the images are 16 x 8 pixels; net 'squeeze' needs sides of at least 17"):
        built(photos / "photos", settings, (16, 8))
    save_noise(tmp_path / "bad" / "0.png", 0)
    content = (tmp_path / "bad" / "0.png").read_bytes()
    for i in range(3):
        (tmp_path / "bad" / f"{i}.png").write_bytes(content[:500])
    with pytest.raises(ReadError, match=r"none of the 3 images can be read: .*0\.png"):
        built(tmp_path / "bad", settings, (40, 32))

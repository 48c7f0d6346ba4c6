"""Indexes of folders of images: sizes, broken files, and what is read how often."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from lpips_fast import im2tensor, load_image
from lpips_fast.cli import indexing
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.indexing import Kind, Recipe, build_index
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.search import Index
from tests.support.image_files import save_noise
from tests.support.tolerances import EQUAL_IMAGES_TOLERANCE, INDEX_EMBEDDING_TOLERANCE, INDEX_TOLERANCE


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


def recipe_of(folder, settings, size=(40, 32), kind=None):
    return Recipe.of(folder, 20, Model(settings), Reading(), size, False, kind)


def test_vectors_are_those_of_the_library(photos, settings, fn):
    """Of the readable images alone, in batches that do not divide their number."""
    index, errors = built(photos / "photos", dataclasses.replace(settings, batch_size=8))
    readable = [i for i in range(20) if i != 11]
    images = torch.cat([im2tensor(load_image(photos / "photos" / f"{i:02d}.png")) for i in readable])
    expected = Index.build(fn, images)
    torch.testing.assert_close(index.vectors, expected.vectors, **INDEX_EMBEDDING_TOLERANCE)
    assert index.names == [f"{i:02d}.png" for i in readable]
    assert index.header == expected.header._replace(
        precision="float32",
        raw=False,
        reading=Reading().described(),
        transparent=False,
        opaque=True,
        folder=str(photos / "photos"),
    )
    (why,) = errors
    assert "11.png cannot be read" in why


def test_the_folder_of_an_index(photos, settings):
    """A link stays, for it may lead elsewhere tomorrow."""
    (photos / "elsewhere" / "sub").mkdir(parents=True)
    (photos / "elsewhere" / "photos").mkdir()
    (photos / "link").symlink_to(photos / "elsewhere" / "sub")
    for given, expected in (
        ("elsewhere/../photos", "photos"),
        ("link/../photos", "link/../photos"),
        ("link", "link"),
    ):
        assert recipe_of(photos / given, settings).header.folder == str(photos / expected)


def test_each_image_is_read_once(photos, settings, monkeypatch):
    """`Index.build` looks at the first image before it takes the first batch. Black images fill up the last batch."""
    read, advanced = [], []
    monkeypatch.setattr(Notices, "image", lambda self, name, image: (read.append(name.name), image.pixels)[1])
    recipe = recipe_of(photos / "photos", dataclasses.replace(settings, batch_size=3))
    names = [path.name for path in sorted(recipe.folder.iterdir())[:7]]
    images = indexing._Batches(recipe, names, recipe.read(names), Notices(Reading()), lambda: advanced.append(None))
    assert len(images) == 9
    parts = [images[rows] for rows in (slice(0, 1), slice(0, 3), slice(3, 6), slice(6, 9))]
    assert [len(part) for part in parts] == [1, 3, 3, 3]
    assert torch.equal(parts[0], parts[1][:1])
    expected = [load_image(recipe.folder / name) for name in names] + 2 * [np.zeros((32, 40, 3), np.uint8)]
    assert torch.equal(torch.cat(parts[1:]), recipe.model.tensor(expected))
    assert read == names
    assert len(advanced) == 7
    assert len(images._held) == 1, "images of earlier batches are let go"


def test_the_kind_depends_on_the_size_of_all_vectors(photos, settings, fn, monkeypatch):
    """An index of sketches reads the images again, and finds the same."""
    images = [photos / "photos" / f"{i:02d}.png" for i in range(20)]
    queries = torch.cat([im2tensor(load_image(images[i])) for i in (3, 4)])
    whole, _ = built(photos / "photos", settings)
    for limit, kind in ((whole.vectors[0].nbytes * 20, Kind(None, True)), (0, Kind(1024, False))):
        monkeypatch.setattr(indexing, "_VECTOR_BYTES", limit)
        index, _ = built(photos / "photos", settings)
        assert (index.header.sketch and index.header.sketch.length, index.vectors is not None) == kind
        distances, rows = index.search(queries, 3)
        expected, expected_rows = whole.search(queries, 3)
        assert torch.equal(rows, expected_rows)
        torch.testing.assert_close(distances, expected, **INDEX_TOLERANCE[torch.float16])


@pytest.mark.parametrize(
    ("limit", "value", "length"),
    (("_UNIT_IMAGES", 39, 30), ("_UNIT_PIXELS", 25 * 40 * 32, 20), ("_UNIT_BYTES", 2**21, 30), ("_UNIT_PIXELS", 1, 10)),
)
def test_units_are_of_whole_batches(settings, limit, value, length, monkeypatch):
    """So only the last one has black images. A unit is as large as the limits allow, and at least one batch."""
    recipe = recipe_of(Path("photos"), dataclasses.replace(settings, batch_size=10), kind=Kind(None, True))
    monkeypatch.setattr(indexing, limit, value)
    units = recipe.units(95)
    assert [i for unit in units for i in unit] == [*range(95)]
    assert {len(unit) for unit in units[:-1]} == {length}


def test_a_batch_goes_through_the_trunk_at_once(settings):
    assert recipe_of(Path("photos"), settings, (40, 32)).batch == 16
    assert recipe_of(Path("photos"), settings, (300, 200)).batch == 2**19 // (300 * 200) == 8


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

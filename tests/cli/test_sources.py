"""The images of an index, read again."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from lpips_fast import im2tensor, load_image
from lpips_fast.cli import indexing
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.indexing import Kind
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.cli.sources import Files, open_index, reading_errors, stamp
from lpips_fast.cli.updating import update_index
from lpips_fast.search import Index
from tests.support.image_files import save_noise
from tests.support.tolerances import EQUAL_IMAGES_TOLERANCE

SKETCHES = Kind(64, False)


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        save_noise(tmp_path / "photos" / f"{i}.png", i)
    return tmp_path / "photos"


@pytest.fixture
def opened(folder, settings):
    """The index file of the folder, made and opened."""

    def opened(size=None, settings=settings, kind=SKETCHES, **options):
        reading, model = Reading(), Model(settings)
        path = folder.parent / "photos.index"
        update_index(folder, path, model, size, reading, Notices(reading), kind)
        return open_index(path, model, reading, Notices(reading), **options)

    return opened


def test_images_as_the_index_has_them(folder, opened, settings):
    index = opened()
    images = index.images.read([3, 1])
    expected = torch.cat([im2tensor(load_image(folder / f"{i}.png")) for i in (3, 1)])
    torch.testing.assert_close(torch.stack(images), expected)
    (folder.parent / "photos.index").unlink()
    images = opened((24, 20), dataclasses.replace(settings, normalize=False)).images.read([2])
    recipe = indexing.Recipe.of(folder, 1, Model(settings), Reading(), (24, 20), True, None)
    (expected,) = recipe.read(["2.png"])
    assert torch.equal(images[0], torch.from_numpy(expected.pixels).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("workers", (0, 3))
def test_distances_are_those_of_the_files(folder, opened, settings, fn, workers):
    index = opened(settings=dataclasses.replace(settings, workers=workers))
    queries = im2tensor(load_image(folder / "4.png"))
    distances, rows = index.search(queries, 5)
    assert rows[0, 0] == 4
    assert distances[0, 0] < EQUAL_IMAGES_TOLERANCE
    with torch.no_grad():
        expected = torch.stack([fn(queries, im2tensor(load_image(folder / f"{row}.png"))) for row in rows[0]])
    torch.testing.assert_close(distances[0], expected.flatten())
    assert reading_errors(index, folder) == []


def test_files_that_changed_or_are_gone(folder, opened, settings, capsys):
    """The distance is that of the file as it is now. One that is gone has not changed, too."""
    index = opened()
    save_noise(folder / "1.png", 4)
    os.utime(folder / "2.png", ns=(0, 0))
    (folder / "3.png").unlink()
    distances, rows = index.search(im2tensor(load_image(folder / "4.png")), 5)
    assert sorted(rows[0].tolist()) == [-1, 0, 1, 2, 4]
    assert rows[0, :2].tolist() == [1, 4]
    assert distances[0, 1] < EQUAL_IMAGES_TOLERANCE
    assert reading_errors(index, folder.parent / "photos.index") == [f"no image file {folder / '3.png'}"]
    told = capsys.readouterr().err
    assert "1.png and 1 more: changed since" in told
    assert "lpips-fast index brings the index up to date" in told
    index.images.model.settings = dataclasses.replace(settings, strict=True)
    with pytest.raises(ReadError, match="no image file"):
        index.images.read([3])


def test_a_file_of_another_size(folder, opened):
    index = opened()
    save_noise(folder / "1.png", 1, width=50)
    assert index.images.read([1]) == [None]
    (why,) = reading_errors(index, folder)
    assert why == f"{folder / '1.png'} is 50 x 32 pixels now, and was 40 x 32"


def test_stamps(folder):
    path = folder / "1.png"
    assert stamp(path) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert stamp(folder / "nowhere.png") == (-1, -1)


def test_a_folder_that_is_not_there(folder, opened, settings):
    opened()
    moved = folder.rename(folder.parent / "moved")
    path, model, reading = folder.parent / "photos.index", Model(settings), Reading()
    with pytest.raises(
        UsageError, match=f"{folder}, is not there: .* -o {path} notes the new place, or --folder says it; or so$"
    ):
        open_index(path, model, reading, Notices(reading), otherwise="; or so")
    assert open_index(path, model, reading, Notices(reading), exact=False).images is None
    index = open_index(path, model, reading, Notices(reading), moved)
    assert index.images.read([0])[0] is not None
    assert reading_errors(index, path) == []


def test_an_index_that_needs_no_images(opened):
    assert opened(kind=Kind(64, True)).images is None


def test_an_index_of_sketches_from_python(tmp_path, settings, fn):
    Index.build(fn, torch.rand(2, 3, 32, 40), sketch=64).save(tmp_path / "python.index")
    reading = Reading()
    with pytest.raises(UsageError, match="made in Python from images that are not known here"):
        open_index(tmp_path / "python.index", Model(settings), reading, Notices(reading), tmp_path)
    index = open_index(tmp_path / "python.index", Model(settings), reading, Notices(reading), exact=False)
    assert len(index) == 2


def test_files_without_stamps(folder, opened):
    """As of an index in memory."""
    index = opened()
    files = Files(folder, index.names, index.header, None, index.images.model, Reading())
    os.utime(folder / "2.png", ns=(0, 0))
    assert files.read([2])[0] is not None
    assert not files.changed

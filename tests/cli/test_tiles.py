"""The matrix of all distances: the order of its tiles, what is held, and what comes out of the whole."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import lpips_fast
from lpips_fast.cli import tiles
from lpips_fast.cli.errors import ReadError, UsageError
from lpips_fast.cli.model import Model
from lpips_fast.cli.notices import Notices
from lpips_fast.cli.settings import Reading
from lpips_fast.cli.tiles import Blocks, Table
from tests.support.image_files import save_noise
from tests.support.tolerances import REORDERED_TOLERANCE, TILE_TOLERANCE

SIZE = 40, 32


class Counting:
    """In the place of a network: embeddings of 64 bytes, and the images that went through."""

    def __init__(self):
        self.images = 0
        self.settings = SimpleNamespace(reader_count=lambda: 0, strict=False)

    def too_small(self, height, width):
        return None

    def embed(self, images):
        self.images += len(images)
        return torch.zeros(len(images), 16)


def blocks_of(numbers, length, model=None):
    """Blocks of images that are not read."""
    reading = Reading()
    sides = [[Path(f"{side}{i}.png") for i in range(n)] for side, n in enumerate(numbers)]
    return Blocks(sides, model or Counting(), SIZE, length, reading, Notices(reading))


@pytest.fixture
def unread(monkeypatch):
    """Images come without files."""
    black = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    monkeypatch.setattr(tiles, "read_ahead", lambda dataset, workers: [black] * len(dataset))
    monkeypatch.setattr(Notices, "image", lambda self, name, image: image)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 10, 11])
def test_tiles_of_one_folder_are_the_upper_triangle(n):
    found = blocks_of([n], 3).tiles()
    rows = math.ceil(n / 3)
    assert sorted(found) == list(itertools.combinations_with_replacement(range(rows), 2))
    assert all({*one} & {*other} for one, other in itertools.pairwise(found)), "neighbours share a block"


@pytest.mark.parametrize("n, m", [(1, 1), (10, 3), (4, 11), (0, 5)])
def test_tiles_of_two_folders_are_all(n, m):
    found = blocks_of([n, m], 3).tiles()
    assert sorted(found) == list(itertools.product(range(math.ceil(n / 3)), range(math.ceil(m / 3))))
    for one, other in itertools.pairwise(found):
        assert one[0] == other[0] or one[1] == other[1], "neighbours share a block"


@pytest.mark.parametrize("numbers, reads", [([12], 1 + 4 * 3 // 2), ([9, 6], 2 + 3 * 2 - 1)])
def test_a_tile_reads_the_block_that_its_neighbour_has_not(unread, numbers, reads):
    model = Counting()
    blocks = blocks_of(numbers, 3, model)
    for at in blocks.tiles():
        assert blocks.tile(*at)[0].shape == (3, 3)
        assert len(blocks._cache) <= 2
    assert model.images == 3 * reads


@pytest.mark.parametrize("total", [1, 16, 40, 100, 101, 500])
def test_blocks_fit_the_memory(unread, monkeypatch, total):
    """If all embeddings fit, each image is embedded once, in at least a few blocks, which processes can share."""
    monkeypatch.setattr(tiles, "_HELD_BYTES", 100 * 64)
    model = Counting()
    blocks = blocks_of([total], None, model)
    assert model.images == 1, "one image tells the size of an embedding"
    most = 0
    for at in blocks.tiles():
        blocks.tile(*at)
        most = max(most, sum(len(e) for e, _, _ in blocks._cache.values()))
    assert most <= 100
    if total <= 100:
        assert model.images == 1 + total
        assert len(blocks.tiles()) == {1: 1, 16: 1, 40: 6, 100: 10}[total]
    else:
        assert (blocks.length, blocks.held) == (50, 2)


@pytest.fixture
def sides(tmp_path):
    """Two folders of 7 and of 4 images; one in each is broken."""
    for name, n, broken in (("x", 7, 4), ("y", 4, 0)):
        for i in range(n):
            save_noise(tmp_path / name / f"{i}.png", i + 100 * (name == "y"))
        path = tmp_path / name / f"{broken}.png"
        path.write_bytes(path.read_bytes()[:500])
    return [sorted((tmp_path / name).iterdir()) for name in "xy"]


@pytest.mark.parametrize("both", [False, True])
def test_tiles_are_the_distances(sides, settings, fn, both):
    given = sides if both else sides[:1]
    reading = Reading()
    blocks = Blocks(given, Model(settings), SIZE, 3, reading, Notices(reading))
    table = Table([[path.name for path in paths] for paths in given])
    errors = {}
    for i, j in blocks.tiles():
        tile, why = blocks.tile(i, j)
        table.put(3 * i, 3 * j, tile)
        errors |= why
    broken = [sides[0][4], *([sides[1][0]] if both else [])]
    assert sorted(errors) == sorted(map(str, broken))
    assert all(f"{path.name} cannot be read" in errors[str(path)] for path in broken)

    def image(path):
        return torch.zeros(1, 3, 32, 40) if path in broken else lpips_fast.im2tensor(lpips_fast.load_image(path))

    rows, columns = (torch.cat([image(path) for path in paths]) for paths in (given[0], given[-1]))
    expected = fn.pairwise(rows, columns).detach().numpy()
    expected[4] = np.nan
    expected[:, 0 if both else 4] = np.nan
    np.testing.assert_allclose(table.values, expected, rtol=REORDERED_TOLERANCE, atol=TILE_TOLERANCE)


def test_a_block_of_which_nothing_can_be_read(sides, settings):
    reading = Reading()
    blocks = Blocks(sides, Model(settings), SIZE, 1, reading, Notices(reading))
    for at, readable in (((4, 1), False), ((3, 0), False), ((3, 1), True)):
        tile, _ = blocks.tile(*at)
        assert tile.shape == (1, 1)
        assert np.isfinite(tile[0, 0]) == readable


def test_strict_and_small_images(sides, settings):
    reading = Reading()
    blocks = Blocks(sides, Model(dataclasses.replace(settings, strict=True)), SIZE, 3, reading, Notices(reading))
    with pytest.raises(ReadError, match=r"0\.png cannot be read"):
        blocks.tile(0, 0)
    with pytest.raises(UsageError, match="the images are 16 x 8 pixels; net 'squeeze' needs sides of at least 17"):
        Blocks(sides, Model(settings), (16, 8), 3, reading, Notices(reading))


def table_of(values, one_sided):
    n, m = values.shape
    names = [[f"{i}.png" for i in range(n)], [f"other {j}.png" for j in range(m)]]
    table = Table(names[:1] if one_sided else names)
    assert np.isnan(table.values).all()
    table.values[:] = values
    return table


def test_a_tile_is_mirrored_if_rows_are_columns():
    tile = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = Table([[str(i) for i in range(7)]])
    table.put(1, 4, tile)
    assert (table.values[1:3, 4:7] == tile).all()
    assert (table.values[4:7, 1:3] == tile.T).all()
    assert np.isfinite(table.values).sum() == 12
    table = Table([["0", "1", "2"], [str(i) for i in range(7)]])
    table.put(1, 4, tile)
    assert np.isfinite(table.values).sum() == 6


@pytest.fixture
def values():
    """Symmetric, with zeros on the diagonal, NaN for image 3, and two pairs at one distance."""
    values = np.random.default_rng(0).uniform(0.1, 1, (8, 8)).astype(np.float32)
    values = np.minimum(values, values.T)
    values[1, 6] = values[6, 1] = values[0, 5] = values[5, 0] = 0.05
    np.fill_diagonal(values, 0)
    values[3] = values[:, 3] = np.nan
    return values


@pytest.mark.parametrize("one_sided", [True, False])
def test_summary_and_nearest(values, one_sided):
    """Of pairs of different images: each once, not the diagonal, if rows are columns; else all."""
    table = table_of(values, one_sided)
    pairs = itertools.combinations(range(8), 2) if one_sided else itertools.product(range(8), range(8))
    known = [(values[i, j].item(), i, j) for i, j in pairs if 3 not in (i, j)]
    of_pairs = np.array([value for value, _, _ in known])
    assert table.summary() == {
        "count": 21 if one_sided else 49,
        "mean": pytest.approx(of_pairs.mean()),
        "std": pytest.approx(of_pairs.std()),
        "min": of_pairs.min(),
        "max": of_pairs.max(),
    }
    name = "{}.png" if one_sided else "other {}.png"
    for k in (0, 1, 2, 5, 100):
        expected = [(f"{i}.png", name.format(j), value) for value, i, j in sorted(known)[:k]]
        assert table.nearest(k) == expected


def test_nothing_known():
    table = Table([["0.png"]])
    nothing = {"count": 0, **dict.fromkeys(("mean", "std", "min", "max"), pytest.approx(math.nan, nan_ok=True))}
    assert table.summary() == nothing
    assert table.nearest(3) == []
    table.values[:] = 0
    assert table.summary() == nothing, "an image and itself are no pair"
